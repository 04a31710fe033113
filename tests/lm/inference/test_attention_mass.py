"""Attention mass against the oracle's weights, on every backend, and its sums."""

from dataclasses import replace

import pytest
import torch

from lm.inference.attention_mass import AttentionMass
from lm.model.attention.relative import RelativeAttention
from lm.model.model_config import ModelConfig
from tests.lm.model import oracle
from tests.lm.model.cases import SHAPES, TINY, build, run, stream

CASES = {
    "relative": replace(TINY, memory=7, compressed=6),
    "rotary": replace(TINY, positions="rotary"),
    "Transformer-XL": replace(TINY, compressed=0),
    "no memory": replace(TINY, memory=0, compressed=0),
    "memory in one layer": replace(TINY, memory_layers=(1,)),
    "sinks": replace(TINY, sinks=2, memory=7, compressed=6),
    "most used": replace(TINY, compression="most_used", reconstruction="none"),
    "rotary, most used": SHAPES["rotary, most_used"],
}


def naive_shares(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """[L, S] from the weights that the oracle forms for one lane after five segments."""
    model, tokens = build(config), stream(6, 1, config)
    _, memory = run(model, tokens[:, :-4])
    noted: list[list[torch.Tensor]] = []
    softmax = oracle.softmax
    monkeypatch.setattr(oracle, "softmax", lambda s: noted.append(softmax(s)) or noted[-1])
    monkeypatch.setattr(oracle.Oracle, "auxiliary", lambda *_: (torch.zeros(()), 0))
    oracle.Oracle(model).segment(tokens[0, -4:].tolist(), oracle.live_slots(memory, 0))
    slots = config.sinks + config.slots + config.segment
    shares = torch.zeros(config.layers, slots, dtype=torch.float64)
    for number, weights in enumerate(noted):
        layer, query = number // (config.heads * 4), number % 4
        first = shares.shape[1] - 4 + query + 1 - len(weights)
        for place, weight in enumerate(weights):
            shares[layer, first + place] += float(weight.detach()) / (config.heads * 4)
    return shares


@pytest.mark.parametrize("name", CASES)
def test_equals_the_weights_of_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CASES[name]
    model, tokens = build(config), stream(6, 2, config)
    _, memory = run(model, tokens[:, :-4])
    plain = model(tokens[:, -4:], memory).predictions
    with AttentionMass(model) as mass:
        output = model(tokens[:, -4:], memory)
        mass.add(torch.tensor([True, False]))
    torch.testing.assert_close(output.predictions, plain)
    expected = naive_shares(config, monkeypatch)
    torch.testing.assert_close(mass.shares_LS, expected)
    stores = mass.by_store()
    torch.testing.assert_close(sum(stores.values()), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(stores["segment"], expected[:, -4:].sum(1))
    far = config.sinks + config.compressed
    torch.testing.assert_close(stores["compressed"], expected[:, config.sinks : far].sum(1))
    if config.sinks:
        assert stores["pinned"].min() > 0


def test_buckets_go_from_old_to_new() -> None:
    config = replace(TINY, memory=13, segment=4, compressed=2)
    model = build(config)
    mass = AttentionMass(model)
    mass.lanes += 1
    mass.received_LS += torch.arange(19)
    ages = mass.by_age(3)
    factor = config.heads * config.segment
    assert (ages["compressed"] * factor)[0].tolist() == pytest.approx([0, 1])
    assert (ages["memory"] * factor)[0].tolist() == pytest.approx(
        [2 + 3 + 4 + 5 + 6, 7 + 8 + 9 + 10, 11 + 12 + 13 + 14]
    )
    assert (ages["segment"] * factor)[1].tolist() == pytest.approx([15 + 16, 17, 18])


def test_full_lanes_only_and_the_model_is_left_as_it_was() -> None:
    model, tokens = build(TINY), stream(5, 2, TINY)
    memory = model.empty_memory(2)
    with AttentionMass(model) as mass:
        for part in tokens.split(4, dim=1):
            full = mass.full_lanes(memory)
            memory = model(part, memory.reset(torch.tensor([False, True]))).memory
            mass.add(full & torch.tensor([True, False]))
    # Memory fills with the first segment, three compressed slots with the second and third.
    assert mass.lanes == 2
    assert not model.layers[0].attention.counts_attention
    assert not model.layers[0].attention._forward_hooks
    with pytest.raises(ValueError, match="both memories full"):
        _ = AttentionMass(model).shares_LS


def test_two_ranks_add_up() -> None:
    model = build(TINY)
    mass = AttentionMass(model)
    mass.lanes += 2
    mass.received_LS += 3
    before = mass.shares_LS
    mass.reduce(lambda tensor: tensor * 2)
    assert mass.lanes == 4
    torch.testing.assert_close(mass.shares_LS, before)


def test_the_fused_backend_steps_aside() -> None:
    """It never forms the weights; with fused kernels it is the usual one on a GPU."""
    config = replace(TINY, sinusoids=4)
    with torch.device("meta"):
        attention = RelativeAttention(config)
        assert attention.backend() == "fused"
        attention.counts_attention = True
        assert attention.backend() == "shift"
