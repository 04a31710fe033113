"""A frozen run that teaches: closed forms, every ZeRO stage, its memory, and mixtures with it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.shards import Shards
from lm.inference.loading import load_run
from lm.objectives.objective import Likelihood, Segment, SegmentRead, read_once, total_loss
from lm.objectives.readings_config import ReadingsConfig
from lm.objectives.teacher_config import TeacherConfig
from lm.objectives.teaching import Teaching
from lm.runs.gating import GateConfig
from lm.runs.run_config import RunConfig
from lm.training import dist, engine
from lm.training.trainer import Trainer
from tests.lm.model.cases import TINY, VOCABULARY, build, run, stream
from tests.processes import ends, start, write_config
from tests.runs import saved, with_training


@pytest.fixture(autouse=True)
def _partition_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PERSISTENT", 0)


def taught(config: TeacherConfig, step: int = 0) -> tuple[Any, Teaching, SegmentRead, Tensor]:
    """A float64 model, what it reads, and random logits of a teacher."""
    model = build(TINY)
    tokens = stream(2, 2, TINY)[:, : TINY.segment + 1]
    scored = torch.ones(2, TINY.segment, dtype=torch.bool)
    scored[1, 2] = False
    segment = Segment(tokens[:, :-1], tokens[:, 1:], scored, torch.zeros(2, dtype=torch.bool))
    _, memory = run(model, stream(4, 2, TINY, seed=7))
    read = read_once(model, segment, memory, True, step)
    generator = torch.Generator().manual_seed(3)
    told = torch.randn(2, TINY.segment, VOCABULARY, generator=generator, dtype=torch.float64)
    return model, Teaching(config, lambda x: x), read._replace(told=told, step=step), told


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jensen"])
@pytest.mark.parametrize("heat", [1.0, 2.5])
def test_divergences_are_loops_and_their_gradients_the_closed_forms(
    divergence: Any, heat: float
) -> None:
    model, teaching, read, told = taught(
        TeacherConfig(Path("run"), divergence=divergence, temperature=heat)
    )
    term = teaching.terms(read)["teacher"]
    logits, total = read.logits_BTV(), 0.0
    expected = torch.zeros_like(logits)
    for lane in range(2):
        for t in range(TINY.segment):
            if not read.scored_BT[lane, t]:
                continue
            p, q = (x[lane, t].detach().div(heat).softmax(-1) for x in (told, logits))
            m = (p + q) / 2
            if divergence == "forward":
                found, slope = (p * (p / q).log()).sum(), q - p
            elif divergence == "reverse":
                found = (q * (q / p).log()).sum()
                slope = q * ((q / p).log() - found)
            else:
                found = ((p * (p / m).log()) + (q * (q / m).log())).sum() / 2
                slope = q * ((q / m).log() - (q * (q / m).log()).sum()) / 2
            total += heat**2 * found.item()
            expected[lane, t] = heat * slope
    assert term.total.item() == pytest.approx(total, rel=1e-10)
    assert term.counted == read.scored_BT.sum()
    (gradient,) = torch.autograd.grad(term.total, logits, retain_graph=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    weights = list(model.parameters())
    learnt = torch.autograd.grad(term.total, weights, allow_unused=True, retain_graph=True)
    through = torch.autograd.grad(logits, weights, expected, allow_unused=True)
    for one, two in zip(learnt, through, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-11)


def test_a_mixture_is_of_probabilities_and_fades_out() -> None:
    config = TeacherConfig(Path("run"), weight=0.4, until=4, mix=True)
    _, teaching, read, told = taught(config, step=1)
    terms = {**Likelihood().terms(read), **teaching.terms(read)}
    p, q = told.softmax(-1), read.logits_BTV().softmax(-1)
    x = read.targets_BT[..., None]
    nats = -(0.75 * p.gather(-1, x) + 0.25 * q.gather(-1, x))[..., 0].log()
    expected = (nats * read.scored_BT).sum()
    torch.testing.assert_close(terms["mixture"].total, expected)
    weights = teaching.weights(1)
    assert weights == {"teacher": pytest.approx(0.3), "mixture": 1.0, "nats": 0.0}
    ones = dict.fromkeys(terms, 1.0)
    loss = total_loss(terms, ones, weights)
    torch.testing.assert_close(loss, expected + 0.3 * terms["teacher"].total)
    (gradient,) = torch.autograd.grad(terms["mixture"].total, read.logits, retain_graph=True)  # type: ignore[arg-type]
    share = 0.25 * q.gather(-1, x) / (0.25 * q.gather(-1, x) + 0.75 * p.gather(-1, x))
    own = q - torch.nn.functional.one_hot(read.targets_BT, VOCABULARY)
    torch.testing.assert_close(gradient, share * own * read.scored_BT[..., None])
    assert teaching.weights(4) == {} and config.share(9) == 0
    assert Teaching(config, lambda x: x).terms(read._replace(told=None)) == {}


@pytest.fixture(scope="module")
def config(run_config: RunConfig, trained_run: Path) -> RunConfig:
    """Without dropout, taught by a finished run."""
    model, optim = replace(run_config.model, dropout=0.0), replace(run_config.optim, eps=1e-4)
    plain = replace(run_config, model=model, optim=optim)
    return with_training(plain, teacher=TeacherConfig(trained_run, weight=0.7), seed=5)


def results(config: RunConfig, shards: Shards, steps: int = 3, **changes: Any) -> list:
    trainer = Trainer(with_training(config, **changes), shards, dist.join())
    return [trainer.train_step(12) for _ in range(steps)]


def test_stages_and_parts_agree(config: RunConfig, shards: Shards) -> None:
    first = results(config, shards)
    assert first[0]["teacher"] > 0
    for changes in ({"zero": 1}, {"zero": 2, "micro_batches": 2}, {"zero": 3}):
        for mine, theirs in zip(first, results(config, shards, **changes), strict=True):
            for name in ("nats", "teacher", "grad_norm"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4), (changes, name)


def test_who_learns_from_itself_has_nothing_to_learn(
    config: RunConfig, shards: Shards, trained_run: Path
) -> None:
    """The teacher's memory is the student's, over segments, resets and parts; it is no part of what
    is trained.
    """
    still = replace(config, optim=replace(config.optim, lr=1e-30, floor=1e-30))
    again = with_training(
        still, order="documents", reset_documents=True, accumulate=((0, 2),), unroll=2
    )
    trainer = Trainer(again, shards, dist.join())
    trainer.model.load_state_dict(load_run(trained_run).model.state_dict())
    for _ in range(6):
        assert 0 <= abs(trainer.train_step(12)["teacher"]) < 1e-6
    assert trainer.teacher is not None
    theirs = trainer.teacher.predictor.model.state_dict()
    for name, weight in load_run(trained_run).model.state_dict().items():
        assert torch.equal(theirs[name], weight)
    own = {parameter.data_ptr() for parameter in trainer.module.parameters()}
    frozen = trainer.teacher.predictor.model.parameters()
    assert not own & {parameter.data_ptr() for parameter in frozen}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_it_resumes_to_the_bit_with_the_teacher_s_memory(
    run_config: RunConfig, config: RunConfig, shards: Shards, tmp_path: Path, precision: str
) -> None:
    teacher = replace(config.training.teacher, until=3, mix=True)
    changed = with_training(run_config, teacher=teacher, precision=precision)
    whole = Trainer(changed, shards, dist.join())
    whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(3)]
    again = Trainer(changed, shards, dist.join(), folder)
    assert [again.train_step(12) for _ in range(3)] == expected
    assert "mixture" in expected[1] and "teacher" not in expected[2]


def test_readings_teachers_and_gates_go_together(
    config: RunConfig, shards: Shards, tmp_path: Path
) -> None:
    """Over two segments, in parts, in bfloat16; and resume to the bit."""
    readings = ReadingsConfig(local="segment", far=True, every=2, agreement=0.3, default=0.1)
    gate = GateConfig("project", ("teacher", "agreement"), "layer")
    changes = {"unroll": 2, "micro_batches": 2, "precision": "bf16"}
    all_of_it = with_training(config, readings=readings, gate=gate, **changes)
    whole = Trainer(all_of_it, shards, dist.join())
    first = whole.train_step(12)
    assert {"teacher", "agreement", "worth", "nats_far", "gate_cosine"} <= first.keys()
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(2)]
    again = Trainer(all_of_it, shards, dist.join(), folder)
    assert [again.train_step(12) for _ in range(2)] == expected


def test_a_gate_stays_when_its_teacher_is_gone(config: RunConfig, shards: Shards) -> None:
    """Then the run is one without either, to the last bit of each step."""
    for mix, name in ((False, "teacher"), (True, "mixture")):
        teacher = replace(config.training.teacher, until=2, mix=mix)
        taught = with_training(config, teacher=teacher, gate=GateConfig("sign", (name,)))
        trainer = Trainer(taught, shards, dist.join())
        steps = [trainer.train_step(12) for _ in range(4)]
        assert ["gate_cosine" in step for step in steps] == [True, True, False, False]
        assert ["teacher" in step for step in steps] == [True, True, False, False]
    # Beside another loss it stays a gate for that.
    readings = ReadingsConfig(local="segment", agreement=0.3)
    both = GateConfig("sign", ("teacher", "agreement"))
    taught = with_training(taught, gate=both, readings=readings)
    trainer = Trainer(taught, shards, dist.join())
    assert all("gate_cosine" in trainer.train_step(12) for _ in range(3))


def test_a_teacher_that_is_gone_leaves_the_plain_run(config: RunConfig, shards: Shards) -> None:
    """To the last bit; and one that only shows itself changes nothing."""
    plain = results(config, shards, teacher=TeacherConfig())
    assert config.training.teacher.run is not None
    shown = replace(config.training.teacher, weight=0.0, until=2)
    for mine, theirs in zip(plain, results(config, shards, teacher=shown), strict=True):
        theirs.pop("teacher", None)
        assert mine == theirs


def test_another_or_no_teacher_is_not_gone_on_with(
    config: RunConfig, shards: Shards, sparse_run: Path, tmp_path: Path
) -> None:
    whole = Trainer(config, shards, dist.join())
    whole.train_step(12)
    folder = saved(whole, tmp_path / "taught")
    teacher = replace(config.training.teacher, run=sparse_run)
    with pytest.raises(ValueError, match="other weights taught when"):
        Trainer(with_training(config, teacher=teacher), shards, dist.join(), folder)
    alone = with_training(config, teacher=TeacherConfig())
    assert Trainer(alone, shards, dist.join(), folder).step == 1
    folder = saved(Trainer(alone, shards, dist.join()), tmp_path / "alone")
    with pytest.raises(ValueError, match="no run taught when"):
        Trainer(config, shards, dist.join(), folder)


REFUSED = [
    ({"weight": 0.1}, r"weight has no effect without training\.teacher\.run"),
    ({"until": 5}, r"until has no effect without training\.teacher\.run"),
    ({"run": Path("r"), "mix": True}, r"mix needs training\.teacher\.until"),
    ({"run": Path("r"), "mix": True, "until": 5, "temperature": 2.0}, r"mix matches by KL"),
    ({"run": Path("r"), "temperature": 0.0}, r"training\.teacher\.temperature must be"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=str)
def test_settings_without_sense_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TeacherConfig(**given)


def test_runs_that_cannot_teach_are_refused(
    config: RunConfig, shards: Shards, hf_run: Path, tmp_path: Path
) -> None:
    def begun(run: Path, model: dict[str, Any]) -> Trainer:
        teacher = replace(config.training.teacher, run=run)
        changed = replace(config, model=replace(config.model, **model))
        return Trainer(with_training(changed, teacher=teacher), shards, dist.join())

    def refused(sentence: str, run: Path, **model: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            begun(run, model)

    own = config.training.teacher.run
    assert own is not None
    refused("has another vocabulary", hf_run)
    refused("reads segments of 8 tokens, of which", own, segment=12)
    refused("leave model.head_chunk out", own, head_chunk=8)
    refused("no run", tmp_path)


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_are_one(config: RunConfig, tmp_path: Path) -> None:
    """In float64 but for the teacher's float32."""
    training = replace(config.training, micro_batches=2, accumulate=((0, 1), (3, 2)))
    path, seen = write_config(replace(config, training=training), tmp_path), []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        command = [sys.executable, "-m", "tests.float64", str(path), str(out)]
        assert [status for status, _ in ends(start(command, ranks))] == [0] * ranks
        seen.append(json.loads(out.read_text()))
    one, two = seen
    for mine, theirs in zip(one["steps"], two["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
        assert mine["teacher"] > 0
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-4, abs=1e-6)
