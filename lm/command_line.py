"""The command `longrange`: every program as a sub-command, from whichever folder one is in.

A sub-command is `python -m MODULE` in the place of this process, with the working folder off the
path that modules are looked for on: people have packages `data`, `eval` and `tools` of their own.
"""

import ast
import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from data.common.requirements import extra
from data.common.say import say, tell
from data.common.values import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
"""Where this and the other packages lie: a checkout, or an environment's site-packages."""

PROGRAMS = {
    "prepare": "data.prepare",
    "recall": "data.recall",
    "probes": "data.probes",
    "series": "data.series",
    "train": "lm.train",
    "continual": "lm.continual",
    "adopt": "lm.adopt",
    "experiments": "tools.experiments",
    "plan": "tools.plan",
    "launch": "tools.launch",
    "ranks": "tools.ranks",
    "score": "eval.score",
    "breakdown": "eval.breakdown",
    "compress": "eval.compress",
    "distance": "eval.distance",
    "bayes": "eval.bayes",
    "recurrent": "tools.recurrent",
    "recurrence": "eval.recurrence",
    "dynamic": "eval.dynamic",
    "adapt": "eval.adapt",
    "prune": "eval.prune",
    "harness": "eval.harness",
    "evaluate": "tools.evaluate",
    "report": "eval.report",
    "compare": "eval.compare",
    "plot": "tools.plot",
    "sets": "tools.sets",
    "generate": "lm.generate",
    "library": "lm.library",
    "datastore": "lm.datastore",
    "export": "lm.export",
    "serve": "lm.serve",
    "import": "lm.import_folder",
    "compact": "tools.compact",
}
"""Sub-commands and their modules, in the order of a model's life."""
OWN_COMMAND_LINES = ("tools.ranks", "eval.harness", "lm.library")
"""Those that pass their arguments on."""


def main() -> None:
    """Become the program that the first argument names, or say which there are.

    Raises:
        SystemExit: status 2, no sub-command of that name, or no completion.
    """
    name, *options = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        tell(usage())
    elif name == "--version":
        from importlib.metadata import version

        tell(f"longrange {version('longrange-lm')}")
    elif name.partition("=")[0] == "--print-completion":
        try:
            tell(completion(name.partition("=")[2] or " ".join(options)))
        except ValueError as error:
            say(f"longrange: error: {error}")
            raise SystemExit(2) from None
    elif name in PROGRAMS:
        os.environ |= environment(os.environ.get("PYTHONPATH", ""), Path.cwd())
        os.environ["LONGRANGE_CALLED"] = f"longrange {name}"
        # The same process under the same number, so that signals and job schedulers find it.
        os.execv(sys.executable, [sys.executable, "-m", PROGRAMS[name], *options])
    else:
        say(f"longrange: error: unknown command {name}; {did_you_mean(name, PROGRAMS)}")
        raise SystemExit(2)


def usage() -> str:
    """The sub-commands, each with the first sentence of its program's docstring."""
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:<{width}}  {summary(module)}" for name, module in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: longrange COMMAND [--config FILE ...] [--OPTION VALUE ...]",
            "       longrange COMMAND --help",
            "       longrange --version",
            "       longrange --print-completion bash|zsh|tcsh",
            "",
            *lines,
        ]
    )


def completion(shell: str) -> str:
    """The script with which a shell completes sub-commands, their options, choices and files.

    shtab makes it of the options, as it does for jsonargparse's own parsers.

    Raises:
        ValueError: another shell, or shtab is not installed.
    """
    from data.common.command import parser_of

    with extra("completion", "longrange --print-completion"):
        import shtab
    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise ValueError(f"--print-completion is followed by one of {known}, not {shell!r}")
    whole = ArgumentParser("longrange")
    commands = whole.add_subparsers()
    for name, module in PROGRAMS.items():
        below = commands.add_parser(name, help=summary(module), add_help=False)
        if module in OWN_COMMAND_LINES:
            continue
        for action in parser_of(module)._actions:
            below._add_action(action)
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(whole, shell)
    return script


def summary(module: str) -> str:
    """The first line of a program's docstring, which is read without importing it."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    line = (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
    return line.removeprefix("Program: ").rstrip(".,:")


def environment(search: str, folder: Path) -> dict[str, str]:
    """Variables that keep modules of the working folder from this process and those it starts.

    Args:
        search: PYTHONPATH as it is.
        folder: the working folder; it stays on the path only if these packages are in it.
    """
    kept = [
        entry
        for entry in search.split(os.pathsep)
        if entry and (Path(entry).resolve() != folder.resolve() or folder.resolve() == ROOT)
    ]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(kept)}
