"""A throwaway program driven as users drive programs: through its command line and its file."""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.common.command import ConfigError, dump_config, load_config
from tests.data.toy import DataConfig, OptimConfig
from tests.data.toy import toy as toy_main

ROOT = Path(__file__).parents[3]


TOY = [sys.executable, str(ROOT / "tests" / "data" / "toy.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def toy_process(tmp_path):
    """The program as a process of its own."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TOY, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT | environment,
            check=False,
        )

    return call


@pytest.fixture
def toy(tmp_path, monkeypatch, capsys):
    """The program in this process, which is quicker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/toy.py"])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        status = 0
        try:
            toy_main([*arguments])
        except SystemExit as stop:
            status = stop.code
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return call


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a program that refused its input, after checking that it is only that."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("toy: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("toy: error: ").rstrip("\n")


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "--run, --data.source must be given"),
        ("--optim.kin adam", "unknown option --optim.kin; did you mean --optim.kind?"),
        ("--lr 3", "unknown option --lr; did you mean --optim.lr?"),
        ("--optim.weigth_decay 3", "unknown option --optim.weigth-decay; "
         "did you mean --optim.weight-decay?"),
        ("--zzzz", "unknown option --zzzz; --help lists every option"),
        ("--optim.lr fast", "--optim.lr must be a number, not 'fast'"),
        ("--optim.lr null", "--optim.lr must be a number, not null"),
        ("--optim.kind lamb", "--optim.kind must be one of adam, sgd, not 'lamb'"),
        ("--optim.clip 1.5", "--optim.clip must be a whole number or null, not '1.5'"),
        ("--optim.betas [1]", "--optim.betas must be a list [a number, a number], not '[1]'"),
        ("--verify maybe", "--verify must be true or false, not 'maybe'"),
        ("--run", "--run needs a value"),
        ("books", "books belongs to no option; options are written --NAME VALUE"),
        ("--config", "--config needs a value"),
        ("--config a --config b", "--config is given more than once; give one file"),
        ("--config a", "a: No such file or directory"),
        ("--run r --data.source s --optim.lr -1", "optim.lr is -1.0; it must be above 0"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(toy, arguments, sentence):
    assert refusal(toy("train", *arguments.split())) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim: {lrr: 1}", "unknown key optim.lrr; did you mean optim.lr?"),
        ("optin: {lr: 1}", "unknown key optin; did you mean optim?"),
        ("lr: 1", "unknown key lr; did you mean optim.lr?"),
        ("zzzz: 1", "unknown key zzzz; known are data, optim, run, top_p, verify"),
        ("optim: 3", "optim must be a section of keys, not 3"),
        ("optim:", "optim must be a section of keys, not None"),
        ("optim: {lr: fast}", "optim.lr must be a number, not 'fast'"),
        ("optim: {lr: true}", "optim.lr must be a number, not True"),
        ("optim: {lr: null}", "optim.lr must be a number, not null"),
        ("optim: {warmup: {steps: 1.5}}", "optim.warmup.steps must be a whole number, not 1.5"),
        ("data: {source: 3}", "data.source must be a path, not 3"),
        ("data: {suffixes: .txt}", "data.suffixes must be a list [text], not '.txt'"),
        ("- 3", "a config file must be lines of `key: value`"),
        ("3: 3", "a config file must be lines of `key: value`"),
        ("run: a\nrun: b", "line 2: key run is written twice"),
        ("run: a\nrun b", "line 2: not valid YAML (could not find expected ':')"),
        ("run: \x01", "not valid YAML (it must be UTF-8 text)"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence_that_names_it(toy, tmp_path, text, sentence):
    (tmp_path / "c.yaml").write_text(text)
    assert refusal(toy("train", "--config", "c.yaml")) == f"c.yaml: {sentence}"


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
FLOATS = st.floats(allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Everything,
        number=FLOATS,
        pair=st.tuples(FLOATS, FLOATS),
        whole=st.integers(),
        maybe=st.none() | st.integers(),
        text=TEXT,
        maybe_text=st.none() | TEXT,
        path=st.sampled_from(["a", "1", "3e-4", "x y", "ü/b"]).map(Path),
        flag=st.booleans(),
        words=st.lists(TEXT, max_size=3),
        optim=st.builds(OptimConfig, lr=st.floats(min_value=1e-300, allow_infinity=False)),
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
