"""Where results go, whichever program writes them: found out before the work, nothing replaced that
is read, and no number that is none.
"""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data import recall
from data.common.tensors import save_tensors
from data.orders import Batch
from data.recall import RecallConfig
from eval import breakdown, dynamic, prune, score
from eval.eval_config import BreakdownConfig, DynamicConfig, ProgramConfig, PruneConfig, SweepConfig
from eval.keeping import Keeper
from lm.inference import loading
from lm.inference.loading import load_run
from lm.scoring import Scorer
from tools import compact, sets

Program = Callable[[Path, Path], None]
PROGRAMS: dict[str, Program] = {
    "score": lambda run, to: score.main(run, ProgramConfig(lanes=2), json=to, compare=False),
    "sweep": lambda run, to: score.main(
        run, ProgramConfig(lanes=2, sweep=SweepConfig(memory=(8,))), json=to, compare=False
    ),
    "dynamic": lambda run, to: dynamic.main(run, DynamicConfig(lanes=2, limit=1), json=to),
    "prune": lambda run, to: prune.main(run, PruneConfig(lanes=2, sparsities=(0.5,)), json=to),
    "checkpoint": lambda run, to: compact.main(run, to),
    "sets": lambda run, to: sets.main([run], json=to),
}


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(loading, "_filled", begun)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "place",
    [
        "missing/out.json",
        ".",
        "file/out.json",
        "/dev/full",
        "/proc/out.json",
        "run",
        "run/config.yaml",
        "run/metrics.jsonl",
        "run/checkpoints/new.json",
        "run/checkpoints/step-00000012/model.safetensors",
        "run/vocabulary/vocabulary.json",
        "link",
        "hard",
        "loop",
    ],
)
def test_a_place_that_cannot_be_is_found_before_the_work(
    run: Path, tmp_path: Path, program: str, place: str, no_work: None
) -> None:
    (tmp_path / "file").write_text("")
    weights = run / "checkpoints/step-00000012/model.safetensors"
    (tmp_path / "link").symlink_to(weights)
    (tmp_path / "hard").hardlink_to(run / "config.yaml")
    (tmp_path / "loop").symlink_to("loop")
    before = weights.read_bytes()
    with pytest.raises(ValueError, match=r"make it|choose|name a|another name|followed"):
        PROGRAMS[program](run, tmp_path / place)
    assert weights.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file", "link", "hard", "loop"}


@pytest.mark.parametrize("place", ["file", "file/below", "run/checkpoints/x", "run/config.yaml"])
def test_a_folder_that_cannot_be_is_found_before_the_work(
    run: Path, tmp_path: Path, place: str, no_work: None
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"name a folder|another folder|is a file"):
        breakdown.main(run, BreakdownConfig(lanes=2), out=tmp_path / place)


def test_the_text_is_not_replaced_by_its_score(run: Path, shards, no_work: None) -> None:
    """Nor the shards that the run was trained on, nor others that are named."""
    for name in ("manifest.json", "new.json"):
        with pytest.raises(ValueError, match="is what is read"):
            score.main(run, ProgramConfig(), json=Path(shards.path) / name)
    with pytest.raises(ValueError, match=r"end its name in \.json"):
        PROGRAMS["sweep"](run, run / "score.svg")


def test_devices_pipes_and_links_are_written_and_stay(run: Path, tmp_path: Path) -> None:
    score.main(run, ProgramConfig(lanes=2), json=Path("/dev/null"), compare=False)
    PROGRAMS["sweep"](run, Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    (tmp_path / "link.json").symlink_to("file.json")
    score.main(run, ProgramConfig(lanes=2), json=tmp_path / "link.json", compare=False)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "file.json").read_text())["value"] > 0


def with_weights(run: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Other weights at the same path, whole by their own hashes."""
    path = run / "checkpoints/step-00000012/model.safetensors"
    save_tensors({name: change(tensor) for name, tensor in load_file(path).items()}, path)


def test_a_kept_score_belongs_to_its_weights(run: Path, tmp_path: Path) -> None:
    config, kept = ProgramConfig(lanes=2), tmp_path / "kept"
    score.main(run, config, keep=kept, compare=False)
    with_weights(run, lambda tensor: tensor * 1.5)
    with pytest.raises(ValueError, match=r"another score, of other weights.*; remove it"):
        score.main(run, config, keep=kept, compare=False)
    score.main(run, config, keep=tmp_path / "new", json=tmp_path / "new.json", compare=False)
    score.main(run, config, json=tmp_path / "plain.json", compare=False)
    new, plain = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("new", "plain"))
    for record in (new, plain):
        # Another time each, and so is the hash of all.
        del record["speed"], record["sha256"]
    assert new == plain


def test_weights_that_are_replaced_meanwhile_do_not_lend_their_hash(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_run(run).weights
    advance, file = Scorer.advance, tmp_path / "score.json"

    def replaced(self: Scorer) -> Batch:
        if self.step == 3:
            with_weights(run, lambda tensor: tensor * 1.5)
        return advance(self)

    monkeypatch.setattr(Scorer, "advance", replaced)
    score.main(run, ProgramConfig(lanes=2), json=file, compare=False)
    assert json.loads(file.read_text())["checkpoint"]["sha256"] == before
    assert load_run(run).weights != before


def test_a_full_disk_under_keep_loses_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.keeping.save_tensors", full)
    file = tmp_path / "score.json"
    score.main(run, ProgramConfig(lanes=2), json=file, keep=tmp_path / "kept", compare=False)
    assert json.loads(file.read_text())["value"] > 0
    assert "No space left on device" in capsys.readouterr().err
    assert not any((tmp_path / "kept").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        Keeper(tmp_path / "file", {})


@pytest.mark.parametrize("program", ["score", "sweep", "dynamic", "prune", "breakdown"])
@pytest.mark.parametrize("step", [1, 20])
def test_numbers_that_are_none_are_not_reported(
    run: Path, tmp_path: Path, program: str, step: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Predictions that stop being finite, whatever made them so."""
    read = Scorer.advance

    def broken(self: Scorer) -> Batch:
        if self.step == min(step, len(self) - 1):
            with torch.no_grad():
                self.predictor.model.embedding.weight.fill_(float("nan"))
        return read(self)

    monkeypatch.setattr(Scorer, "advance", broken)
    programs = PROGRAMS | {
        "breakdown": lambda run, to: breakdown.main(run, BreakdownConfig(lanes=2), out=to.parent),
        "dynamic": lambda run, to: dynamic.main(run, DynamicConfig(lanes=2), json=to),
    }
    (tmp_path / "to").mkdir()
    with pytest.raises(ValueError, match="not finite numbers, so there is nothing to report"):
        programs[program](run, tmp_path / "to/out.json")
    assert not any((tmp_path / "to").iterdir())
    assert "nan" not in capsys.readouterr().out


def test_weights_that_move_too_far_are_a_sentence(run: Path, tmp_path: Path) -> None:
    config = DynamicConfig(lanes=2, lrs=(1e30,), limit=20)
    with pytest.raises(ValueError, match=r"nothing to report: learning rate 1e\+30 carried"):
        dynamic.main(run, config, json=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"memory": 10**9},
        {"compressed": 10**9},
        {"segment": 10**11},
        {"memory": 10**30},
        {"lanes": 10**30},
        {"warmup": 10**30},
        {"lanes": 10**9},
        {"lanes": 64, "memory": 10**8},
    ],
)
def test_sizes_that_no_machine_holds_are_refused_before_allocating(run: Path, config) -> None:
    with pytest.raises(ValueError, match=r"of memory, and there are|must be below|at most|too few"):
        score.main(run, ProgramConfig(**config), compare=False)


def test_warm_up_from_the_beginning_may_be_asked_for(run: Path, tmp_path: Path) -> None:
    """Whatever is longer than the text reads all that comes before."""
    for name, warmup in (("all", 10**9), ("text", 10**5)):
        config = ProgramConfig(lanes=2, warmup=warmup)
        score.main(run, config, json=tmp_path / name, compare=False)
    whole, text = (json.loads((tmp_path / name).read_text()) for name in ("all", "text"))
    assert whole["value"] == text["value"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sparsities": ()}, "some shares"),
        ({"sparsities": (-0.1,)}, "each is at least 0"),
        ({"sparsities": (1.1,)}, "each is at most 1"),
        ({"kinds": ()}, "kinds"),
        ({"lanes": 0}, "lanes"),
    ],
)
def test_pruning_that_means_nothing(config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig(**config)


SMALL = RecallConfig(distances=(16, 40), documents=4, held_out=2)


def test_recall_that_is_killed_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "text", recall.write_split
    for last in recall.SPLITS:

        def killed(config: RecallConfig, split: str, path: Path, last: str = last) -> None:
            write(config, split, path)
            if split == last:
                raise SystemExit

        monkeypatch.setattr(recall, "write_split", killed)
        with pytest.raises(SystemExit):
            recall.main(SMALL, out)
        assert not out.exists()
    monkeypatch.setattr(recall, "write_split", write)
    recall.main(SMALL, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.keys() == {"train.jsonl", "validation.jsonl", "test.jsonl"}
    # Killed after its last step, the same call finds its own work.
    recall.main(SMALL, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_recall_replaces_no_other_text(tmp_path: Path) -> None:
    recall.main(SMALL, tmp_path / "text")
    before = (tmp_path / "text/train.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds another text; remove it"):
        recall.main(RecallConfig(distances=(16,), documents=4, held_out=2), tmp_path / "text")
    assert (tmp_path / "text/train.jsonl").read_bytes() == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own/notes").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes, which is no made-up text"):
        recall.main(SMALL, tmp_path / "own")
    with pytest.raises(ValueError, match="name a folder"):
        recall.main(SMALL, tmp_path / "own/notes")


@pytest.mark.parametrize(
    "config",
    [
        {"documents": 10**12},
        {"held_out": 10**15},
        {"documents": 10**30},
        {"distances": (16, 10**13)},
        {"distances": (10**30,)},
    ],
)
def test_recall_beyond_the_machine_is_refused_before_the_work(tmp_path: Path, config) -> None:
    with pytest.raises(ValueError, match=r"has room for|of memory, and there are|must be below"):
        recall.main(RecallConfig(**config), tmp_path / "text")
    assert not any(tmp_path.iterdir())
