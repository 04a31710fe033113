"""Token-by-token reading equals whole segments (teacher forcing), past several compressions."""

from dataclasses import replace

import pytest
import torch

from lm.model import MemoryState, ModelConfig
from lm.model.incremental import close_segment, extend, open_segment, read
from tests.lm.model.cases import SHAPES, TINY, build, run, stream


@pytest.mark.parametrize("cut", [1, 3, 5, 100], ids=lambda c: f"parts of {c}")
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_any_cut_of_the_stream_gives_the_same_logits(config: ModelConfig, cut: int) -> None:
    model = build(config).eval()
    tokens = stream(8, 2, config)
    expected, memory = run(model, tokens)
    segment = open_segment(model, model.empty_memory(2))
    logits = []
    for part in tokens.split(cut, dim=1):
        some, segment = read(model, part, segment)
        logits.append(some)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-9, atol=1e-11)
    assert segment.length == 0
    for mine, theirs in zip(
        segment.memory.memory + segment.memory.compressed,
        memory.memory + memory.compressed,
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_an_open_segment_is_a_value() -> None:
    """Two continuations of one prefix do not disturb each other."""
    model = build(TINY).eval()
    tokens = stream(4, 1, TINY)
    _, prefix = read(model, tokens[:, :6], open_segment(model, model.empty_memory(1)))
    first, _ = read(model, tokens[:, 6:], prefix)
    read(model, tokens[:, :9], prefix)
    again, _ = read(model, tokens[:, 6:], prefix)
    assert torch.equal(first, again)


def test_too_many_tokens_and_early_commits_are_refused() -> None:
    model = build(replace(TINY))
    segment = open_segment(model, model.empty_memory(1))
    with pytest.raises(ValueError, match="room for 4"):
        extend(model, torch.zeros(1, 5, dtype=torch.int64), segment)
    with pytest.raises(ValueError, match="enters memory when"):
        close_segment(model, segment)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_kept_keys_and_values_change_nothing(config: ModelConfig) -> None:
    """Whole segments, with a lane reset on the way and through lane slices."""
    model = build(config).eval()
    plain = model.empty_memory(2)
    kept = model.keep_keys(plain)
    for index, part in enumerate(stream(7, 2, config).split(config.segment, dim=1)):
        if index == 4:
            reset = torch.tensor([False, True])
            plain, kept = plain.reset(reset), kept.reset(reset)
        kept = MemoryState.concatenate([kept.lane_slice(slice(i, i + 1)) for i in range(2)])
        expected, output = model(part, plain), model(part, kept)
        torch.testing.assert_close(output.predictions, expected.predictions, rtol=1e-9, atol=1e-11)
        plain, kept = expected.memory, output.memory
        assert len(kept.keys) == config.layers and not plain.keys


def test_kept_keys_are_refused_in_training() -> None:
    model = build(TINY).eval()
    memory = model.keep_keys(model.empty_memory(1))
    with pytest.raises(ValueError, match="kept keys and values"):
        model.train()(stream(1, 1, TINY), memory)
