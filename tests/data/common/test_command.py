"""A throwaway program driven as users drive programs: through its command line and its file."""

import dataclasses
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.common.command import PRESETS, ConfigError, dump_config, find_preset, load_config, run
from tests.data.common.conftest import ENVIRONMENT, TOY
from tests.data.toy import DataConfig, OptimConfig, refusal


def test_options_files_and_defaults_meet(toy, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "data: {source: books}\noptim:\n  lr: 3e-3\n  betas: [0.8, 1]\nmodel: {d: 5}\n"
    )
    # The options win wherever --config stands, and "-" or "_" joins the words of a name.
    result = toy(
        *"train --optim.lr 1e-2 --optim.weight_decay=0 --config c.yaml --run r".split(),
        *"--top-p .5 --verify --optim.clip null --optim.warmup.steps 3".split(),
    )
    assert result.stderr == ""
    assert result.stdout == (
        '["r", {"source": "books", "corpus": "text", "suffixes": [".txt"]}, {"lr": 0.01, "betas": '
        '[0.8, 1.0], "kind": "adam", "clip": null, "weight_decay": 0.0, "warmup": {"steps": 3}}, '
        "0.5, true]\n"
    )


def test_of_several_files_the_later_wins_and_options_win_over_all(toy, tmp_path):
    (tmp_path / "a.yaml").write_text("data: {source: a, corpus: a}\noptim: {lr: 1, clip: 1}\n")
    (tmp_path / "b.yaml").write_text("data: {source: b, suffixes: [.b]}\noptim: {lr: 2}\n")
    given = "--config a.yaml --optim.lr 3 --config b.yaml --run r".split()
    _, data, optim, *_ = json.loads(toy("train", *given).stdout)
    assert data == {"source": "b", "corpus": "a", "suffixes": [".b"]}
    assert optim["lr"] == 3.0 and optim["clip"] == 1.0
    (tmp_path / "b.yaml").write_text("data: {sorce: b}\n")
    assert refusal(toy("train", *given)) == (
        "b.yaml: unknown key data.sorce; did you mean data.source?"
    )
    assert "what a later one says counts" in " ".join(toy("train", "--help").stdout.split())


def test_help_lists_every_option_with_its_docstring_type_and_default(toy):
    text = " ".join(toy("train", "--help").stdout.split())
    assert "Train a model." in text
    assert "--run RUN run folder. (a path; required)" in text
    assert "--top-p TOP_P mass that is kept. (a number; default 0.9)" in text
    assert "--verify [true|false] check every hash. (true or false; default false)" in text
    assert "optim: Adam and its schedule" in text
    assert "--optim.kind KIND Optimiser. (one of adam, sgd; default adam)" in text
    assert "100 % of it by default. (a whole number or null; default null)" in text
    assert "--optim.warmup.steps STEPS Optimiser steps until the peak." in text
    assert "--data.suffixes SUFFIXES" in text
    assert "+" not in text


def test_print_config_prints_what_config_reads(toy, tmp_path):
    options = "--run r --data.source s --optim.lr 1e-7 --verify".split()
    printed = toy("train", *options, "--print_config").stdout
    assert "lr: 1.0e-07" in printed
    (tmp_path / "c.yaml").write_text(printed)
    assert toy("train", "--config", "c.yaml").stdout == toy("train", *options).stdout
    # Values that must still be given are left out.
    assert "run:" not in toy("train", "--print-config").stdout


def test_own_section_is_flat_and_other_sections_are_passed_over(toy, tmp_path):
    (tmp_path / "c.yaml").write_text("data: {source: a, corpus: b}\ntraining: {steps: 3}\n")
    result = toy("prepare", "--config", "c.yaml", "--source", "z", "--verify", "true")
    assert result.stdout == '[{"source": "z", "corpus": "b", "suffixes": [".txt"]}, true]\n'
    printed = toy("prepare", "--config", "c.yaml", "--print_config").stdout
    assert printed.startswith("data:\n  source: a\n")
    (tmp_path / "d.yaml").write_text("data: {source: a}\ntrainign: {steps: 3}\n")
    assert refusal(toy("prepare", "--config", "d.yaml")).startswith(
        "d.yaml: unknown key trainign; "
    )


def test_a_preset_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "experiments/sparse"):
        assert find_preset(Path(name)) == PRESETS / f"{name}.yaml"
        # A file of the name goes before it; a folder, such as that of its run, does not.
        (tmp_path / name).mkdir(parents=True)
        assert find_preset(Path(name)) == PRESETS / f"{name}.yaml"
        (tmp_path / name).rmdir()
        (tmp_path / name).touch()
        assert find_preset(Path(name)) == Path(name)


def test_help_shows_what_was_typed(toy, monkeypatch):
    monkeypatch.setenv("LONGRANGE_CALLED", "longrange toy")
    assert toy("train", "--help").stdout.startswith("usage: longrange toy [--config FILE ...]")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("value", "two lines"),
        ("file", "/nonexistent/file: No such file or directory"),
        ("full", "No space left on device"),
    ],
)
def test_a_mistake_found_by_the_program_is_one_sentence(toy_process, kind, sentence):
    assert refusal(toy_process("fail", "--kind", kind)) == sentence
    traced = toy_process("fail", "--kind", kind, LM_TRACEBACK="1")
    assert traced.returncode == 1
    assert "Traceback" in traced.stderr


def test_a_bug_keeps_its_traceback(toy_process):
    result = toy_process("fail", "--kind", "bug")
    assert result.returncode == 1
    assert "AssertionError: our own bug" in result.stderr


def test_an_interrupt_is_one_line(toy_process):
    result = toy_process("fail", "--kind", "interrupt")
    assert (result.returncode, result.stderr) == (130, "toy: error: interrupted\n")


def test_a_reader_that_leaves_is_no_error():
    command = f'"{TOY[0]}" "{TOY[1]}" fail --kind pipe | head -c 3'
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert (result.stdout, result.stderr) == ("xxx", "")


def test_load_config_reports_missing_keys_with_the_file(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("corpus: x\n")
    with pytest.raises(ConfigError, match=r"data\.yaml: source must be given$"):
        load_config(DataConfig, path)
    with pytest.raises(ConfigError, match=r"^source must be given$"):
        load_config(DataConfig, {})
    with pytest.raises(ValueError, match="must be above 0"):
        load_config(OptimConfig, {"lr": 0})


def test_defaults_come_from_the_instance_where_a_dataclass_is_a_default():
    @dataclass(frozen=True)
    class Outer:
        """Outer."""

        optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5.0))

    assert load_config(Outer, {"optim": {"kind": "sgd"}}).optim == OptimConfig(lr=5.0, kind="sgd")


@dataclass(frozen=True)
class Everything:
    """One field of each kind of value."""

    number: float
    pair: tuple[float, float]
    whole: int
    maybe: int | None
    text: str
    maybe_text: str | None
    path: Path
    flag: bool
    words: list[str]
    optim: OptimConfig


TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["3e-4", "1.0", "null", "true", "~", "on", "2020-01-01", "\x85"]),
)
INTEGERS = st.integers(1 - 2**63, 2**63 - 1)
FLOATS = st.floats(-9e18, 9e18)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Everything,
        number=FLOATS,
        pair=st.tuples(FLOATS, FLOATS),
        whole=INTEGERS,
        maybe=st.none() | INTEGERS,
        text=TEXT,
        maybe_text=st.none() | TEXT,
        path=st.sampled_from(["a", "1", "3e-4", "x y", "ü/b"]).map(Path),
        flag=st.booleans(),
        words=st.lists(TEXT, max_size=3),
        optim=st.builds(OptimConfig, lr=st.floats(1e-300, 9e18)),
    )
)
def test_dump_and_load_are_inverse_to_the_bit(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(dump_config(config).encode())
    loaded = load_config(Everything, path)
    assert loaded == config
    assert repr(loaded) == repr(config)
    assert all(
        type(getattr(loaded, f.name)) is type(getattr(config, f.name))
        for f in dataclasses.fields(config)
    )


@dataclass(frozen=True)
class Start:
    """Where it begins."""

    from_: str | None = None
    """A name that Python keeps for itself."""
    size: int = 1
    """Taken over if not stated."""


def test_a_field_may_stand_for_a_keyword_and_unstated_options_be_inherited():
    seen = []

    def main(start: Start) -> None:
        """Begin."""
        seen.append(start)

    def inherited(given):
        return {"size": 7} if given.get("from") == "x" else {}

    for argv in ("--from x", "--from x --size 3", "--size 3", "--from y"):
        run(main, section="start", argv=argv.split(), inherited=inherited)
    assert seen == [Start("x", 7), Start("x", 3), Start(None, 3), Start("y", 1)]
    assert load_config(Start, {"from": "x"}) == Start("x", 1)
