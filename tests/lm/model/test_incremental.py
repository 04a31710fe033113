"""Reading in parts of any size, each lane at its own place, equals whole segments: logits, memory
and what follows, past several compressions.
"""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lm.model.incremental import Reader
from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from tests.lm.model.cases import SHAPES, TINY, build, run, stream

LANES = {name: SHAPES[name] for name in ("memory longer", "rotary", "most_used, memory longer")}
LANES |= {name: SHAPES[name] for name in ("sinks, rotary", "key-value heads, rotary, wide heads")}
LANES |= {name: SHAPES[name] for name in ("attended zeros", "memory in one layer", "dilated")}
LANES |= {name: SHAPES[name] for name in ("filters", "filters, no memory at all")}
LANES["Llama's shape, low rank"] = SHAPES["Llama's shape, low rank"]


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def reader_of(model: CompressiveTransformer, lanes: int) -> Reader:
    return Reader(model, model.empty_memory(lanes))


def same_memory(mine: MemoryState, theirs: MemoryState) -> None:
    ours, others = mine.tensors(), theirs.tensors()
    kept = {name for name in ours if name.startswith(("keys.", "values."))}
    assert ours.keys() - kept == others.keys() - kept
    for name in ours.keys() - kept:
        close(ours[name], others[name])


@pytest.mark.parametrize("cut", [1, 3, 100], ids=lambda c: f"parts of {c}")
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_any_cut_of_the_stream_gives_the_same_logits(config: ModelConfig, cut: int) -> None:
    model = build(config).eval()
    tokens = stream(8, 2, config)
    expected, memory = run(model, tokens)
    reader = reader_of(model, 2)
    hidden = [reader.read(part) for part in tokens.split(cut, dim=1)]
    close(model.head(torch.cat(hidden, dim=1)), expected)
    close(reader.logits(), expected[:, -1])
    assert reader.lengths == [0, 0]
    if config.empty == "masked":
        same_memory(reader.memory, memory)


@pytest.mark.parametrize("config", LANES.values(), ids=LANES.keys())
@pytest.mark.parametrize("seed", range(3))
def test_lanes_read_what_they_like_and_give_what_they_give_alone(
    config: ModelConfig, seed: int
) -> None:
    """Lanes of different lengths in ragged parts: some read nothing, some several segments."""
    model, rng = build(config).eval(), random.Random(seed)
    tokens = stream(9, 4, config)
    expected, _ = run(model, tokens)
    reader, at, logits = reader_of(model, 4), [0] * 4, [[] for _ in range(4)]
    while min(at) < tokens.shape[1]:
        most = rng.choice([1, 1, 2, 3, config.segment, 2 * config.segment + 1])
        counts = [min(rng.randint(0, most), tokens.shape[1] - place) for place in at]
        parts = torch.zeros(4, most, dtype=torch.int64)
        for lane, (place, count) in enumerate(zip(at, counts, strict=True)):
            parts[lane, :count] = tokens[lane, place : place + count]
        output = model.head(reader.read(parts, counts))
        for lane, count in enumerate(counts):
            logits[lane].append(output[lane, :count])
            at[lane] += count
        close(reader.logits()[at.index(max(at))], expected[at.index(max(at)), max(at) - 1])
    for lane in range(4):
        close(torch.cat(logits[lane]), expected[lane])


@pytest.mark.parametrize("config", LANES.values(), ids=LANES.keys())
@pytest.mark.parametrize("read", [0, 3, 6, 27])
def test_copies_share_memory_and_go_their_own_ways(config: ModelConfig, read: int) -> None:
    model = build(config).eval()
    prompts, ends = stream(8, 2, config), stream(9, 6, config, seed=2)
    reader = reader_of(model, 2)
    reader.read(prompts[:, :read])
    copies = reader.repeat(3)
    assert copies.lanes == 6 and copies.memory.lanes == 2
    whole = torch.cat([prompts[:, :read].repeat_interleave(3, dim=0), ends], dim=1)
    whole = whole[:, : whole.shape[1] // config.segment * config.segment]
    expected, _ = run(model, whole)
    logits = [model.head(copies.read(part)) for part in whole[:, read:].split(1, dim=1)]
    close(torch.cat(logits, dim=1), expected[:, read:])
    assert copies.memory.lanes == 6
    # The original has not noticed.
    close(model.head(reader.read(whole[::3, read:])), expected[::3, read:])


def test_lanes_are_chosen_and_repeated_in_any_order() -> None:
    model = build(TINY).eval()
    tokens = stream(6, 3, TINY)
    expected, _ = run(model, tokens)
    reader = reader_of(model, 3)
    reader.read(tokens, [5, 9, 14])
    for lanes in ([2, 0, 1], [1], [0, 0, 2], [2, 2, 1, 1]):
        chosen = reader.select(lanes)
        places = [[5, 9, 14][lane] for lane in lanes]
        for step in range(10):
            following = torch.stack(
                [tokens[lane, place + step] for lane, place in zip(lanes, places, strict=True)]
            )
            chosen.read(following[:, None])
            for row, (lane, place) in enumerate(zip(lanes, places, strict=True)):
                close(chosen.logits()[row], expected[lane, place + step])
    shared = reader.select([0, 0, 2, 2])
    assert shared.memory.lanes == 2 and shared.select([1, 2]).memory.lanes == 2


def test_a_token_writes_its_row_and_no_more() -> None:
    """The open segment's room stays where it is; memory is made anew only at a segment's end."""
    model = build(TINY).eval()
    reader = reader_of(model, 2)
    rooms, memories = [], []
    for part in stream(3, 2, TINY).split(1, dim=1):
        before = reader.layers[1].segment.key_BKnd.clone()
        place = reader.lengths[0]
        reader.read(part)
        changed = (reader.layers[1].segment.key_BKnd != before).any(-1).any(1)
        assert changed.nonzero()[:, 1].tolist() == [place, place]
        rooms.append(reader.layers[1].segment.key_BKnd.data_ptr())
        memories.append(reader.memory)
    assert len(set(rooms)) == 1
    moved = [a is not b for a, b in pairwise(memories)]
    assert [place + 1 for place, new in enumerate(moved) if new] == [3, 7, 11]


def test_reading_in_training_mode_is_refused() -> None:
    model = build(TINY)
    with pytest.raises(ValueError, match="eval"):
        reader_of(model.train(), 1)


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
        close(output.predictions, expected.predictions)
        plain, kept = expected.memory, output.memory
        assert kept.kept and not plain.kept


def test_attention_is_summed_in_float32_token_by_token() -> None:
    """In bfloat16 small shares of many tokens were lost, and other slots kept than by segments."""
    config = replace(
        TINY, layers=1, segment=256, memory=256, compressed=64, rate=4, positions="rotary",
        compression="most_used", reconstruction="none", width=64, heads=8,
    )  # fmt: skip
    model = build(config).to(torch.bfloat16).eval()
    torch.nn.init.normal_(model.layers[0].attention.query_key_value.weight, std=0.05)
    first, second = stream(3, 1, config).split([512, 256], dim=1)
    with torch.no_grad():
        _, start = run(model, first)
        whole = model(second, start).memory.compressed[0][0, -64:]
        reader = Reader(model, start)
        for token in second.split(1, dim=1):
            reader.read(token)
    kept = reader.memory.compressed[0][0, -64:]
    same = (torch.cdist(kept.double(), whole.double()).min(dim=1).values == 0).float().mean()
    assert same > 0.85


def test_kept_keys_are_refused_in_training() -> None:
    model = build(TINY).eval()
    memory = model.keep_keys(model.empty_memory(1))
    with pytest.raises(ValueError, match="kept keys and values"):
        model.train()(stream(1, 1, TINY), memory)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["few sinusoids", *LANES])
def test_every_device_reads_alike(name: str, device: str) -> None:
    """Whole segments by the device's own route of attention, parts by the one that all share."""
    config, counts = SHAPES[name], (13, 2, 8)
    model, tokens = build(config).eval(), stream(8, 3, config)
    expected, _ = run(model, tokens)
    model.to(device)
    reader = reader_of(model, 3)
    logits = model.head(reader.read(tokens[:, :13].to(device), counts)).cpu()
    for lane, count in enumerate(counts):
        close(logits[lane, :count], expected[lane, :count])
        alone, rest = reader.select([lane]), tokens[lane : lane + 1, count:].to(device)
        hidden = torch.cat([alone.read(part) for part in rest.split(1, dim=1)], dim=1)
        close(model.head(hidden).cpu()[0], expected[lane, count:])
