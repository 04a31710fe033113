"""What a run shows of itself: validation, attention, samples, records, profiles."""

import errno
import gzip
import json
import math
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.common.files import parse_json
from data.shards import Shards
from data.tokenizers.fixed import ByteTokenizer
from lm.inference.attention_mass import AttentionMass
from lm.inference.inference_config import ScoringConfig
from lm.runs.run_config import ReportConfig, RunConfig
from lm.runs.runlog import MetricsLog, read_metrics
from lm.scoring import Score, score
from lm.training import dist, engine
from lm.training.loggers import ProfileWindow, open_sinks
from lm.training.loop import Loop
from lm.training.meter import in_unit
from lm.training.observer import Observer
from lm.training.trainer import Trainer
from tests.predictors import predictor
from tests.texts import split_of


def with_report(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, report=ReportConfig(**changes))


def test_validation_is_the_scorer(run_config: RunConfig, shards: Shards, world: dist.World) -> None:
    """With memory emptied for each document if training does it."""
    values, split = [], shards.split("train")
    for reset in (False, True):
        changes = {"order": "documents", "reset_documents": reset, "validation_segments": 24}
        training = replace(run_config.training, **changes)
        observer = Observer(Trainer(replace(run_config, training=training), shards, world))
        # The validation split is a single document.
        observer.split = split
        values.append(observer.validate())
        how = ScoringConfig(8, reset_documents=reset)
        assert values[-1] == score(predictor(observer.trainer.model), split, how, limit=24)
        assert 4 < values[-1].bits_per_byte < 12
    assert values[0] != values[1]


def test_attention_is_that_of_the_step_before(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    """Of the first of two micro-batches, once memory is full; no random number is drawn."""
    training = replace(run_config.training, micro_batches=2)
    trainer = Trainer(replace(run_config, training=training), shards, world)
    observer = Observer(trainer)
    trainer.train_step(12, observer.see)
    assert observer.attention() == {}
    for _ in range(4):
        trainer.train_step(12)
    before = trainer.memory.lane_slice(slice(2))
    trainer.train_step(12, observer.see)
    assert observer.seen is not None
    random = torch.get_rng_state()
    tokens = observer.seen[0].inputs_BT[:2]
    shares = observer.attention()
    assert torch.equal(torch.get_rng_state(), random) and trainer.model.training
    trainer.model.eval()
    with AttentionMass(trainer.model) as mass, torch.no_grad():
        trainer.model(tokens, before)
        mass.add(torch.tensor([True, True]))
    for store, shares_L in mass.by_store().items():
        for layer in range(2):
            assert shares[f"attention/{store}/{layer}"] == pytest.approx(shares_L[layer].item())


@pytest.mark.parametrize("zero", [0, 3])
def test_a_run_shows_itself_and_is_the_same_run(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    zero: int,
) -> None:
    """Samples, a profile and records by layer; losses are those of a run that shows nothing."""
    monkeypatch.setattr(engine, "PERSISTENT", 0)
    training = replace(run_config.training, zero=zero, log_every=2)  # type: ignore[arg-type]
    plain = replace(run_config, training=training)
    shown = with_report(plain, sample_every=6, sample_tokens=20, profile=(2, 3))
    Loop(Trainer(plain, shards, world), tmp_path / "plain").train()
    Loop(Trainer(shown, shards, world), tmp_path / "shown").train()
    losses = [
        [
            (r["step"], r["loss"])
            for r in read_metrics(tmp_path / name / "metrics.jsonl")
            if "loss" in r
        ]
        for name in ("plain", "shown")
    ]
    assert losses[0] == losses[1]
    samples = sorted((tmp_path / "shown" / "samples").iterdir())
    assert [path.name for path in samples] == ["step-00000006.txt", "step-00000012.txt"]
    prompt, _, text = samples[0].read_bytes().partition(b"\n\n--- continued:\n\n")
    assert shards.split("validation").tokens[:16].tobytes() == prompt and len(text) == 20
    assert samples[0].read_bytes() != samples[1].read_bytes()
    (trace,) = (tmp_path / "shown" / "profile").iterdir()
    assert trace.name == "steps-00000003-00000005.json.gz"
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    records = read_metrics(tmp_path / "shown" / "metrics.jsonl")
    log = next(record for record in records if record["step"] == 12 and "loss" in record)
    assert log["bits_per_byte"] == pytest.approx(log["loss"] / math.log(2))
    assert log["memory_bytes"] > 1e7
    assert log["reconstruction_relative/1"] > log["reconstruction/1"] > 0
    assert log["compression_grad_norm/1"] > 0
    validation = next(r for r in records if r["step"] == 12 and "validation_bits_per_byte" in r)
    stores = ("segment", "memory", "compressed")
    assert sum(validation[f"attention/{store}/0"] for store in stores) == pytest.approx(1)
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"12/12 step, .* step/s, .* elapsed, valid [\d.]+, bits/byte [\d.]+, "
        r"compression error [\d.]+, tok/s [\d,]+, "
        r"mfu (?:\d+%|not measured), memory [\d.]+ GiB$",
        line,
    )


@pytest.mark.parametrize("unit", ["bits_per_byte", "word_perplexity"])
def test_what_is_shown_of_a_validation_is_what_is_logged(unit: str) -> None:
    """Though the part that is scored has fewer bytes a token than the split."""
    split = split_of(ByteTokenizer(), [b"a b c d"], unit)
    # A nat a token.
    score = Score(nats=10.0, tokens=10, bytes=4, document_nats=np.zeros(1))
    expected = {"validation_bits_per_byte": 10 / math.log(2) / 4}
    if unit == "word_perplexity":
        expected[f"validation_{unit}"] = math.exp(7 / 4)
    written: list[dict[str, float]] = []
    observer = types.SimpleNamespace(validate=lambda: score, split=split)
    trainer = types.SimpleNamespace(step=3)
    loop: Any = types.SimpleNamespace(observer=observer, trainer=trainer, write=written.append)
    assert Loop.validate(loop, {}) == {"valid": f"{expected[f'validation_{unit}']:.3f}"}
    assert written == [{"step": 3} | expected]


def test_losses_come_in_the_corpuss_unit(shards: Shards) -> None:
    split = shards.split("train")
    assert in_unit(split, math.log(2)) == pytest.approx(1.0)
    words = replace(split, unit="word_perplexity", words=len(split.tokens) // 4)
    assert in_unit(words, 0.5) == pytest.approx(math.exp(2.0), rel=1e-3)


def test_tensorboard_gets_the_records(run_config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, value in [(0, 3.0), (1, 2.0)]:
        # The second process continues from step 1 and writes step 2 again.
        sinks = open_sinks(tmp_path, with_report(run_config, tensorboard=True), step)
        for later in (step + 1, step + 2):
            for sink in sinks:
                sink.write({"step": later, "loss": value - later, "reconstruction/0": 0.5})
        for sink in sinks:
            sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert scalars == [(1, 2.0), (2, 0.0), (3, -1.0)]
    assert len(events.Scalars("reconstruction/0")) == 3


class StandIn(types.ModuleType):
    """As much of wandb as is used."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []

    def init(self, **options: Any) -> "StandIn":
        json.dumps(options["config"])
        self.calls.append(("init", options))
        return self

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.calls.append(("log", (dict(numbers), step)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_weights_and_biases_gets_the_records_on_one_page(
    run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 5):
        sinks = open_sinks(tmp_path, with_report(run_config, wandb="books"), step)
        for sink in sinks:
            sink.write({"step": step + 1, "loss": 2.0})
            sink.close()
    names = [name for name, _ in wandb.calls]
    assert names == ["init", "log", "finish"] * 2
    first, second = (value for name, value in wandb.calls if name == "init")
    assert first["project"] == "books" and first["id"] == second["id"]
    assert first["config"]["model"]["layers"] == 2
    assert wandb.calls[4] == ("log", ({"loss": 2.0}, 6))


@pytest.mark.parametrize(
    ("option", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named(
    run_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    config = with_report(run_config, **{option: "x" if option == "wandb" else True})
    with pytest.raises(ValueError, match=rf"report\.{option} needs the package {package}"):
        open_sinks(tmp_path, config, 0)


@pytest.mark.parametrize(
    "changes",
    [{"sample_every": 0}, {"sample_tokens": 0}, {"profile": (-1, 2)}, {"profile": (3, 0)}],
)
def test_reports_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"report\."):
        ReportConfig(**changes)


class Broken:
    """A place for records that takes none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def add_scalar(self, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def log(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("the server\ndoes not answer")

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    finish = close


@pytest.mark.parametrize("when", ["at the start", "at a record", "at the end"])
@pytest.mark.parametrize("option", ["tensorboard", "wandb"])
def test_a_place_for_records_that_breaks_costs_itself_alone(
    run_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    when: str,
) -> None:
    def make(*_: Any, **__: Any) -> Broken:
        if when == "at the start":
            raise OSError(errno.ENOTDIR, "Not a directory")
        return Broken()

    if option == "tensorboard":
        pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", make)
    else:
        wandb = types.ModuleType("wandb")
        wandb.init = make  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = with_report(run_config, **{option: "x" if option == "wandb" else True})
    sinks = open_sinks(tmp_path, config, 0)
    for step in (1, 2) if when == "at a record" else ():
        for sink in sinks:
            sink.write({"step": step, "loss": math.nan})
    for sink in sinks:
        sink.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: report.{option} gets no more records (")
    logged = read_metrics(tmp_path / "metrics.jsonl") if when == "at a record" else []
    assert [record["not_finite"] for record in logged] == [{"loss": "nan"}] * len(logged)


def test_a_profile_that_cannot_be_written_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    window = ProfileWindow(tmp_path / "profile", 0, 1)
    window.before(0)
    torch.ones(3).sum()
    assert window.after(1, last=True) is None
    assert "warning: there will be no trace" in capsys.readouterr().err
    window.before(1)
    assert window.after(2, last=True) is None


def test_what_is_not_finite_is_json_and_old_logs_can_be_read(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": math.inf, "grad_norm": -math.inf, "lr": 0.5})
    (line,) = log.path.read_text().splitlines()
    assert parse_json(line) == {
        "step": 1,
        "lr": 0.5,
        "not_finite": {"loss": "inf", "grad_norm": "-inf"},
    }
    with log.path.open("a") as file:
        file.write('{"step": 2, "loss": NaN, "lr": 1e999}\n')
    *_, old = read_metrics(log.path)
    assert old == {"step": 2, "not_finite": {"loss": "nan", "lr": "inf"}}
