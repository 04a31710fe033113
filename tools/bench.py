"""Program: run one of the benchmarks in tools/benchmarks/, each a file with a typed `main`.

A benchmark is found by its file, so adding one is adding the file; `_speed` at the end of a file's
name, where the library has a file of the name before it, is not typed. `python tools/bench.py NAME
--help` lists what a benchmark takes.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tools" / "benchmarks"
USAGE = "usage: python tools/bench.py NAME [--OPTION VALUE ...]"


def benchmarks() -> dict[str, str]:
    """Name of each benchmark and the first sentence of its docstring, without importing it."""
    sentences = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            sentence = (ast.get_docstring(tree) or "").partition("\n")[0]
            sentences[path.stem.removesuffix("_speed")] = sentence
    return sentences


def main(argv: list[str]) -> None:
    """Run the benchmark that the first argument names, with the others as its options."""
    # As a script this file's own folder is on the path, and the checkout is not.
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from data.common.say import say, tell
    from data.common.values import did_you_mean

    known = benchmarks()
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, known))
        lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
        tell("\n".join([USAGE, "", *lines]))
        return
    name, *options = argv
    if name not in known:
        say(f"bench: error: unknown benchmark {name}; {did_you_mean(name, known)}")
        raise SystemExit(2)
    from data.common import command

    file = f"{name}_speed" if (FOLDER / f"{name}_speed.py").is_file() else name
    module = import_module(f"tools.benchmarks.{file}")
    command.run(module.main, argv=options, called=f"tools/bench.py {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
