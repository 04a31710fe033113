"""Further readings of a segment: each against loops over its own memory, and what they add to a
step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Likelihood, Segment, SegmentRead, Unroll, terms_of
from lm.objectives.readings import Readings
from lm.objectives.readings_config import ReadingsConfig
from tests.lm.model.cases import SHAPES, TINY, VOCABULARY, build, run, stream
from tests.lm.model.oracle import LaneMemory, Oracle, empty_lane, live_slots

ALL = ReadingsConfig(local="segment", far=True, nats=0.7, agreement=0.3, default=0.2)
CASES = (
    *("memory equals segment", "memory longer", "memory shorter", "no memory", "rotary"),
    *("attended zeros", "auto-encoding", "most_used, memory longer", "memory in one layer"),
    *("leaky inputs, memory shorter, rotary", "sinks, relative", "sinks, relative, learnt"),
    *("low_pass, memory longer", "rms, post-norm", "Llama's shape, conv"),
)


def segment_of(config: ModelConfig, lanes: int, seed: int = 5) -> Segment:
    tokens = stream(2, lanes, config, seed)[:, : config.segment + 1]
    scored = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    scored[0, 0] = False
    return Segment(tokens[:, :-1], tokens[:, 1:], scored, torch.zeros(lanes, dtype=torch.bool))


def filled(model: CompressiveTransformer, lanes: int, segments: int = 5) -> MemoryState:
    return run(model, stream(segments, lanes, model.config))[1]


def read(
    model: CompressiveTransformer, config: ReadingsConfig, lanes: int = 2, step: int = 0
) -> tuple[SegmentRead, Readings]:
    readings = Readings(config)
    segment = segment_of(model.config, lanes)
    return readings.read(model, segment, filled(model, lanes), False, step), readings


def loss_of(found: SegmentRead, readings: Readings) -> Tensor:
    terms = terms_of([Likelihood(), readings], found)
    weights = readings.weights(0)
    return torch.stack([term.total * weights.get(n, 1.0) for n, term in terms.items()]).sum()


def naive(
    model: CompressiveTransformer, memory: MemoryState, segment: Segment
) -> tuple[Tensor, Mapping[str, float]]:
    """The loss and its parts as loops over lanes, readings and tokens, each with its own memory."""
    oracle, config = Oracle(model), model.config
    total: Any = 0.0
    sums = dict.fromkeys(("nats_local", "nats_far", "agreement", "worth"), 0.0)
    for lane, tokens in enumerate(segment.inputs_BT.tolist()):
        true, nothing = live_slots(memory, lane), empty_lane(config)
        far = LaneMemory(nothing.memory, true.compressed, nothing.first)
        full = oracle.segment(tokens, true)
        total = total + full.reconstruction
        logs = [
            one.logits_TV.log_softmax(-1)
            for one in (full, oracle.segment(tokens, nothing), oracle.segment(tokens, far, True))
        ]
        for t, target in enumerate(segment.targets_BT[lane].tolist()):
            if not segment.scored_BT[lane, t]:
                continue
            kl = [[(p[t].exp() * (p[t] - q[t])).sum() for q in logs] for p in logs]
            agreement: Any = sum(kl[i][j] for i in range(3) for j in range(3) if i != j) / 6
            found = [-logs[1][t, target], -logs[2][t, target], agreement, kl[0][1]]
            total = total - logs[0][t, target]
            for name, weight, value in zip(sums, (0.7, 0.7, 0.3, 0.2), found, strict=True):
                total = total + weight * value
                sums[name] += value.item()
    return total, sums


@pytest.mark.parametrize("name", CASES)
def test_readings_are_those_of_their_own_memories(name: str) -> None:
    """Values, memory, and every gradient; reconstruction is that of the full reading alone."""
    model = build(SHAPES[name])
    memory, segment = filled(model, 2), segment_of(model.config, 2)
    found, readings = read(model, ALL)
    expected, sums = naive(model, memory, segment)
    loss = loss_of(found, readings)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    for term, value in sums.items():
        assert readings.terms(found)[term].total.item() == pytest.approx(value, rel=1e-9)
    alone = model.read_segment(segment.inputs_BT, memory)
    for mine, theirs in zip(
        found.states.memory.tensors().values(), alone.memory.tensors().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for losses, others in (
        (found.states.auxiliary, alone.auxiliary),
        (found.states.by_layer, alone.by_layer),
    ):
        for kind, (total, elements) in losses.items():
            torch.testing.assert_close(total, others[kind][0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(elements, others[kind][1])
    parameters = dict(model.named_parameters())
    mine = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    for parameter, a, b in zip(parameters, mine, theirs, strict=True):
        a, b = (torch.zeros(()) if x is None else x for x in (a, b))
        torch.testing.assert_close(a, b.expand_as(a), rtol=1e-7, atol=1e-9, msg=parameter)


def test_local_may_keep_memory() -> None:
    model = build(replace(TINY, memory=7))
    found, readings = read(model, ReadingsConfig(local="memory"))
    memory, segment = filled(model, 2), segment_of(model.config, 2)
    without = memory.with_counts(compressed=torch.zeros_like(memory.compressed_count))
    nats = model(segment.inputs_BT, without, segment.targets_BT).predictions
    expected = (nats * segment.scored_BT).sum().item()
    assert readings.terms(found)["nats_local"].total.item() == pytest.approx(expected, rel=1e-12)
    alone = model.read_segment(segment.inputs_BT, memory).auxiliary["reconstruction"]
    assert torch.equal(found.states.auxiliary["reconstruction"].elements, alone.elements)


def test_far_sees_no_token_of_the_segment() -> None:
    """Nor does a gradient reach their embeddings; what is empty may hold anything."""
    model = build(TINY)
    readings, segment = Readings(ReadingsConfig(far=True, nats=1.0)), segment_of(TINY, 2)
    memory = filled(model, 2)
    before = readings.read(model, segment, memory, False, 0)
    other = segment._replace(inputs_BT=(segment.inputs_BT + 1) % VOCABULARY)
    garbage = memory.with_named(memory=tuple(slots + 1e3 for slots in memory.memory))
    after = readings.read(model, other, garbage, False, 0)
    assert before.compared is not None and after.compared is not None
    values = before.compared.values["nats_far"]
    assert torch.equal(values, after.compared.values["nats_far"])
    (gradient,) = torch.autograd.grad(values.sum(), model.embedding.weight, allow_unused=True)
    # Tied to the head, which the tokens of the segment reach as targets and not as inputs.
    untied = build(replace(TINY, tied=False))
    far = read(untied, ReadingsConfig(far=True, nats=1.0))[0].compared
    assert far is not None and gradient.abs().max() > 0
    (embedded,) = torch.autograd.grad(far.values["nats_far"].sum(), untied.embedding.weight)
    assert embedded.abs().max() == 0


@pytest.mark.parametrize("unroll", [1, 2])
def test_prediction_shapes_what_is_written_from_two_segments_on(unroll: int) -> None:
    model = build(replace(TINY, reconstruction="none"))
    readings = Readings(ReadingsConfig(far=True, nats=1.0))
    module = Unroll(model, [Likelihood(), readings], readings.read)
    segments = [segment_of(TINY, 2, seed) for seed in range(unroll)]
    terms, _, _ = module(segments, filled(model, 2))
    learnt = [p for name, p in model.named_parameters() if ".compression." in name]
    gradients = torch.autograd.grad(terms["nats_far"].total, learnt, allow_unused=True)
    assert all((g is not None and g.abs().max() > 0) == (unroll > 1) for g in gradients)


@pytest.mark.parametrize("shape", ["plain", "adaptive"])
@pytest.mark.parametrize("every", [1, 2])
def test_logits_in_parts_are_the_same(shape: str, every: int) -> None:
    """Values and gradients with the logits of a few tokens at once."""
    adaptive = {"cutoffs": (4, 8), "cluster_divisor": 2} if shape == "adaptive" else {}
    config = replace(TINY, **adaptive)
    whole, parts = build(config), build(replace(config, head_chunk=7))
    some = replace(ALL, every=every)
    results = []
    for model in (whole, parts):
        found, readings = read(model, some, lanes=4, step=1)
        loss = loss_of(found, readings)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        results.append((loss, readings.terms(found), [g for g in gradients if g is not None]))
    (one, terms, first), (two, others, second) = results
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    for name, term in terms.items():
        torch.testing.assert_close(term.total, others[name].total, rtol=1e-11, atol=1e-12)
        assert term.counted == others[name].counted
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_one_lane_in_two_stands_for_both() -> None:
    """Another at each step; over two steps all lanes have counted as if each had both times."""
    model = build(TINY)
    some = replace(ALL, every=2)
    both = [Readings(some).terms(read(model, some, lanes=4, step=step)[0]) for step in (0, 1)]
    whole = Readings(ALL).terms(read(model, ALL, lanes=4)[0])
    for name, term in whole.items():
        total = both[0][name].total + both[1][name].total
        torch.testing.assert_close(total, 2 * term.total, rtol=1e-11, atol=1e-12)
        assert both[0][name].counted + both[1][name].counted == 2 * term.counted
    assert both[0]["nats_far"].total != both[1]["nats_far"].total


def test_hidden_memory_still_moves_on() -> None:
    """A lane that does not see its memory predicts as if it had none, and memory counts as ever."""
    model = build(replace(TINY, memory=7))
    memory, segment = filled(model, 8), segment_of(TINY, 8)
    readings = Readings(ReadingsConfig(hide=0.5))
    torch.manual_seed(3)
    hidden = torch.rand(8) < 0.5
    torch.manual_seed(3)
    found = readings.read(model, segment, memory, True, 0)
    assert 0 < hidden.sum() < 8 and found.compared is None
    seeing = model(segment.inputs_BT, memory)
    blind = model(segment.inputs_BT, memory.reset(torch.ones(8, dtype=torch.bool)))
    expected = torch.where(hidden[:, None, None], blind.predictions, seeing.predictions)
    torch.testing.assert_close(found.logits_BTV(), expected, rtol=1e-12, atol=1e-12)
    moved = found.states.memory
    for mine, theirs in zip(moved.compressed, seeing.memory.compressed, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for name, count in seeing.memory.counts.items():
        assert torch.equal(moved.counts[name], count)
    assert torch.equal(moved.memory[0], seeing.memory.memory[0])


def test_what_is_only_shown_has_no_gradient() -> None:
    model = build(TINY)
    found, _ = read(model, ReadingsConfig(local="segment", far=True, default=0.1))
    assert found.compared is not None
    with_gradient = {n for n, v in found.compared.values.items() if v.requires_grad}
    assert with_gradient == {"worth"}
    assert {"agreement", "agreement_full_far", "nats_local"} <= found.compared.values.keys()


def test_evaluation_reads_once() -> None:
    model = build(TINY).eval()
    readings = Readings(ALL)
    module = Unroll(model, [Likelihood(), readings], readings.read)
    with torch.no_grad():
        terms, _, _ = module([segment_of(TINY, 2)], model.empty_memory(2))
    assert terms.keys() == {"nats"}


REFUSED = [
    ({"nats": 0.1}, {}, r"nats has no effect without a further reading"),
    ({"agreement": 0.1, "hide": 0.1}, {}, r"agreement has no effect without a further reading"),
    ({"every": 2}, {}, r"every has no effect without a further reading"),
    ({"far": True, "default": 0.1}, {}, r"default compares the full reading with the local one"),
    ({"hide": 1.0}, {}, r"training\.readings\.hide must be"),
    ({"agreement": -1.0, "far": True}, {}, r"training\.readings\.agreement must be"),
    ({"far": True}, {"compressed": 0}, r"far needs a compressed memory"),
    ({"local": "memory"}, {"compressed": 0}, r"local memory needs a compressed memory"),
    ({"local": "segment"}, {"compressed": 0, "memory": 0}, r"local has no effect without memory"),
    ({"hide": 0.5}, {"compressed": 0, "memory": 0}, r"hide has no effect without memory"),
    ({"hide": 0.5}, {"empty": "attended"}, r"hide needs model\.empty masked"),
    ({"again": True}, {}, r"again needs dropout"),
]


@pytest.mark.parametrize(("given", "shape", "sentence"), REFUSED, ids=str)
def test_what_cannot_be_read_is_refused(
    given: dict[str, Any], shape: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        ReadingsConfig(**given).check(replace(TINY, **shape))
