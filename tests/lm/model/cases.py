"""Small models that differ in one choice each, and streams for them to read."""

from dataclasses import replace

import torch
from torch import Tensor

from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer

VOCABULARY = 11
TINY = ModelConfig(
    layers=2, width=8, heads=2, feedforward=12, segment=4, memory=4, compressed=3, rate=2
)
LLAMA = replace(
    TINY,
    heads=4,
    key_value_heads=2,
    norm_kind="rms",
    positions="rotary",
    activation="swiglu",
    feedforward_bias=False,
    head_bias=False,
    embedding_scale=1.0,
    memory=9,
    sinks=2,
)
"""The shape of a trained model that has been given a memory."""
SHAPES = {
    "memory equals segment": TINY,
    "memory longer": replace(TINY, memory=7),
    "memory shorter": replace(TINY, memory=2),
    "no memory": replace(TINY, memory=0),
    "rate equals segment": replace(TINY, rate=4, compressed=2),
    "one compressed slot": replace(TINY, compressed=1),
    "rate 3, odd memory": replace(TINY, segment=3, rate=3, memory=5, compressed=4),
    "rate 1": replace(TINY, rate=1, compressed=6),
    "segment no multiple of rate": replace(TINY, segment=5, rate=3, memory=6, compressed=5),
    "rate longer than segment": replace(TINY, segment=3, rate=4, memory=4),
    "Transformer-XL": replace(TINY, compressed=0, memory=6),
    "gelu, untied, one head": replace(TINY, activation="gelu", tied=False, heads=1),
    "extra kernel": replace(TINY, extra_kernel=3, segment=5, rate=3),
    "dilated": replace(TINY, compression="dilated", memory=9),
    "dilated, extra kernel": replace(
        TINY, compression="dilated", extra_kernel=1, memory=9, segment=5, rate=3
    ),
    "auto-encoding": replace(TINY, reconstruction="auto_encoding", segment=5, rate=3, memory=6),
    "auto-encoding, dilated": replace(
        TINY, reconstruction="auto_encoding", compression="dilated", memory=7, extra_kernel=0
    ),
    **{
        f"{name}, {label}": replace(TINY, compression=name, reconstruction="none", **lengths)
        for name in ("mean", "max", "most_used", "low_pass")
        for label, lengths in {
            "memory longer": {"memory": 7},
            "memory shorter": {"memory": 2, "segment": 5, "rate": 3},
        }.items()
    },
    "few sinusoids": replace(TINY, sinusoids=2),
    "few sinusoids, Transformer-XL": replace(TINY, sinusoids=4, compressed=0),
    "rotary": replace(TINY, positions="rotary", memory=7),
    "rotary, memory shorter": replace(TINY, positions="rotary", memory=2, segment=5, rate=3),
    "rotary, proportional": replace(
        TINY, positions="rotary", proportional_attention=True, memory=7, memory_layers=(1,), sinks=1
    ),
    "rotary, memory shorter, proportional": replace(
        TINY, positions="rotary", proportional_attention=True, memory=2, segment=5, rate=3
    ),
    "rotary, slots": replace(TINY, positions="rotary_slots"),
    "rotary, Transformer-XL": replace(TINY, positions="rotary", compressed=0),
    "rotary, most_used": replace(
        TINY, positions="rotary", compression="most_used", reconstruction="none"
    ),
    "leaky inputs": replace(TINY, leaky_inputs=True, segment=5, rate=3),
    "leaky inputs, memory shorter, rotary": replace(
        TINY, leaky_inputs=True, memory=2, positions="rotary", sinks=1
    ),
    "leaky inputs in one layer, post-norm, zeros attended": replace(
        TINY, leaky_inputs=True, memory_layers=(1,), norm="post", empty="attended", memory=7
    ),
    "filters": replace(TINY, filters=5, filter_longest=40.0, segment=5, rate=3),
    "filters and leaky inputs, rotary, one filter": replace(
        TINY, filters=1, filter_longest=9.0, positions="rotary", leaky_inputs=True, sinks=1
    ),
    "filters, no memory at all": replace(TINY, filters=3, memory=0, compressed=0),
    "filters, memory in one layer, post-norm": replace(
        TINY, filters=3, memory_layers=(1,), norm="post"
    ),
    "filters, attended zeros, gate": replace(TINY, filters=3, empty="attended", gate="gru"),
    "post-norm": replace(TINY, norm="post"),
    "swiglu": replace(TINY, activation="swiglu"),
    "geglu": replace(TINY, activation="geglu"),
    **{
        f"gate {name}": replace(TINY, gate=name)
        for name in ("relu", "input", "output", "highway", "sigmoid_tanh", "gru")
    },
    "key-value heads": replace(TINY, heads=4, key_value_heads=2, memory=7),
    "key-value heads, rotary, wide heads": replace(
        TINY, positions="rotary", heads=4, key_value_heads=1, head_size=4
    ),
    "heads wider than their share": replace(TINY, head_size=6, memory=2, segment=5, rate=3),
    "query-key norm": replace(TINY, query_key_norm=True),
    "query-key norm, rotary": replace(TINY, query_key_norm=True, positions="rotary"),
    "biased inputs of attention": replace(TINY, attention_bias="inputs", memory=7),
    "all biases of attention, rotary": replace(TINY, attention_bias="all", positions="rotary"),
    "no biases, rms": replace(TINY, feedforward_bias=False, head_bias=False, norm_kind="rms"),
    "rms, post-norm": replace(TINY, norm_kind="rms", norm_epsilon=1e-2, norm="post"),
    "silu, embeddings as they are": replace(TINY, activation="silu", embedding_scale=1.0),
    "rotary, half turned": replace(TINY, positions="rotary", rotary_share=0.5, memory=7),
    "rotary, slow": replace(TINY, positions="rotary", rotary_base=50.0),
    "rotary, stretched": replace(
        TINY, positions="rotary", rotary_scaling="linear", rotary_factor=4.0
    ),
    "rotary, Llama 3's": replace(
        TINY,
        positions="rotary",
        rotary_scaling="llama3",
        rotary_factor=8.0,
        rotary_trained=32,
        rotary_bounds=(1.0, 4.0),
        head_size=8,
    ),
    **{
        f"sinks, {label}": replace(TINY, sinks=2, **settings)
        for label, settings in {
            "relative": {"memory": 7},
            "relative, learnt": {"sink": "learnt"},
            "relative, Transformer-XL": {"compressed": 0, "memory": 6},
            "rotary": {"positions": "rotary"},
            "rotary, learnt": {"positions": "rotary", "sink": "learnt"},
            "memory shorter": {"memory": 2, "segment": 5, "rate": 3},
            "most used": {"compression": "most_used", "reconstruction": "none", "memory": 7},
            "few sinusoids": {"sinusoids": 2},
            "in one layer": {"memory_layers": (1,)},
        }.items()
    },
    "memory in one layer": replace(TINY, memory_layers=(1,)),
    **{
        f"Llama's shape, {label}": replace(LLAMA, **settings)
        for label, settings in {
            "conv": {},
            "mean": {"compression": "mean", "reconstruction": "none"},
            "most used": {"compression": "most_used", "reconstruction": "none"},
            "dilated": {"compression": "dilated"},
            "around the mean": {"compression_initial": "mean", "segment": 5, "rate": 3},
            "around the mean, extra kernel": {"compression_initial": "mean", "extra_kernel": 1},
            "around the mean, dilated": {"compression": "dilated", "compression_initial": "mean"},
            "channels": {"compression_initial": "mean", "compression_rank": 0},
            "low rank": {
                "compression_initial": "mean",
                "compression_rank": 3,
                "segment": 5,
                "rate": 3,
            },
        }.items()
    },
    "around the mean, auto-encoding": replace(
        TINY, compression_initial="mean", compression_rank=2, reconstruction="auto_encoding"
    ),
    "attended zeros": replace(TINY, empty="attended", memory=6),
    "attended zeros, auto-encoding": replace(
        TINY, empty="attended", memory=5, segment=5, rate=3, reconstruction="auto_encoding"
    ),
    **{
        f"attended zeros, {name}": replace(
            TINY, empty="attended", memory=2, compression=name, reconstruction="none"
        )
        for name in ("mean", "max", "low_pass")
    },
    "attended zeros, biased attention": replace(
        TINY, empty="attended", memory=6, attention_bias="inputs"
    ),
    "wide windows, memory in one layer": replace(TINY, extra_kernel=1, memory_layers=(1,)),
    "wide windows, Transformer-XL": replace(TINY, extra_kernel=3, compressed=0, memory=2),
    "mean, extra kernel": replace(TINY, compression="mean", reconstruction="none", extra_kernel=1),
    "max, extra kernel": replace(TINY, compression="max", reconstruction="none", extra_kernel=2),
}


def build(config: ModelConfig, seed: int = 0) -> CompressiveTransformer:
    """A float64 model whose biases are not zero, so that every term counts."""
    torch.manual_seed(seed)
    model = CompressiveTransformer(config, VOCABULARY).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.3)
    return model


def stream(segments: int, lanes: int, config: ModelConfig, seed: int = 1) -> Tensor:
    """Random tokens [lanes, segments * segment]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (lanes, segments * config.segment), generator=generator)


def run(model: CompressiveTransformer, tokens: Tensor) -> tuple[Tensor, MemoryState]:
    """Logits of a whole stream, segment by segment."""
    memory = model.empty_memory(tokens.shape[0])
    logits = []
    for part in tokens.split(model.config.segment, dim=1):
        output = model(part, memory)
        memory = output.memory.detach()
        logits.append(output.predictions)
    return torch.cat(logits, dim=1), memory
