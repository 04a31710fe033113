"""The house rules a machine can check: which way imports point, how long things get, what is said.

Each check is a function from a checkout to a list of complaints; the tests hold that it finds none
here, and that it finds one in a small tree that breaks the rule.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "lm", "eval", "tools")

# A module imports from its own component and from those of a lower layer.
LAYERS = {
    "data.common": 0,
    "data": 1,
    "lm.model": 1,
    "lm.threads": 1,
    "lm.sparse": 2,
    "lm.objectives": 2,
    "lm.feeding": 3,
    "lm.runs": 3,
    "lm.inference": 4,
    "lm.scoring": 5,
    "lm.training": 6,
    "lm": 7,  # the programs, and whatever else lies directly in lm/
    "eval": 8,
    "tools": 9,
}

LONGEST_FILE = 400
LONGEST_FUNCTION = 80
MOST_PARAMETERS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(root: Path, folders: tuple[str, ...] = PACKAGES) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports at any depth, lazily too, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module or ""] if node.level else [node.module or ""])
            yield from ((f"{base.rstrip('.')}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno


def import_graph(root: Path) -> dict[str, dict[str, int]]:
    """For each module, the modules of ours that it imports and the line where."""
    modules = {module_name(root, path): path for path in python_files(root)}
    graph: dict[str, dict[str, int]] = {name: {} for name in modules}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported, line in imported_names(ast.parse(path.read_text()), package):
            # `from lm.runs import runlog` means a module, `from data.shards import Shards` a name.
            for target in (imported, imported.rpartition(".")[0]):
                if target in modules and target != name:
                    graph[name].setdefault(target, line)
                    break
    return graph


def component(module: str) -> str:
    fitting = [name for name in LAYERS if f"{module}.".startswith(f"{name}.")]
    return max(fitting, key=len)


def import_complaints(root: Path) -> list[str]:
    graph = import_graph(root)
    complaints = []
    for name, targets in graph.items():
        for target, line in targets.items():
            here, there = component(name), component(target)
            if name == "lm":
                complaints.append(f"lm/__init__.py:{line} imports {target}; all of lm would too")
            elif here != there and LAYERS[there] >= LAYERS[here]:
                complaints.append(f"{name}:{line} imports {target}, which is not below it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        complaints.append("import cycle: " + " <- ".join(error.args[1]))
    return complaints


def functions(body: list[ast.stmt], private: bool = False) -> Iterator[tuple[Function, bool]]:
    """Functions and methods of a module, inner ones too, and whether each is private."""
    for node in body:
        if isinstance(node, Function):
            hidden = private or node.name.startswith("_")
            yield node, hidden
            yield from functions(node.body, private=True)
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body, private or node.name.startswith("_"))
        else:
            for inner in ("body", "orelse", "handlers", "finalbody"):
                yield from functions(getattr(node, inner, []), private)


def is_autograd(function: Function) -> bool:
    """Whether it is the forward of an autograd function, whose every tensor is a parameter."""
    return bool(function.args.args) and function.args.args[0].arg == "ctx"


def parameters(function: Function) -> list[ast.arg]:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [each for each in named if each is not None and each.arg not in ("self", "cls")]


def size_complaints(root: Path) -> list[str]:
    complaints = []
    for path in python_files(root, (*PACKAGES, "tests")):
        text = path.read_text()
        where = path.relative_to(root)
        if (lines := text.count("\n")) > LONGEST_FILE:
            complaints.append(f"{where} has {lines} lines; {LONGEST_FILE} at most")
        for function, _ in functions(ast.parse(text).body):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > LONGEST_FUNCTION:
                complaints.append(f"{where}: {function.name} has {lines} lines")
            if where.parts[0] == "tests" or is_autograd(function):
                continue
            if len(parameters(function)) > MOST_PARAMETERS:
                complaints.append(f"{where}: {function.name} has too many parameters; use a config")
    return complaints


def interface_complaints(root: Path) -> list[str]:
    """Public functions and methods without a docstring or with a type missing."""
    complaints = []
    for path in python_files(root):
        for function, private in functions(ast.parse(path.read_text()).body):
            if private:
                continue
            where = f"{path.relative_to(root)}: {function.name}"
            if not ast.get_docstring(function):
                complaints.append(f"{where} has no docstring")
            untyped = [each.arg for each in parameters(function) if each.annotation is None]
            if untyped or function.returns is None:
                complaints.append(f"{where} lacks the type of {', '.join(untyped) or 'its result'}")
    return complaints


def file_tree(readme: str) -> list[str] | None:
    """Paths that the tree of a page names, folders with a slash at the end; None without a tree.

    The tree is the first code block with a line that begins with `data/`. Two spaces to a level; a
    line holds one or more names, two spaces apart, and then what they are for.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    tree = next((block for block in blocks if re.search(r"^data/", block, re.MULTILINE)), None)
    if tree is None:
        return None
    paths, folders = [], {0: ""}
    for line in filter(str.strip, tree.splitlines()):
        depth = len(line) - len(line.lstrip())
        parent = folders[max(level for level in folders if level <= depth)]
        first, *others = re.split(r"\s{2,}", line.strip())
        names = [first]
        for other in others:
            if not re.fullmatch(r"[\w.-]+(\.\w+|/)", other):
                break
            names.append(other)
        paths += [parent + name for name in names]
        if first.endswith("/"):
            folders = {level: at for level, at in folders.items() if level <= depth}
            folders[depth + 1] = parent + first
    return paths


def map_complaints(root: Path) -> list[str]:
    named = file_tree((root / "docs" / "files.md").read_text()) or []
    there = [
        path.relative_to(root).as_posix()
        for folder in (*PACKAGES, "configs")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.name != "__init__.py" and path.suffix != ".pyc"
    ]
    missing = [f"docs/files.md does not name {path}" for path in there if path not in named]
    return missing + [
        f"docs/files.md names {path}, which is not there"
        for path in named
        if not ((root / path).is_dir() if path.endswith("/") else (root / path).is_file())
    ]


def path_complaints(root: Path) -> list[str]:
    """Files that mention somebody's home folder."""
    folders = [root / folder for folder in (*PACKAGES, "configs", "tests", ".ci")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix != ".pyc"]
    files += [path for path in root.iterdir() if path.suffix in (".md", ".toml", ".txt")]
    home = re.compile(r"/(?:home|root|Users)/\w")
    return [
        f"{path.relative_to(root)} mentions {found[0]}..."
        for path in files
        if path.is_file() and (found := home.search(path.read_text(errors="replace")))
    ]


def saying_complaints(root: Path) -> list[str]:
    """Lines said on stderr otherwise than by data.common.say, which a full disk would end."""
    said = re.compile(r"file=sys\.stderr|sys\.stderr\.write|traceback\.print_exc")
    # The terminal's bar writes past itself.
    allowed = (Path("data/common/say.py"), Path("data/common/progress.py"))
    return [
        f"{path.relative_to(root)}:{number} speaks past data.common.say"
        for path in python_files(root)
        if path.relative_to(root) not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if said.search(line)
    ]


def test_imports_go_one_way():
    assert import_complaints(ROOT) == []


def test_no_package_imports_a_program():
    """`python -m` would warn at each start: the program is imported before it is run."""
    graph = import_graph(ROOT)
    for path in python_files(ROOT):
        name = module_name(ROOT, path)
        reached, waiting = set(), {name.rpartition(".")[0]} & graph.keys()
        while waiting:
            reached |= waiting
            waiting = {target for module in waiting for target in graph[module]} - reached
        assert name not in reached or '__name__ == "__main__"' not in path.read_text(), name


def test_sizes_are_within_budget():
    assert size_complaints(ROOT) == []


def test_public_interfaces_are_typed_and_documented():
    assert interface_complaints(ROOT) == []


def test_the_file_map_names_every_file_and_no_other():
    assert map_complaints(ROOT) == []


def test_lines_on_stderr_are_said_in_one_way():
    assert saying_complaints(ROOT) == []


def test_no_file_mentions_a_home_folder():
    assert path_complaints(ROOT) == []


@pytest.fixture
def fake(tmp_path):
    """Function that lays out a small checkout from path and text pairs."""

    def lay_out(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return lay_out


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        ("data/a.py", "from lm.model import memory"),
        ("lm/model/a.py", "def f():\n    from data import vocab"),
        ("lm/model/a.py", "from ..sparse import linear"),
        ("lm/scoring.py", "import lm.training.engine"),
        ("lm/inference/sampling.py", "from lm.training import engine"),
        ("lm/training/a.py", "from lm import train"),
        ("lm/training/a.py", "import importlib\nimportlib.import_module('lm.train')"),
        ("lm/train.py", "from eval.score import score"),
        ("eval/a.py", "if True:\n    import tools.plot"),
        ("lm/__init__.py", "from lm.model import memory"),
    ],
)
def test_an_upward_import_is_found(fake, importer, statement):
    modules = (
        "data/vocab lm/__init__ lm/model/memory lm/sparse/linear lm/sampling lm/training/engine "
        "lm/train eval/score tools/plot"
    )
    tree = fake({f"{name}.py": "" for name in modules.split()} | {importer: statement})
    assert len(import_complaints(tree)) == 1


def test_downward_imports_are_fine(fake):
    tree = fake(
        {
            "data/vocab.py": "import os",
            "data/shards.py": "from .vocab import Bytes\nfrom data import vocab",
            "lm/model/memory.py": "import torch",
            "lm/scoring.py": "from lm.model.memory import Memory\nimport data.shards",
            "lm/hub.py": "from lm.model import memory",
            "lm/train.py": "from lm import hub, scoring",
            "eval/score.py": "from lm.train import load",
        }
    )
    assert import_complaints(tree) == []
    assert set(import_graph(tree)["data.shards"]) == {"data.vocab"}


def test_a_lazy_cycle_is_found(fake):
    tree = fake({"data/a.py": "import data.b", "data/b.py": "def f():\n    from data.a import g"})
    (complaint,) = import_complaints(tree)
    assert complaint.startswith("import cycle: data.")


def test_what_is_too_big_is_found(fake):
    long = "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION
    wide = f"class A:\n    def g(self, {', '.join('abcdefghi')}): ...\n"
    tree = fake({"data/a.py": long, "lm/b.py": wide, "tests/c.py": "\n" * (LONGEST_FILE + 1)})
    assert size_complaints(tree) == [
        "data/a.py: f has 81 lines",
        "lm/b.py: g has too many parameters; use a config",
        "tests/c.py has 401 lines; 400 at most",
    ]


def test_a_bare_interface_is_found(fake):
    text = '''
def f(a: int) -> int:
    """Fine."""
    def inner(b): ...
def g(a) -> None:
    """A type is missing."""
class A:
    def h(self) -> None: ...
    def i(self):
        """A type is missing."""
    def _private(self): ...
'''
    assert interface_complaints(fake({"data/a.py": text})) == [
        "data/a.py: g lacks the type of a",
        "data/a.py: h has no docstring",
        "data/a.py: i lacks the type of its result",
    ]


def test_a_map_that_differs_from_the_tree_is_found(fake):
    readme = """
```
configs/
  a.yaml              a preset
data/                 text to shards
  vocab.py  gone.py   bytes
lm/
  model/
    memory.py         state
  train.py            program
```
"""
    files = ["configs/a.yaml", "data/vocab.py", "data/new.py", "data/__init__.py", "lm/train.py"]
    tree = fake({"docs/files.md": readme, "lm/model/memory.py": ""} | dict.fromkeys(files, ""))
    assert map_complaints(tree) == [
        "docs/files.md does not name data/new.py",
        "docs/files.md names data/gone.py, which is not there",
    ]
    assert file_tree("no tree\n```\nls\n```\n") is None


def test_a_home_folder_is_found(fake):
    tree = fake({"configs/a.yaml": "source: /ho" + "me/me/books", "data/a.py": "'/tmp/x'"})
    assert path_complaints(tree) == ["configs/a.yaml mentions /ho" + "me/m..."]


def test_a_line_past_the_one_way_is_found(fake):
    tree = fake({"data/a.py": "print('a')\nprint('b', file=sys.stderr)\n"})
    assert saying_complaints(tree) == ["data/a.py:2 speaks past data.common.say"]
