"""Program: how much of this project one has to open, in this tree and at another commit.

What a reader opens is what a real run enters: the programs train a small model with the quick
start's preset, write and score, and every function of data, lm and eval that they call is noted
(tools/entered.py). A training step is
Trainer.train_step on its own thread, a token what a session does from one draw to the next; beside
each stands what the program adds around it. Only what is warm counts: three steps from the second
on, three tokens from the second on, the attention calls of these steps with the backward of what
they called, and the record of a score that the same process has made before. What runs at import
never counts; generated methods of dataclasses, lambdas and comprehensions are no functions.

Sizes are those of the Python files of data, lm and eval; an importer is another file of theirs or
of tools that imports the file at any depth.
"""

import ast
import json as json_format
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from data.common import command
from data.common.outputs import check_output, write_result
from data.common.say import say
from tools.commits import ROOT, checkout, environment
from tools.entered import LIBRARY

SMALL = 70
Counts = dict[str, Any]


def main(against: str | None = None, files: bool = False, json: Path | None = None) -> None:
    """Count what one training step, attention call, token and score enter, and the library's size.

    Args:
        against: a commit that is counted beside this tree.
        files: also list the files that each of them enters.
        json: file for all that was counted, the functions' names too.
    """
    check_output(json)
    counted = {"this tree": count(ROOT)}
    if against is not None:
        with checkout(against) as tree:
            counted[against] = count(tree)
    write_result(json, counted)
    print("\n".join(table(counted)))
    if files:
        print("\n".join(listing(counted)))


def count(root: Path) -> Counts:
    """Sizes of a checkout, and the functions that its programs enter; none of these where it lacks
    the programs.
    """
    return {"sizes": sizes(root), "entered": entered(root)}


def entered(root: Path) -> dict[str, list[str]]:
    """The functions that each enters, as FILE:QUALIFIED.NAME, by a run in another
    process.
    """
    script = Path(__file__).with_name("entered.py")
    done = subprocess.run(
        [sys.executable, "-P", script],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        say(f"{root} was counted without what its programs enter, which did not run: {last}")
        return {}
    functions: dict[str, list[str]] = json_format.loads(done.stdout)
    return functions


def files_of(functions: list[str]) -> list[str]:
    """The files that functions lie in."""
    return sorted({name.partition(":")[0] for name in functions})


def sizes(root: Path) -> dict[str, int]:
    """Numbers about the library's files."""
    lines = {path: path.read_text().count("\n") for path in python_files(root, LIBRARY)}
    folders = Counter(path.parent for path in lines)
    imported = importers(root)
    small = [path for path, number in lines.items() if number < SMALL and path.stem != "__init__"]
    return {
        "library files": len(lines),
        "library lines": sum(lines.values()),
        "median file, lines": round(median(lines.values())),
        "files in the largest folder": max(folders.values()),
        f"files under {SMALL} lines": len(small),
        "of these with a single importer": sum(imported[path] == 1 for path in small),
    }


def python_files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """Files of some folders of a checkout."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def importers(root: Path) -> Counter[Path]:
    """How many files import each."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in python_files(root, (*LIBRARY, "tools"))
    }
    found: Counter[Path] = Counter()
    for path in modules.values():
        targets = {modules[name] for name in imports(path.read_text()) if name in modules}
        found.update(targets - {path})
    return found


def imports(text: str) -> Iterator[str]:
    """Dotted names that a file imports; of `from a import b` both a.b and a, one of them a file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def table(counted: dict[str, Counts]) -> list[str]:
    """What was counted, as a Markdown table with a column for each checkout."""
    lines = [f"| | {' | '.join(counted)} |", f"|---|{'---|' * len(counted)}"]
    lines.insert(0, "Functions / files that are entered, and sizes:\n")
    for name in dict.fromkeys(name for each in counted.values() for name in each["entered"]):
        cells = []
        for each in counted.values():
            functions = each["entered"].get(name)
            files = functions and f"{len(functions)} / {len(files_of(functions))}"
            cells.append(files or "not counted")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in next(iter(counted.values()))["sizes"]:
        cells = [f"{each['sizes'][name]:,}" for each in counted.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def listing(counted: dict[str, Counts]) -> Iterator[str]:
    """The files behind the table, with the number of functions that are entered in each."""
    for place, each in counted.items():
        for name, functions in each["entered"].items():
            numbers = Counter(function.partition(":")[0] for function in functions)
            yield f"\n{name}, {place}:"
            yield from (f"  {file} {number}" for file, number in sorted(numbers.items()))


if __name__ == "__main__":
    command.run(main)
