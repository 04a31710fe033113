"""Compression of a trained model: it begins as the mean, learns alone, and stays small."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.model.attention.base import Attended
from lm.model.attention.rotary import places
from lm.model.compression import (
    ConvCompression,
    adopted_rank,
    attention_reconstruction,
    auto_encoding,
)
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.training.compiling import checkpoint_activations
from tests.lm.model.cases import LLAMA, VOCABULARY, build, run, stream

AROUND_MEAN: dict[str, dict[str, Any]] = {
    "all weights": {},
    "channels": {"compression_rank": 0},
    "low rank": {"compression_rank": 2},
    "dilated": {"compression": "dilated"},
}
"""Convolutions that begin as the mean."""


def around_mean(settings: dict[str, Any], **lengths: int) -> ModelConfig:
    return replace(LLAMA, compression_initial="mean", **settings, **lengths)


@pytest.mark.parametrize("lengths", [{}, {"segment": 5, "rate": 3}, {"memory": 10}], ids=str)
@pytest.mark.parametrize("name", AROUND_MEAN)
def test_begins_as_the_mean_to_the_last_bit(name: str, lengths: dict[str, int]) -> None:
    """Windows that are not full included: those of a rate that does not divide, and the first."""
    config = around_mean(AROUND_MEAN[name], **lengths)
    plain = replace(LLAMA, compression="mean", reconstruction="none", **lengths)
    torch.manual_seed(0)
    mean = CompressiveTransformer(plain, VOCABULARY)
    ours = CompressiveTransformer(config, VOCABULARY)
    missing, unknown = ours.load_state_dict(mean.state_dict(), strict=False)
    assert missing and all(".compression." in key for key in missing) and not unknown
    tokens = stream(6, 2, config)
    (expected, memory), (logits, own) = run(mean, tokens), run(ours, tokens)
    assert torch.equal(logits, expected)
    for mine, theirs in zip(own.compressed, memory.compressed, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", AROUND_MEAN)
def test_the_reconstruction_of_grouped_keys_moves_the_compression_alone(name: str) -> None:
    """From its first step, too, where the convolution is zero."""
    config = around_mean(AROUND_MEAN[name])
    torch.manual_seed(0)
    model = CompressiveTransformer(config, VOCABULARY)
    _, memory = run(model, stream(5, 2, config))
    output = model(stream(1, 2, config, seed=9), memory)
    output.auxiliary["reconstruction"].total.backward()
    named = dict(model.named_parameters())
    moved = {key for key, p in named.items() if p.grad is not None and p.grad.any()}
    learning = {key for key in named if ".compression." in key}
    # Behind a last map of zeros nothing has a gradient yet.
    assert moved == {key for key in learning if "stack" not in key and "inner" not in key}
    torch.manual_seed(1)
    with torch.no_grad():
        for key in learning:
            named[key].normal_(std=0.1)
    model.zero_grad()
    output = model(stream(1, 2, config, seed=9), memory)
    output.auxiliary["reconstruction"].total.backward()
    assert {key for key, p in named.items() if p.grad is not None and p.grad.any()} == learning


def test_a_window_of_one_slot_stays_that_slot() -> None:
    """At a rate that does not divide the segment the oldest slot of each makes a window alone."""
    config = around_mean({}, segment=5, rate=4)
    model = build(config)
    for block in model.layers:
        assert isinstance(block.compression, ConvCompression)
        block.compression.begin()
    tokens = stream(4, 1, config)
    _, before = run(model, tokens[:, : 2 * config.segment])
    _, memory = run(model, tokens[:, : 3 * config.segment])
    for old, compressed in zip(before.memory, memory.compressed, strict=True):
        # 9 of 10 tokens were live; 5 are pushed out, the first alone in its window.
        assert torch.equal(compressed[0, -2], old[0, 0])


@pytest.mark.parametrize(
    ("width", "rate", "rank"),
    [
        (576, 4, None),
        (960, 4, None),
        (1024, 4, None),
        (1024, 8, 56),
        (2048, 4, 102),
        (4096, 4, 204),
    ],
)
def test_convolutions_of_trained_models_stay_small(width: int, rate: int, rank: int | None) -> None:
    assert adopted_rank(width, rate) == rank
    config = around_mean({"compression_rank": rank}, width=width, rate=rate, segment=rate)
    with torch.device("meta"):
        weights = sum(p.numel() for p in ConvCompression(config).parameters())
    whole = rate * width**2
    assert weights <= 4 * 1024**2 and (weights == whole if rank is None else weights < whole / 15)


def test_the_relative_error_is_that_of_the_attention_that_is_read() -> None:
    """By layer, as a loop over lanes and heads has it; of pooling too, outside of training."""
    for name, kind in (("conv", "attention"), ("mean", "none")):
        config = replace(LLAMA, compression=name, reconstruction=kind)
        model = build(config).eval()
        _, memory = run(model, stream(4, 2, config))
        queries: list[Tensor] = []

        def note(_: object, __: object, seen: Attended, kept: list[Tensor] = queries) -> None:
            kept.append(seen.query_BHTd)

        for block in model.layers:
            block.attention.register_forward_hook(note)
        output = model(stream(1, 2, config, seed=9), memory, losses=True)
        assert ("reconstruction" in output.auxiliary) == (name == "conv")
        for index, block in enumerate(model.layers):
            stored = memory.layers[index]["memory"][:, : config.segment]
            new = output.memory.layers[index]["compressed"][:, -config.windows :]
            found = []
            for slots in (stored, new):
                (parts,) = block.attention.project(slots)
                key, value = (x.repeat_interleave(2, dim=1) for x in parts)
                found.append((queries[index] @ key.mT).softmax(-1) @ value)
            error, power = (found[0] - found[1]).square().sum(), found[0].square().sum()
            total, elements = output.by_layer["reconstruction_relative"]
            torch.testing.assert_close(total[index] / elements[index], error / power)


def test_layers_computed_again_give_the_same_gradients_to_the_last_bit() -> None:
    """Of a trained model's shape, over segments whose memory is in one graph."""
    config = around_mean({}, memory=5)
    plain, again = build(config), build(config)
    checkpoint_activations(again)
    found = []
    for model in (plain, again):
        memory, loss = model.empty_memory(2), torch.zeros((), dtype=torch.float64)
        for part in stream(5, 2, config).split(config.segment, dim=1):
            output = model(part, memory)
            memory = output.memory
            loss = loss + output.predictions.logsumexp(-1).sum()
            loss = loss + output.auxiliary["reconstruction"].total
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for mine, theirs in zip(*found, strict=True):
        assert mine is not None and theirs is not None and torch.equal(mine, theirs)


def test_compressed_slots_are_read_as_others_are() -> None:
    """At a rate of 1 the mean of a slot is the slot: compressed memory is a longer memory."""
    pooled = replace(LLAMA, compression="mean", reconstruction="none", sinks=0, rate=1, memory=4)
    both, long = (
        build(replace(pooled, **lengths))
        for lengths in ({"compressed": 8}, {"memory": 12, "compressed": 0})
    )
    long.load_state_dict(both.state_dict())
    tokens = stream(7, 2, pooled)
    torch.testing.assert_close(run(both, tokens)[0], run(long, tokens)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("segment", "rate"), [(8, 4), (6, 3), (5, 3), (7, 4), (4, 1)])
def test_compressed_slots_stand_at_the_centre_of_their_tokens(segment: int, rate: int) -> None:
    """Tokens enter memory at places that count from the first of the segment that is read next."""
    config = ModelConfig(
        positions="rotary", segment=segment, rate=rate, memory=9, compressed=3 * -(-segment // rate)
    )
    # The last three segments that memory has lost; the newest of them ends where memory begins.
    lost = torch.arange(-config.memory - 3 * segment, -config.memory, dtype=torch.float64)
    if segment % rate == 0:
        centres = lost.unflatten(0, (-1, rate)).mean(1)
    else:
        # Each segment's windows, one of them shorter, share its tokens evenly.
        span = segment / config.windows
        left = torch.arange(config.compressed, dtype=torch.float64) * span
        centres = lost[0] + left + (span - 1) / 2
    found = places(config, 0, torch.device("cpu"))
    torch.testing.assert_close(found[: config.compressed], centres, rtol=0, atol=1e-12)
    assert found[-1] - found[0] <= config.span - 1 and found[-1] == segment - 1


def test_sums_of_bfloat16_are_not_bfloat16() -> None:
    """Which has three digits."""
    generator = torch.Generator().manual_seed(0)

    def drawn(slots: int) -> Tensor:
        return torch.randn(2, 3, slots, 8, generator=generator).bfloat16()

    live = torch.ones(2, 16, dtype=torch.bool)
    old, new = (drawn(16), drawn(16), live), (drawn(4), drawn(4), live[:, :4])
    query = drawn(16)
    read = attention_reconstruction(query, old, new)
    exact = attention_reconstruction(
        query.float(),
        (old[0].float(), old[1].float(), live),
        (*(x.float() for x in new[:2]), new[2]),
    )
    torch.testing.assert_close(read.total, exact.total, rtol=2e-3, atol=0)
    slots, decoded = drawn(16)[:, 0], drawn(16)[:, 0]
    encoded = auto_encoding(slots, decoded, live)
    expected = (slots - decoded).double().square().sum().float()
    torch.testing.assert_close(encoded.total, expected, rtol=1e-5, atol=0)
    for loss in (read, encoded):
        assert loss.total.dtype == loss.power.dtype == torch.float32
