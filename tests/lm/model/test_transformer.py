"""The model against the loop-written oracle, and the invariants of memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lm.model.memory import MemoryState
from lm.model.model_config import Backend, ModelConfig
from lm.model.transformer import TRUNCATED, CompressiveTransformer
from tests.lm.model.cases import SHAPES, TINY, build, run, stream
from tests.lm.model.oracle import LaneMemory, Oracle, empty_lane, live_slots


def assert_same_memory(state: MemoryState, lane: int, expected: LaneMemory) -> None:
    ours = live_slots(state, lane)
    assert ours.read in (0, expected.read)
    layers = [ours.memory + ours.compressed, expected.memory + expected.compressed]
    if any(ours.first):
        layers = [layers[0] + ours.first, layers[1] + expected.first]
    layers = [layers[0] + ours.filters, layers[1] + expected.filters]
    for mine, theirs in zip(*layers, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def all_slots(state: MemoryState) -> tuple[Tensor, ...]:
    return state.memory + state.compressed


SHIFT = ("memory equals segment", "memory shorter", "no memory", "Transformer-XL", "few sinusoids")
SHIFT += ("key-value heads", "sinks, few sinusoids", "sinks, relative, Transformer-XL")
FUSED = (*SHIFT, "segment no multiple of rate", "extra kernel", "few sinusoids, Transformer-XL")
BACKENDS = [
    *((name, "auto") for name in SHAPES),
    *(
        (name, "shift")
        for name in (*SHIFT, "most_used, memory longer", "most_used, memory shorter")
    ),
    *((name, "fused") for name in FUSED),
]
"""Shapes with the backends that read them: a CPU's own, and those of other devices."""


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_equals_oracle_through_many_overflows(name: str, backend: Backend) -> None:
    """Outputs, new memory, reconstruction loss and every gradient, on a stream that overflows
    both memories, with one lane reset on the way.
    """
    config = replace(SHAPES[name], backend=backend)
    model = build(config)
    oracle = Oracle(model)
    lanes, segments = 2, 6
    tokens = stream(segments, lanes, config)
    memory = model.empty_memory(lanes)
    naive = [empty_lane(config) for _ in range(lanes)]
    for index, part in enumerate(tokens.split(config.segment, dim=1)):
        if index == 3:
            memory = memory.reset(torch.tensor([False, True]))
            naive[1] = empty_lane(config)
        output = model(part, memory)
        results = [oracle.segment(part[lane].tolist(), naive[lane]) for lane in range(lanes)]
        expected = torch.stack([r.logits_TV for r in results])
        torch.testing.assert_close(output.predictions, expected, rtol=1e-9, atol=1e-11)
        loss, naive_loss = output.predictions.logsumexp(-1).sum(), expected.logsumexp(-1).sum()
        if output.auxiliary:
            ours = output.auxiliary["reconstruction"]
            total = sum(r.reconstruction for r in results)
            torch.testing.assert_close(ours.total, total, rtol=1e-8, atol=1e-12)
            assert int(ours.elements) == sum(r.reconstruction_count for r in results)
            loss, naive_loss = loss + ours.total, naive_loss + total
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        naive_gradients = torch.autograd.grad(naive_loss, parameters, allow_unused=True)
        for name, mine, theirs in zip(
            dict(model.named_parameters()), gradients, naive_gradients, strict=True
        ):
            mine = torch.zeros(()) if mine is None else mine
            theirs = torch.zeros_like(mine) if theirs is None else theirs
            torch.testing.assert_close(
                mine.expand_as(theirs), theirs, rtol=1e-7, atol=1e-10, msg=lambda m, n=name: n + m
            )
        memory = output.memory.detach()
        for lane in range(lanes):
            assert_same_memory(memory, lane, results[lane].memory)
        naive = [result.memory.detached() for result in results]


def test_compressed_memory_carries_gradient_to_the_compressor_within_an_unroll() -> None:
    """Without detaching, the likelihood of a later segment trains f_c (the paper's BPTT)."""
    config = replace(TINY, reconstruction="none")
    model = build(config)
    memory = model.empty_memory(1)
    for part in stream(4, 1, config).split(config.segment, dim=1):
        output = model(part, memory)
        memory = output.memory
    output.predictions.logsumexp(-1).sum().backward()
    for block in model.blocks:
        assert block.compression.projection.weight.grad.abs().max() > 0


def test_segments_equal_one_full_pass_while_memory_covers_the_history() -> None:
    long = replace(TINY, segment=16, memory=16)
    short = replace(TINY, segment=4, memory=16)
    whole, cut = build(long), build(short)
    cut.load_state_dict(whole.state_dict())
    tokens = stream(1, 3, long)
    torch.testing.assert_close(run(whole, tokens)[0], run(cut, tokens)[0], rtol=1e-9, atol=1e-11)


def test_garbage_in_empty_slots_changes_nothing() -> None:
    config = replace(TINY, memory=6)
    model = build(config).train()
    tokens = stream(5, 2, config)
    clean = model.empty_memory(2)
    dirty = clean.with_named(
        memory=tuple(torch.full_like(slots, 1e6) for slots in clean.memory),
        compressed=tuple(torch.full_like(slots, -1e6) for slots in clean.compressed),
    )
    for part in tokens.split(config.segment, dim=1):
        a, b = model(part, clean), model(part, dirty)
        assert torch.equal(a.predictions, b.predictions)
        assert torch.equal(a.auxiliary["reconstruction"].total, b.auxiliary["reconstruction"].total)
        gradients = [
            torch.autograd.grad(
                out.predictions.logsumexp(-1).sum() + out.auxiliary["reconstruction"].total,
                list(model.parameters()),
                allow_unused=True,
            )
            for out in (a, b)
        ]
        for mine, theirs in zip(*gradients, strict=True):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
        clean, dirty = a.memory.detach(), b.memory.detach()


def test_lanes_do_not_see_each_other() -> None:
    model = build(TINY)
    tokens = stream(6, 3, TINY)
    together, state = run(model, tokens)
    for lane in range(3):
        alone, alone_state = run(model, tokens[lane : lane + 1])
        torch.testing.assert_close(together[lane], alone[0], rtol=1e-10, atol=1e-12)
        assert_same_memory(state, lane, live_slots(alone_state, 0))


def test_a_reset_isolates_documents_until_memory_is_full_again() -> None:
    config = replace(TINY, memory=10)
    model = build(config)
    first, second = stream(5, 2, config), stream(5, 2, config, seed=2)
    _, memory = run(model, first)
    memory = memory.reset(torch.tensor([True, False]))
    fresh = model.empty_memory(2)
    for part in second.split(config.segment, dim=1):
        after, alone = model(part, memory), model(part, fresh)
        torch.testing.assert_close(after.predictions[0], alone.predictions[0], rtol=0, atol=1e-12)
        assert not torch.allclose(after.predictions[1], alone.predictions[1])
        memory, fresh = after.memory.detach(), alone.memory.detach()


@pytest.mark.parametrize("loss", ["attention", "auto_encoding"])
def test_reconstruction_reaches_the_compression_function_and_nothing_else(loss: str) -> None:
    model = build(replace(TINY, reconstruction=loss))
    _, memory = run(model, stream(5, 2, TINY))
    output = model(stream(1, 2, TINY, seed=9), memory)
    output.auxiliary["reconstruction"].total.backward()
    for name, parameter in model.named_parameters():
        if "compression" in name or "decoder" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None or parameter.grad.abs().max() == 0, name


def test_the_likelihood_of_one_segment_does_not_train_the_compression_function() -> None:
    model = build(TINY)
    _, memory = run(model, stream(5, 2, TINY))
    output = model(stream(1, 2, TINY, seed=9), memory)
    output.predictions.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if "compression" in name:
            assert parameter.grad is None, name


def test_projections_still_train_after_memory_overflowed_many_times() -> None:
    """The defect of a well-known port: keys and values frozen by an in-place detach."""
    model = build(TINY)
    memory = model.empty_memory(2)
    for part in stream(12, 2, TINY).split(TINY.segment, dim=1):
        model.zero_grad()
        output = model(part, memory)
        loss = output.predictions.logsumexp(-1).sum()
        (loss + output.auxiliary["reconstruction"].total).backward()
        memory = output.memory.detach()
    for block in model.blocks:
        assert block.attention.query_key_value.weight.requires_grad
        for part in block.attention.query_key_value.weight.grad.chunk(3):
            assert part.abs().max() > 0


def test_forward_leaves_the_memory_it_was_given_alone() -> None:
    model = build(TINY)
    _, memory = run(model, stream(3, 2, TINY))
    before = memory.map(torch.clone)
    model(stream(1, 2, TINY), memory)
    for a, b in zip(all_slots(before), all_slots(memory), strict=True):
        assert torch.equal(a, b)


def test_dropout_acts_in_training_only() -> None:
    model = build(replace(TINY, dropout=0.5))
    memory, part = model.empty_memory(1), stream(1, 1, TINY)
    assert not torch.equal(model(part, memory).predictions, model(part, memory).predictions)
    model.eval()
    assert torch.equal(model(part, memory).predictions, model(part, memory).predictions)


def test_reset_and_lane_slices_round_trip() -> None:
    model = build(TINY)
    _, memory = run(model, stream(5, 4, TINY))
    parts = [memory.lane_slice(slice(0, 1)), memory.lane_slice(slice(1, 4))]
    joined = MemoryState.concatenate(parts)
    for a, b in zip(all_slots(joined), all_slots(memory), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(joined.memory_count, memory.memory_count)
    assert joined.lanes == 4


def test_a_segment_of_another_length_is_refused() -> None:
    model = build(TINY)
    with pytest.raises(ValueError, match="segment"):
        model(torch.zeros(1, 3, dtype=torch.int64), model.empty_memory(1))


@pytest.mark.parametrize("name", SHAPES)
def test_no_view_is_changed_in_place_in_training(name: str) -> None:
    """Autograd would copy the whole tensor that it is a view of several times on the way back."""
    config = SHAPES[name]
    model = build(config)
    tokens = stream(1, 2, config)
    output = model(tokens, model.empty_memory(2), tokens)
    waiting = {output.predictions.grad_fn} | {x.total.grad_fn for x in output.auxiliary.values()}
    seen = set()
    while waiting:
        node = waiting.pop()
        seen.add(node)
        assert not node.name().endswith("CopySlices")
        waiting |= {after for after, _ in node.next_functions if after is not None} - seen
    assert any("MmBackward" in node.name() for node in seen)


def test_weights_begin_as_in_the_authors_code_where_it_is_asked_for() -> None:
    for layers in (1, 4):
        torch.manual_seed(0)
        config = ModelConfig(layers=layers, width=64, heads=4, feedforward=256, initial="authors")
        block = CompressiveTransformer(config, 11).layers[0]
        attention, scale = block.attention, (2 / layers**0.5) ** 0.5
        for weight, gain in (
            (attention.query_key_value.weight, scale),
            (block.feedforward.outer.weight, scale),
            (attention.output.weight, TRUNCATED),
            (block.compression.projection.weight, TRUNCATED),
        ):
            assert float(weight.detach().std()) == pytest.approx(
                gain * weight.shape[1] ** -0.5, rel=0.03
            )
        bias, limit = attention.position_bias, (6 / (4 + 64)) ** 0.5
        assert 0.8 * limit < float(bias.detach().abs().max()) <= limit
