"""A run's folder: where it goes on, what is refused before a byte is touched, and who may write."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.common.command import load_config
from data.common.locks import alone
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.runs.runlog import read_metrics
from lm.training.resume import Snapshot
from lm.training.trainer import Trainer
from lm.training.writer import Writer
from tests.processes import assert_same_end, ends, records, start, train, write_config
from tests.runs import train_here, with_training


class KilledError(Exception):
    """Stands for a SIGKILL."""


def train_until(step: int, config: RunConfig, run: Path, name: str | None = None) -> None:
    """Train as a process does that is killed in the midst of a step."""
    original = Trainer.train_step

    def killed(trainer: Trainer, *arguments: Any, **options: Any) -> dict[str, float]:
        if trainer.step == step:
            raise KilledError
        return original(trainer, *arguments, **options)

    begin = Writer.start

    def written_at_once(writer: Writer, snapshot: Snapshot) -> None:
        begin(writer, snapshot)
        writer.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        patch.setattr(Writer, "start", written_at_once)
        with pytest.raises(KilledError):
            train_here(config, run, name)


@pytest.fixture(scope="module")
def config(run_config: RunConfig) -> RunConfig:
    """Records of several steps, which no checkpoint falls together with."""
    return with_training(run_config, log_every=4, save_every=3, keep=3)


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole")
    assert train_here(config, run) == 0
    return run


@pytest.fixture(scope="module")
def killed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, killed in its eleventh step, with checkpoints of steps 3, 6 and 9."""
    run = tmp_path_factory.mktemp("killed")
    train_until(10, config, run)
    assert list(checkpoints.listed(run)) == [3, 6, 9]
    return run


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return shutil.copytree(killed, tmp_path / "run", symlinks=True)


def tree(run: Path) -> dict[str, bytes | None]:
    """All that a folder holds."""
    paths = sorted(run.rglob("*"))
    return {str(p.relative_to(run)): p.read_bytes() if p.is_file() else None for p in paths}


def point(run: Path, text: str | None) -> None:
    """Have `latest` say something, or nothing."""
    latest = run / "checkpoints" / "latest"
    latest.unlink()
    if text is not None:
        latest.write_text(text)


@pytest.mark.parametrize(
    "text",
    [None, "", "garbage\x00\n", "step-00000003\n", "step-00000099\n", "../../other", "step-abc"],
)
def test_the_newest_folder_is_where_a_run_stands_whatever_a_pointer_says(
    run: Path, config: RunConfig, whole: Path, capfd: pytest.CaptureFixture[str], text: str | None
) -> None:
    """And a record of four steps, three of them before the kill, is of all four."""
    point(run, text)
    assert train_here(config, run) == 0
    assert f"continue {run} from step 9\n" in capfd.readouterr().err
    assert_same_end(whole, run)
    assert [record["step"] for record in records(run) if "loss" in record] == [4, 8, 12]


def test_what_is_no_checkpoint_is_neither_taken_for_one_nor_removed(
    run: Path, config: RunConfig, whole: Path
) -> None:
    place = run / "checkpoints"
    names = ["step-00000099.bak", "step-abc", "step-99", "step-000000011", "step-00000003 copy"]
    names += [".step-00000099.partial.bak", ".step-99.partial", "partial", "step-٠٠٠٠٠٠٩٩"]
    for name in names:
        shutil.copytree(place / "step-00000006", place / name)
    (place / "step-00000077.tar").write_text("mine")
    (place / ".step-00000011.partial").mkdir()
    (place / ".step-00000002.removed").mkdir()
    strange = {name: tree(place / name) for name in names}
    once = with_training(config, keep=1)
    assert train_here(once, run) == 0
    assert_same_end(whole, run)
    assert strange == {name: tree(place / name) for name in names}
    left = {path.name for path in place.iterdir()} - set(names)
    assert left == {"latest", "step-00000012", "step-00000077.tar"}


def missing(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def written(name: str, content: str) -> Callable[[Path], None]:
    return lambda run: void((run / name).write_text(content))


def void(_: object) -> None:
    return None


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return edit


def another_model(run: Path) -> None:
    """Edited with the hash taken away, as its refusal says."""
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    assert lines[0].startswith("#")
    (run / "config.yaml").write_text("".join(lines[1:]).replace("width: 16", "width: 32"))


def only_backup(run: Path) -> None:
    for step, path in checkpoints.listed(run).items():
        path.rename(path.with_name(f"backup-{step}"))


def no_checkpoints(run: Path) -> None:
    for path in checkpoints.listed(run).values():
        shutil.rmtree(path)


def of_another_run(run: Path) -> None:
    """Its checkpoint is one of a run with another order of the data, and its config is ours."""
    state = json.loads((run / NEWEST / "state.json").read_text())
    state.pop("sha256", None)
    (run / NEWEST / "state.json").write_text(json.dumps(state | {"identity": "0" * 64}))


def a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("mine")


NEWEST = "checkpoints/step-00000009"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no state": (
        missing(f"{NEWEST}/state.json"),
        "no whole checkpoint .*--checkpoint step-00000006",
    ),
    "half a state": (written(f"{NEWEST}/state.json", '{"st'), "no whole checkpoint .*state.json"),
    "state of nothing": (written(f"{NEWEST}/state.json", "{}"), "step is missing.*--checkpoint"),
    "state of another step": (
        lambda run: void(shutil.copytree(run / NEWEST, run / "checkpoints" / "step-00000011")),
        "step-00000011 is no whole checkpoint .*of step 9",
    ),
    "no weights": (missing(f"{NEWEST}/model.safetensors"), "model.safetensors is missing"),
    "no memory": (missing(f"{NEWEST}/rank-0.safetensors"), "rank-0.safetensors is missing"),
    "no moments": (missing(f"{NEWEST}/optimizer-0.safetensors"), "optimizer-0.*is missing"),
    "empty weights": (
        written(f"{NEWEST}/model.safetensors", ""),
        "another checkpoint with --check",
    ),
    "a file of this name": (
        written("checkpoints/step-00000011", ""),
        "has the name of a checkpoint and is none: move it away",
    ),
    "another run's": (of_another_run, "is of another run than the config.yaml beside it"),
    "renamed": (only_backup, "has no checkpoint, but there is or was backup-3"),
    "removed": (no_checkpoints, "has no checkpoint, but there is or was step-00000009"),
    "all removed": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        "has records up to step 8 and no checkpoint: put its checkpoints back",
    ),
    "no config": (missing("config.yaml"), "holds checkpoints but not their config.yaml; put it"),
    "empty config": (written("config.yaml", ""), "config.yaml.*put back the file"),
    "a list": (written("config.yaml", "[1, 2]"), "config.yaml.*put back the file"),
    "no YAML": (written("config.yaml", "model: ["), "config.yaml.*put back the file"),
    "another's config": (written("config.yaml", "runs: 3"), "config.yaml.*put back the file"),
    "edited config": (edited("config.yaml", "lr: 0.003", "lr: 0.3"), "has changed since it was wr"),
    "another model": (another_model, r"model\.width 32, not 16"),
    "broken log": (edited("metrics.jsonl", '{"step": 4', "{step: 4"), r"line 1: is not JSON; mend"),
    "log of names": (edited("metrics.jsonl", '"step": 8', '"step": "x"'), "line 3: step should be"),
    "log without steps": (written("metrics.jsonl", '{"a": 1}\n'), "line 1: step is missing"),
    "a file": (a_file, "is a file: name a folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_gone_on_from_is_refused_before_a_byte_is_touched(
    run: Path, config: RunConfig, name: str
) -> None:
    damage, sentence = BROKEN[name]
    damage(run)
    before = run.read_bytes() if run.is_file() else tree(run)
    with pytest.raises(ValueError, match=sentence) as refused:
        train_here(config, run)
    assert "\n" not in str(refused.value)
    assert before == (run.read_bytes() if run.is_file() else tree(run))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 8}, r"has 9 steps; training\.steps 8 is less"),
        ({"lanes": 8}, r"training\.lanes 4, not 8"),
        ({"lanes": 4, "micro_batches": 3}, "multiple of the number of ranks"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_leave_a_run_as_it_is(
    run: Path, config: RunConfig, changes: dict[str, Any], sentence: str
) -> None:
    before = tree(run)
    with pytest.raises(ValueError, match=sentence):
        train_here(with_training(config, **changes), run)
    assert before == tree(run)


def test_a_new_folder_that_cannot_be_used_goes_again(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of the number of ranks"):
        train_here(with_training(config, micro_batches=3), tmp_path / "a" / "b" / "run")
    with pytest.raises(ValueError, match="no checkpoint step-00000007; there are: none"):
        train_here(config, tmp_path / "a", "step-00000007")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        train_here(config, tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["vocabulary", "changes.jsonl", "env.json"])
def test_what_cannot_be_written_at_the_start_is_said(
    run: Path, config: RunConfig, name: str
) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("in the way")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    with pytest.raises(
        ValueError, match=rf"{run} cannot be written \(.*\): mend that and give the"
    ):
        train_here(with_training(config, steps=14), run)


def test_a_run_is_set_back_with_all_that_came_later_kept(
    run: Path, config: RunConfig, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed and given again, the same command goes on instead of going back once more."""
    later = {step: tree(path) for step, path in checkpoints.listed(run).items() if step > 3}
    train_until(8, config, run, "step-00000003")
    place = run / "checkpoints"
    assert "from step 3; later checkpoints (2) are set aside" in capfd.readouterr().err
    for step, files in later.items():
        assert tree(place / "set-aside-1" / checkpoints.name_of(step)) == files
    logged = [record["step"] for record in read_metrics(place / "set-aside-1" / "metrics.jsonl")]
    assert logged == [4, 6, 8]
    assert train_here(config, run, "step-00000003") == 0
    assert "from step 6\n" in capfd.readouterr().err
    assert_same_end(whole, run)
    (change,) = map(json.loads, (run / "changes.jsonl").read_text().splitlines())
    assert change == {
        "step": 3,
        "settings": {},
        "set_back_to": "step-00000003",
        "set_aside": "set-aside-1",
    }


def test_a_damaged_checkpoint_is_passed_over_by_naming_another(
    run: Path, config: RunConfig, whole: Path
) -> None:
    weights = run / NEWEST / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 64
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="use another checkpoint with --checkpoint"):
        train_here(config, run)
    assert train_here(config, run, "step-00000006") == 0
    assert_same_end(whole, run)
    assert (run / "checkpoints" / "set-aside-1" / weights.parent.name).is_dir()


@pytest.mark.parametrize("name", ["step-00000001", "latest", "..", "", "step-3", "/", "a\nb"])
def test_a_checkpoint_that_is_not_there_is_named(run: Path, config: RunConfig, name: str) -> None:
    before = tree(run)
    with pytest.raises(ValueError, match="there are: step-00000003, step-00000006, step-00000009"):
        train_here(config, run, name)
    assert before == tree(run)


def test_rates_and_lengths_change_and_the_change_is_recorded(
    run: Path, config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = with_training(config, steps=14, precision="bf16", accumulate=((0, 2),), unroll=2)
    wanted = replace(wanted, optim=replace(config.optim, lr=1e-3, clip=1.0))
    wanted = replace(wanted, model=replace(config.model, dropout=0.0))
    assert train_here(wanted, run) == 0
    said = capfd.readouterr().err
    assert "from step 9 with model.dropout 0.0 (was 0.1), optim.lr 0.001 (was 0.003), " in said
    (change,) = map(json.loads, (run / "changes.jsonl").read_text().splitlines())
    assert change["step"] == 9 and "set_back_to" not in change
    assert change["settings"]["optim.lr"] == {"was": 0.003, "is": 0.001}
    assert change["settings"]["training.steps"] == {"was": 12, "is": 14}
    assert set(change["settings"]) == {
        *("model.dropout", "optim.lr", "optim.clip", "training.steps"),
        *("training.precision", "training.accumulate", "training.unroll"),
    }
    assert load_config(RunConfig, run / "config.yaml") == wanted
    assert max(checkpoints.listed(run)) == 14
    # The same command changes nothing more.
    assert train_here(wanted, run) == 0
    assert len((run / "changes.jsonl").read_text().splitlines()) == 1


def test_a_run_with_minutes_goes_on_with_more(run_config: RunConfig, tmp_path: Path) -> None:
    short = with_training(run_config, steps=None, minutes=0.002, save_every=1000)
    assert train_here(short, tmp_path) == 0
    first = max(checkpoints.listed(tmp_path))
    assert train_here(short, tmp_path) == 0
    assert max(checkpoints.listed(tmp_path)) == first
    assert train_here(with_training(short, minutes=0.05), tmp_path) == 0
    second = max(checkpoints.listed(tmp_path))
    assert train_here(with_training(short, minutes=None, steps=second + 2), tmp_path) == 0
    assert list(checkpoints.listed(tmp_path))[-1] == second + 2 > second > first


def test_a_second_training_in_a_folder_is_told_so(run: Path, config: RunConfig) -> None:
    with alone(run / ".lock", "this test"):
        before = tree(run)
        with pytest.raises(ValueError, match=f"another process trains in {run}: wait until"):
            train_here(config, run)
        assert before == tree(run)


@pytest.mark.dist
def test_every_rank_ends_where_another_trains(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = train(write_config(config, tmp_path), run)
    with alone(run / ".lock", "this test"):
        ended = ends(start(command, 2))
    assert [status for status, _ in ended] == [2, 2]
    # The first speaks for all.
    (line,) = "".join(said for _, said in ended).strip().splitlines()
    assert f"another process trains in {run}" in line
    assert list(run.iterdir()) == []
