"""The one command: its sub-commands, and that the folder one is in does not matter to it."""

import ast
import os
import shutil
import subprocess
import sys

import pytest

from lm import command_line
from lm.command_line import PROGRAMS, ROOT, environment, summary, usage
from tests.test_house import PACKAGES, module_name, python_files

NOT_INSTALLED = {"tools.bench", "tools.house"}
"""Programs of a checkout, which look at its files and benchmarks."""

HEAVY = {"torch", "deepspeed", "transformers", "datasets", "pyarrow", "matplotlib"}
"""What takes seconds to import, which nobody waits for who asks for help or mistypes an option."""


@pytest.fixture
def started(monkeypatch):
    """What the process would become: its arguments and its environment."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    calls = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: calls.append(arguments))

    def call(*arguments: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", ["longrange", *arguments])
        command_line.main()
        return calls

    return call


def test_every_program_is_a_sub_command():
    programs = {
        module_name(ROOT, path)
        for path in python_files(ROOT)
        if (ast.get_docstring(ast.parse(path.read_text())) or "").startswith("Program: ")
    }
    assert {*PROGRAMS.values()} == programs - NOT_INSTALLED
    assert all(len(line) <= 100 for line in usage().splitlines())
    assert (
        summary("lm.train") == "train a Compressive Transformer, or continue a run that was stopped"
    )


def test_a_program_begins_when_all_of_its_file_is_read():
    for name in PROGRAMS.values():
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        last = ast.parse(path.read_text()).body[-1]
        assert ast.unparse(last).startswith("if __name__ == '__main__':"), name


def test_a_sub_command_is_its_module_away_from_the_working_folder(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.environ["PYTHONPATH"] = os.pathsep.join([".", "", str(tmp_path), "/elsewhere"])
    assert started("import", "--run", "r") == [
        [sys.executable, "-m", "lm.import_folder", "--run", "r"]
    ]
    assert os.environ["PYTHONPATH"] == "/elsewhere"
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["LONGRANGE_CALLED"] == "longrange import"


def test_a_checkout_stays_on_the_path():
    assert environment(str(ROOT), ROOT)["PYTHONPATH"] == str(ROOT)


def test_without_a_sub_command_all_are_listed(started, capsys):
    for arguments in ((), ("-h",), ("--help",)):
        assert started(*arguments) == []
        assert "\n  train        train a Compressive" in capsys.readouterr().out


def test_an_unknown_sub_command_names_the_nearest(started, capsys):
    with pytest.raises(SystemExit) as stop:
        started("trian")
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "longrange: error: unknown command trian; did you mean train?\n"
    )


@pytest.mark.parametrize("stream", ["| true", ">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "program",
    [
        "-c 'from lm.command_line import main; main()'",
        "-m lm.library --help",
        "-m tools.ranks -h",
        "tools/bench.py",
    ],
)
def test_help_that_nobody_can_take_is_no_traceback(program: str, stream: str) -> None:
    """In containers Python writes through at once (PYTHONUNBUFFERED)."""
    command = f'"{sys.executable}" {program} {stream}; exit "${{PIPESTATUS[0]}}"'
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert ("not all was shown" in result.stderr) == ("full" in stream)


def test_a_shell_completes_commands_options_and_choices(started, capsys, tmp_path):
    pytest.importorskip("shtab", reason="needs the extra completion")
    assert started("--print-completion", "bash") == []
    script = capsys.readouterr().out
    lines = [script]
    for words in ("tr", "train --model.pos", "train --model.positions rotary_", "score --spl"):
        number = len(words.split())
        lines.append(
            f"COMP_WORDS=(longrange {words}); COMP_CWORD={number}; COMPREPLY=(); _shtab_longrange\n"
            'echo "${COMPREPLY[@]}"'
        )
    (tmp_path / "it.sh").write_text("\n".join(lines))
    result = subprocess.run(["bash", tmp_path / "it.sh"], capture_output=True, text=True)
    offered = ["train", "--model.positions", "rotary_slots", "--split"]
    assert result.stdout.split() == offered, result.stderr
    with pytest.raises(SystemExit):
        started("--print-completion", "cmd")
    assert "is followed by one of bash, " in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder that the wheel is installed in, made from this checkout without its tests."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True, capture_output=True)
    return target


@pytest.fixture
def longrange(installed, tmp_path, monkeypatch):
    """The command in a folder with packages of the same names, each of which fails on import."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.setenv("PYTHONPATH", str(installed))

    def call(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "bin" / "longrange"), *arguments]
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert result.returncode == status, result.stderr
        assert "not this one" not in result.stderr
        return result

    return call


@pytest.mark.slow
def test_an_installation_works_in_a_folder_with_packages_of_the_same_names(longrange, tmp_path):
    assert longrange("--version").stdout.startswith("longrange 0.")
    assert longrange("train", "--help").stdout.startswith("usage: longrange train ")
    missing = longrange("train", "--config", "quikstart", status=2)
    assert missing.stderr == (
        "train: error: there is no file quikstart and no preset of this name; did you mean "
        "quickstart?\n"
    )

    words = "a long book of memory was read by one who wrote it down".split()
    text = "\n".join(" ".join(words[n % 11 :]) for n in range(2000))
    (tmp_path / "book.txt").write_text(text)
    longrange(*"prepare --corpus text --source book.txt --shards s --workers 2".split())
    sizes = (
        "--data.corpus text --data.shards s --data.vocabulary bytes --data.vocabulary_size null "
        "--data.vocabulary_sample null --model.layers 1 --model.width 16 "
        "--model.feedforward 16 --model.segment 8 --model.memory 8 --model.compressed 4 "
        "--training.minutes null --training.steps 2 --training.lanes 4 --optim.name adamw "
        "--optim.muon_lr null"
    ).split()
    train = ["--config", "quickstart", *sizes]
    longrange("train", *train, "--run", "r")
    longrange(*"score --run r --split test".split())
    written = longrange(*"generate --run r --prompt one --tokens 5 --seed 0".split())
    assert len(written.stdout) > len("\n")
    # Processes that processes start: two ranks below a launcher, a training below an experiment.
    torchrun = "ranks torchrun --standalone --nproc_per_node=2 -m -- lm.train".split()
    longrange(*torchrun, *train, "--run", "two")
    sections = "{data: {corpus: text, shards: s}, model: {layers: 1, width: 16, heads: 2, "
    sections += "feedforward: 16, segment: 8, memory: 8, compressed: 4}, "
    sections += "training: {steps: 2, lanes: 4}, variants: {a: {}}, seeds: [0]}"
    (tmp_path / "e.yaml").write_text(sections)
    assert "| a |" in longrange(*"experiments --experiment e.yaml --out e".split()).stdout
    # A file of the name goes before the preset.
    (tmp_path / "quickstart").write_text("training: {stepz: 3}\n")
    own = longrange("train", "--config", "quickstart", status=2)
    assert own.stderr == (
        "train: error: quickstart: unknown key training.stepz; did you mean training.steps?\n"
    )
    launch = longrange("launch", "--preset", "enwik8-12", "--run", "r", "--dry_run")
    assert "export PYTHONSAFEPATH=1\nexec python -m tools.ranks torchrun" in launch.stdout


@pytest.mark.parametrize("module", PROGRAMS.values())
def test_help_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert HEAVY & {*loaded.stdout.split()} == set()
