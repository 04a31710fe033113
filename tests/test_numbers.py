"""Every number that any program takes: what is no number of anything is refused in a sentence."""

import ast
import importlib
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

from data.common import command
from data.common.settings import REQUIRED, Option, arguments_of, options_of

ROOT = Path(__file__).parents[1]

BAD = (".nan", ".inf", "-.inf", "1e999", "nan", "-1", str(10**30), "1" + "0" * 400, "x")
# Options of which 0 says something: nothing, none, or the first.
ZERO = {
    *("warmup", "lrs", "decay", "memory", "compressed", "sparsities", "seed", "extra_kernel"),
    *("sinks", "filters", "memory_layers", "dropout", "attention_dropout", "floor", "weight_decay"),
    *("accumulate", "temperature", "tokens", "profile", "exploration", "penalty"),
    *("stop_exploration", "restart_minutes", "nats", "agreement", "default", "hide", "weight"),
    *("memory_weight", "share"),
    # By their whole key, where another option of the name must be above 0.
    *("scoring.rate", "adapt.rate", "coding.adapt.rate"),
}
# Settings without which an option would have no effect, by the beginning of its key.
CONTEXT: dict[str, dict[str, str]] = {
    "data.vocabulary_": {"data.corpus": "text", "data.vocabulary": "sentencepiece"},
    "model.filter_longest": {"model.filters": "4"},
    "model.rotary": {"model.positions": "rotary"},
    "model.rotary_factor": {"model.rotary_scaling": "linear"},
    "model.rotary_trained": {"model.rotary_scaling": "llama3", "model.rotary_factor": "2"},
    "model.rotary_bounds": {
        "model.rotary_scaling": "llama3",
        "model.rotary_factor": "2",
        "model.rotary_trained": "8",
    },
    "model.cluster_divisor": {"model.cutoffs": "[10]"},
    "power.lr": {"power.alpha": "2"},
    "sparse.": {"sparse.density": "0.5", "sparse.exploration": "0.1"},
    "sparse.density": {"sparse.exploration": "0"},
    "sparse.block": {"sparse.granularity": "block"},
    "optim.muon_lr": {"optim.name": "muon"},
    "training.minutes": {"training.steps": "null"},
}


@cache
def programs() -> dict[str, list[Option]]:
    """Options of each program, by its module."""
    found = {}
    for folder in ("data", "lm", "eval", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            section = section_of(path)
            if section is not None:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                main = importlib.import_module(module).main
                found[module] = options_of(main, section or None)
    return found


def section_of(path: Path) -> str | None:
    """The section that a program is about, "" for one without; None for what is no program."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("run", "command.run"):
            if not node.args or ast.unparse(node.args[0]) != "main":
                continue
            named = {each.arg: each.value for each in node.keywords}
            return ast.literal_eval(named["section"]) if "section" in named else ""
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    benchmark = path.parent.name == "benchmarks" and any(node.name == "main" for node in mains)
    return "" if benchmark else None


def numeric(kind: Any) -> bool:
    if kind in (int, float):
        return True
    return typing.get_origin(kind) is not Literal and any(map(numeric, typing.get_args(kind)))


def holding(kind: Any, number: str) -> str:
    """A value of a type as it is written, with the number in place of its first."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if numeric(each))
    if kind in (int, float):
        return number
    inner = [each for each in typing.get_args(kind) if each is not ...]
    first = next(index for index, each in enumerate(inner) if numeric(each))
    written = [
        holding(each, number)
        if index == first
        else typing.get_args(each)[0]
        if typing.get_origin(each) is Literal
        else "1"
        for index, each in enumerate(inner)
    ]
    return f"[{', '.join(written)}]"


def cases() -> list[Any]:
    """Program, option and bad number; options of one place and type are tried in one program."""
    found, tried = [], set()
    for program, options in programs().items():
        for option in options:
            if not numeric(option.type) or (option.key, str(option.annotation)) in tried:
                continue
            tried.add((option.key, str(option.annotation)))
            last = option.key.rpartition(".")[2]
            for number in (*BAD, *(() if {last, option.key} & ZERO else ("0",))):
                name = f"{program} {option.name} {number[:12]}"
                found.append(pytest.param(program, option.name, number, id=name))
    return found


def given_with(program: str, option: Option, number: str) -> dict[str, str]:
    """Options as they are written: what must be given, what makes the option count, and it."""
    options = {each.key: each for each in programs()[program]}
    given = {key: "x" for key, each in options.items() if each.default is REQUIRED}
    context = {"data.corpus": "text", "training.steps": "10"}
    for beginning, more in CONTEXT.items():
        if option.key.startswith(beginning):
            context |= more
    given |= {key: value for key, value in context.items() if key in options}
    given[option.key] = holding(option.type, number)
    return {options[key].name: value for key, value in given.items()}


def built(program: str, argv: list[str]) -> dict[str, Any]:
    """The arguments of a program's main, as its command line makes them."""
    options = programs()[program]
    values = command._parsed(argv, options)
    main = importlib.import_module(program).main
    return arguments_of(main, {each.key: values.get(each.name, each.default) for each in options})


@pytest.mark.bad_input
@pytest.mark.parametrize(("program", "name", "number"), cases())
def test_what_is_no_number_of_anything_is_refused(program: str, name: str, number: str) -> None:
    options = programs()[program]
    option = next(each for each in options if each.name == name)
    written = given_with(program, option, number)
    argv = [f"{command._flag(key)}={value}" for key, value in written.items()]
    # What the sentence says is looked at below.
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        built(program, argv)
    sentence = " ".join(str(refusal.value).split())
    last = option.key.rpartition(".")[2]
    assert last in sentence.replace("-", "_") and "no effect" not in sentence, sentence
    assert len(sentence) < 400
