"""Token-by-token reading equals whole segments (teacher forcing), past several compressions."""

from dataclasses import replace

import pytest
import torch

from lm.model import ModelConfig
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
