"""Counted work is the work that is done: each part against the products that torch sees."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lm.model.flops import scoring_flops, training_flops
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Likelihood, Segment, terms_of, total_loss
from lm.objectives.readings import Readings
from lm.objectives.readings_config import ReadingsConfig
from tests.lm.model.cases import SHAPES, TINY, VOCABULARY

LANES = 3
CASES = SHAPES | {
    "adaptive": replace(TINY, cutoffs=(4, 8), cluster_divisor=2),
    "adaptive, untied, post-norm": replace(TINY, cutoffs=(3,), tied=False, norm="post"),
    "dilated, not trained": replace(TINY, compression="dilated", memory=9, reconstruction="none"),
}


def full_model(config: ModelConfig, training: bool):
    """A model whose products torch's counter sees, a segment and full memory in every lane."""
    torch.manual_seed(0)
    config = replace(config, backend="shift" if config.positions == "relative" else "auto")
    model = CompressiveTransformer(config, VOCABULARY).train(training)
    memory = model.empty_memory(LANES)
    tokens = torch.randint(VOCABULARY, (LANES, config.segment + 1))
    with torch.no_grad():
        for _ in range(3 + (config.memory + config.rate * config.compressed) // config.segment):
            memory = model(tokens[:, :-1], memory).memory
    assert bool((memory.memory_count == config.memory).all())
    assert bool((memory.compressed_count == config.compressed).all())
    return model, tokens, memory


def count_products() -> FlopCounterMode:
    """A counter that knows torch's fused attention for CPUs as what plain attention does."""

    def forward(query, key, value, *_, **__) -> int:
        return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])

    def backward(_, *shapes, **options) -> int:
        return 2 * forward(*shapes, **options)

    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def bias_products(model: CompressiveTransformer) -> int:
    """Operations of the bias of positions with all encoded distances, which the plain way of
    attention has apart from those of queries, once for all lanes.
    """
    total = 0
    for block in model.layers:
        if model.config.positions == "relative":
            _, key_HdW, _, _ = block.attention.tables()
            total += 2 * key_HdW.numel()
    return total


def shares(config: ModelConfig, targets) -> list[float] | None:
    if config.cutoffs is None:
        return None
    edges = [0, *config.cutoffs, VOCABULARY]
    inside = [((targets >= low) & (targets < high)) for low, high in pairwise(edges)]
    return [each.double().mean().item() for each in inside]


@pytest.mark.parametrize("name", CASES)
def test_training_does_the_products_that_are_counted(name):
    config = CASES[name]
    model, tokens, memory = full_model(config, training=True)
    counter = count_products()
    with sdpa_kernel(SDPBackend.MATH), counter:
        output = model(tokens[:, :-1], memory, tokens[:, 1:])
        loss = output.predictions.sum()
        for total, _ in output.auxiliary.values():
            loss = loss + total
        loss.backward()
    counted = training_flops(config, VOCABULARY, LANES, shares(config, tokens[:, 1:]))
    expected = counted.total * LANES * config.segment + 3 * bias_products(model)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["memory longer", "rotary", "adaptive"])
def test_further_readings_are_further_lanes(name, every, gated):
    config = CASES[name]
    model, tokens, memory = full_model(config, training=True)
    made = ReadingsConfig(local="segment", far=True, agreement=0.1, every=every)
    readings = Readings(made)
    every_one = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    segment = Segment(tokens[:, :-1], tokens[:, 1:], every_one, every_one[:, 0])
    counter = count_products()
    with sdpa_kernel(SDPBackend.MATH), counter:
        read = readings.read(model, segment, memory, False, 0)
        terms = terms_of([Likelihood(), readings], read)
        if gated:
            auxiliary = {"agreement": terms.pop("agreement")}
            parameters = list(model.parameters())
            total_loss(auxiliary).backward(retain_graph=True, inputs=parameters)
        total_loss(terms, weights=readings.weights(0)).backward()
    counted = training_flops(config, VOCABULARY, LANES, readings=made.lanes, gated=gated)
    expected = counted.total * LANES * config.segment + (5 if gated else 3) * bias_products(model)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("learn", ["compression", "lora"])
@pytest.mark.parametrize("name", ["memory longer", "Llama's shape, low rank"])
def test_fixed_weights_have_no_products_of_their_gradients(name, learn):
    """Where compression alone learns, and where something in every layer does, here norms."""
    config = CASES[name]
    model, tokens, memory = full_model(config, training=True)
    for key, parameter in model.named_parameters():
        norms = learn == "lora" and "norm" in key
        parameter.requires_grad_(".compression." in key or norms)
    counter = count_products()
    with sdpa_kernel(SDPBackend.MATH), counter:
        output = model(tokens[:, :-1], memory, tokens[:, 1:])
        loss = output.auxiliary["reconstruction"].total
        (loss + output.predictions.sum() if learn == "lora" else loss).backward()
    counted = training_flops(config, VOCABULARY, LANES, learn=learn)
    expected = counted.total * LANES * config.segment + bias_products(model)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", ["memory longer", "dilated", "Transformer-XL", "rotary", "swiglu"])
def test_scoring_does_the_products_that_are_counted(name, kept):
    config = CASES[name]
    model, tokens, memory = full_model(config, training=False)
    memory = model.keep_keys(memory) if kept else memory
    counter = count_products()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(tokens[:, :-1], memory, tokens[:, 1:])
    counted = scoring_flops(config, VOCABULARY, LANES, kept)
    expected = counted.total * LANES * config.segment + bias_products(model)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


def test_kept_keys_save_the_projection_of_memory():
    """Counted for the 24-layer Enwik8 model at its own lengths, and at short segments."""
    own = ModelConfig(layers=24, width=1024, heads=8, feedforward=3072)
    saved = {}
    for lengths in ((768, 768, 1152), (128, 1024, 1024)):
        segment, memory, compressed = lengths
        config = replace(own, segment=segment, memory=memory, compressed=compressed, rate=3)
        fresh, kept = (scoring_flops(config, 256, 8, kept).total for kept in (False, True))
        saved[lengths] = 1 - kept / fresh
    assert saved == {
        (768, 768, 1152): pytest.approx(0.172, abs=5e-4),
        (128, 1024, 1024): pytest.approx(0.605, abs=5e-4),
    }
