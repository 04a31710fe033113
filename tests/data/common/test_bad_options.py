"""Wrong options and config files: one sentence each, whatever they hold."""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.common import command
from data.common.command import load_config
from tests.data.toy import refusal
from tests.data.toy import train as toy_train


@pytest.mark.bad_input("options of every program")
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
        ("--optim.lr -inf", "--optim.lr must be a number, not '-inf'"),
        ("--optim.lr -.inf", "--optim.lr must be a finite number, not '-.inf'"),
        ("--optim.lr nan", "--optim.lr must be a number, not 'nan'"),
        ("--optim.lr .nan", "--optim.lr must be a finite number, not '.nan'"),
        ("--optim.lr 1e999", "--optim.lr must be a finite number, not '1e999'"),
        ("--optim.lr Infinity", "--optim.lr must be a number, not 'Infinity'"),
        ("--optim.betas [.1,.inf]", "--optim.betas must be a finite number, not '[.1,.inf]'"),
        (f"--optim.lr 1{'0' * 400}", f"--optim.lr must be a number, not '1{'0' * 75}..."),
        (f"--optim.lr {'9' * 5000}", f"--optim.lr must be a number, not '{'9' * 76}..."),
        (f"--optim.warmup.steps {10**30}", "--optim.warmup.steps must be a number between -2^63 "
         f"and 2^63, not '{10**30}'"),
        ("--optim.warmup.steps 3.5", "--optim.warmup.steps must be a whole number, not '3.5'"),
        ("--optim.warmup.steps ²", "--optim.warmup.steps must be a whole number, not '²'"),
        ("--optim.warmup.steps=", "--optim.warmup.steps must be a whole number, not ''"),
        ("--optim.lr=", "--optim.lr must be a number, not ''"),
        ("--optim.lr --optim.clip 3", "--optim.lr needs a value"),
        ("--optim.lr [[[[1]]]]", "--optim.lr must be a number, not '[[[[1]]]]'"),
        (f"--optim.betas {'[' * 9999}", f"--optim.betas must be a list [a number, a number], not "
         f"'{'[' * 76}..."),
        ("--data.suffixes [", "--data.suffixes must be a list [text], not '['"),
        ("--data.suffixes [a,[b]", "--data.suffixes must be a list [text], not '[a,[b]'"),
        ("--optim.betas [&a,*a]", "--optim.betas must be a list [a number, a number], not "
         "'[&a,*a]'"),
        ("--run=", "--run must be a path, not ''"),
        ("--run a\x1b[31m", "--run must be a path without control characters, not "
         "'a\\x1b[31m'"),
        ("--data.suffixes a --data.suffixes b", "--data.suffixes is given twice; give one list: "
         "--data.suffixes '[A, B]'"),
        ("--", "unknown option --; --help lists every option"),
        ("-", "- belongs to no option; options are written --NAME VALUE"),
        ("-x", "-x belongs to no option; options are written --NAME VALUE"),
        ("@file", "@file belongs to no option; options are written --NAME VALUE"),
        ("--optim.zzzz 1", "unknown option --optim.zzzz; --help lists every option"),
        ("--print_config=3", "--print_config takes no value"),
        ("--config= --run r", ".: Is a directory"),
        ("books", "books belongs to no option; options are written --NAME VALUE"),
        ("--config", "--config needs a value"),
        ("--config a", "a: No such file or directory"),
        ("--config quikstart", "there is no file quikstart and no preset of this name; did you "
         "mean quickstart?"),
        ("--run r --data.source s --optim.lr -1", "optim.lr is -1.0; it must be above 0"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(toy, arguments, sentence):
    assert refusal(toy("train", *arguments.split())) == sentence


@pytest.mark.bad_input("options of every program")
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim: {lrr: 1}", "unknown key optim.lrr; did you mean optim.lr?"),
        ("optin: {lr: 1}", "unknown key optin; did you mean optim?"),
        ("lr: 1", "unknown key lr; did you mean optim.lr?"),
        ("zzzz: 1", "unknown key zzzz; known are data, optim, run, top_p, verify"),
        ("optim: 3", "optim must be a section of keys, not 3"),
        ("optim:", "optim must be a section of keys, not null"),
        ("optim: {lr: fast}", "optim.lr must be a number, not 'fast'"),
        ("optim: {lr: true}", "optim.lr must be a number, not True"),
        ("optim: {lr: null}", "optim.lr must be a number, not null"),
        ("optim: {warmup: {steps: 1.5}}", "optim.warmup.steps must be a whole number, not 1.5"),
        ("data: {source: 3}", "data.source must be a path, not 3"),
        ("data: {suffixes: {a: 1}}", "data.suffixes must be a list [text], not {'a': 1}"),
        ("data: {source: ''}", "data.source must be a path, not ''"),
        ('run: "a\\nb"', "run must be a path without control characters, not 'a\\nb'"),
        ("optim: {lr: .nan}", "optim.lr must be a finite number, not nan"),
        ("optim: {lr: 1e999}", "optim.lr must be a finite number, not inf"),
        ("optim: {lr: -.inf}", "optim.lr must be a finite number, not -inf"),
        ("optim: {lr: nan}", "optim.lr must be a number, not 'nan'"),
        ("optim: {betas: [0.9, .inf]}", "optim.betas must be a finite number, not [0.9, inf]"),
        ("optim: {warmup: {steps: 9223372036854775808}}",
         "optim.warmup.steps must be a number between -2^63 and 2^63, not 9223372036854775808"),
        (f"optim: {{lr: {10**400}}}", f"optim.lr must be a number, not 1{'0' * 76}..."),
        (f"optim: {{lr: {'9' * 5000}}}", "not valid YAML (a value cannot be read: Exceeds the "
         "limit (4300 digits) for integer string conversion: value has 5000 digits; use "
         "sys.set_int_max_str_digits() to increase the limit)"),
        ("optim: {warmup: {steps: 010}}", "optim.warmup.steps must be a whole number, not '010'"),
        ("optim: {lr: 1:30}", "optim.lr must be a number, not '1:30'"),
        ("optim: {null: 3}", "optim.null is no key; a key is a word"),
        ("optim: {[a]: 3}", "line 1: a key must be a word, not a list"),
        ("? {a: b}\n: 3", "line 1: a key must be a word, not a list"),
        ("optim: {lr: 1}\noptim.lr: 2", "optim.lr is given twice"),
        ("a: &a [x]\nb: *a", "line 2: *a refers to another value; write it out"),
        ("a: &a\n  b: *a", "line 2: *a refers to another value; write it out"),
        ("a: " + "[" * 100_000, "nested in more than 32 levels"),
        ("a: " + "{b: " * 100_000, "nested in more than 32 levels"),
        ("- " * 100_000, "nested in more than 32 levels"),
        ("a: 1\n" * 300_000, "not a config file (it has more than 1,048,576 bytes)"),
        ("run: !!set {a}", "line 1: not valid YAML (could not determine a constructor for the tag "
         "'tag:yaml.org,2002:set')"),
        ("run: !!python/name:os.system x", "line 1: not valid YAML (could not determine a "
         "constructor for the tag 'tag:yaml.org,2002:python/name:os.system')"),
        ("run: !!int x", "not valid YAML (a value cannot be read: invalid literal for int() with "
         "base 10: 'x')"),
        ("run: !!bool x", "not valid YAML (a value cannot be read: 'x')"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML (but found another document)"),
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
    ("written", "suffixes"),
    [
        ("self", ["self"]),
        ('["self"]', ["self"]),
        ("[self, other]", ["self", "other"]),
        ("a,b", ["a,b"]),
        ("-x", ["-x"]),
        ("null", ["null"]),
        ("3", ["3"]),
        ('["["]', ["["]),
        ("", [""]),
        ("\n", ["\n"]),
    ],
)
def test_a_bare_value_for_a_list_is_its_only_element(toy, written, suffixes):
    result = toy("prepare", "--source", "s", "--suffixes", written)
    assert json.loads(result.stdout)[0]["suffixes"] == suffixes


def test_numbers_of_a_list_may_stand_between_commas():
    @dataclass(frozen=True)
    class Lists:
        """Lists."""

        numbers: tuple[int, ...] = ()
        paths: list[Path] | None = None

    assert load_config(Lists, {"numbers": 3, "paths": "a"}) == Lists((3,), [Path("a")])
    for written, numbers in {"1": (1,), "1,2": (1, 2), "[1, 2]": (1, 2), "[]": ()}.items():
        given = command._parsed(["--numbers", written], command.options_of(Lists))
        assert given == {"numbers": numbers}


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfrun: b", "run: b".encode("utf-16"), b"", b"\n\n", b"# nothing\n", b"---\n"],
)
def test_byte_order_marks_and_empty_files_are_read(toy, tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    result = toy("train", "--config", "c.yaml", "--data.source", "s", "--run", "b")
    assert result.returncode == 0
    assert json.loads(result.stdout)[0] == "b"


@pytest.mark.bad_input("options of every program")
@pytest.mark.parametrize(
    "content", [b"\x00\x01\xff", b"PK\x03\x04\x00", b"run: \xe9", b"r\x00:\x00"]
)
def test_a_binary_file_is_one_sentence(toy, tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    assert refusal(toy("train", "--config", "c.yaml")).startswith("c.yaml: not valid YAML (")


@pytest.mark.bad_input("options of every program")
@pytest.mark.parametrize("name", ["/dev/zero", "."])
def test_what_is_no_file_is_one_sentence(toy, name):
    assert refusal(toy("train", "--config", name)).startswith(f"{name}: ")


def test_a_sentence_stays_on_one_line_and_on_the_screen(toy):
    for value in ("\x1b[2Jx", "a\r\nb", "\u202e", "x" * 1_000_000):
        assert len(refusal(toy("train", "--optim.kind", value))) < 3000
        assert len(refusal(toy("train", f"--{value}"))) < 3000


def test_printed_config_reads_back_in_any_encoding(toy, tmp_path, monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    toy("train", "--run", "Ж", "--print_config")
    (tmp_path / "c.yaml").write_bytes(out.getvalue())
    assert command.read_options(tmp_path / "c.yaml", command.options_of(toy_train))["run"] == Path(
        "Ж"
    )
