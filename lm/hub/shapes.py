"""Which models of transformers are configurations of this one: their config.json as a ModelConfig,
and their weights' names as ours.

A model is taken only if every part of it exists here. Any other is refused with what it has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from data.common.files import read_json
from lm.model.compression import USES_ATTENTION, adopted_rank
from lm.model.model_config import LEARNED, ModelConfig
from lm.runs.adopted_config import MemoryShape

SHAPES = ("llama", "mistral", "qwen2", "qwen3")
"""model_type of those that are; SmolLM, SmolLM2 and many others are llama by it."""
OTHERS = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss"), "experts"),
    **dict.fromkeys(("gemma", "gemma3_text", "gemma3"), "norms whose gains count from 1"),
    **dict.fromkeys(("gemma2",), "soft caps of its attention scores and logits"),
    **dict.fromkeys(("cohere", "gpt_neox", "gptj", "phi", "falcon"), "parallel sub-layers"),
    **dict.fromkeys(("gpt2", "opt", "gpt_bigcode", "xglm", "biogpt"), "learnt positions"),
    **dict.fromkeys(("bloom", "mpt"), "attention biases by distance (ALiBi)"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "latent attention and experts"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv"), "recurrent layers"),
    **dict.fromkeys(("jamba", "qwen3_next", "bamba", "zamba2"), "recurrent layers among others"),
    **dict.fromkeys(("olmo2", "olmo3", "glm4"), "norms of its sub-layers' outputs"),
    "smollm3": "layers without positions",
    "granite": "multipliers of its residual stream, attention and logits",
    "cohere2": "parallel sub-layers and layers without positions",
    "llama4_text": "layers without positions, and experts",
    "phi3": "maps stored as one and its own scaling of positions",
    "t5": "an encoder",
}
"""Some that are not, and what they have that this model lacks."""
SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
"""Kinds of scaling of rotary positions that exist here, by their names in transformers."""


def read_base(folder: Path) -> PreTrainedConfig:
    """The configuration of a model in a folder, with all defaults filled in.

    Raises:
        ValueError: there is none, or it is of a kind that is not known here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no model of transformers: config.json is missing; a GGUF file wants "
            "--gguf"
        )
    values = read_json(path)
    kind = values.get("model_type") if isinstance(values, dict) else None
    require_shape(kind, path)
    if values.get("auto_map"):
        raise ValueError(
            f"{path} asks for code of its own (auto_map), which is not run here; take the {kind} "
            "model that transformers itself knows"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # Of several libraries, each with errors of its own.
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no configuration of a model ({reason})") from None
    return config


def require_shape(kind: Any, where: Path) -> None:
    """ValueError for a kind of model that is not a configuration of this one."""
    if kind in SHAPES:
        return
    if not isinstance(kind, str):
        raise ValueError(  # noqa: TRY004
            f"{where} names no model_type; give a model that transformers saved"
        )
    known = ", ".join(SHAPES)
    if kind == "compressive_transformer":
        raise ValueError(f"{where} is that of an export: python -m lm.import_folder reads it")
    has = f"has {OTHERS[kind]}, which this model lacks" if kind in OTHERS else "is not known here"
    raise ValueError(f"{where}: model_type {kind} {has}; those that can be adopted: {known}")


def model_config(base: PreTrainedConfig, memory: MemoryShape, where: str) -> ModelConfig:
    """A model of transformers with a memory, as a configuration of ours.

    Args:
        base: its configuration.
        memory: what it gets.
        where: name of the model, which begins each complaint.

    Raises:
        ValueError: it has something that this model lacks, or positions that do not reach so far.
    """
    for why in (lacking(base), out_of_reach(base, memory)):
        if why is not None:
            raise ValueError(f"{where} {why}")
    kind, every = base.model_type, bool(getattr(base, "attention_bias", False))
    head = getattr(base, "head_dim", None)
    learnt = memory.compressed and memory.function in LEARNED
    thin = learnt and memory.function == "conv"
    merges = memory.compressed > 0 and memory.function not in USES_ATTENTION
    return ModelConfig(
        layers=base.num_hidden_layers,
        width=base.hidden_size,
        heads=base.num_attention_heads,
        key_value_heads=base.num_key_value_heads,
        head_size=head or base.hidden_size // base.num_attention_heads,
        query_key_norm=kind == "qwen3",
        attention_bias="inputs" if kind == "qwen2" else "all" if every else "none",
        feedforward=base.intermediate_size,
        activation="swiglu",
        feedforward_bias=bool(getattr(base, "mlp_bias", False)),
        norm_kind="rms",
        norm_epsilon=base.rms_norm_eps,
        embedding_scale=1.0,
        head_bias=False,
        tied=bool(base.tie_word_embeddings),
        positions=memory.positions,
        max_positions=base.max_position_embeddings,
        segment=memory.segment,
        memory=memory.memory,
        compressed=memory.compressed,
        rate=memory.rate,
        compression=memory.function,
        reconstruction="attention" if learnt else "none",
        compression_initial="mean" if learnt else "random",
        compression_rank=adopted_rank(base.hidden_size, memory.rate) if thin else None,
        proportional_attention=merges if memory.proportional is None else memory.proportional,
        sinks=memory.sinks,
        memory_layers=memory.memory_layers,
        **rotary(base.rope_parameters),
    )


def rotary(given: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions as transformers writes them, in our settings."""
    kind = given["rope_type"]
    settings: dict[str, Any] = {
        "rotary_base": float(given["rope_theta"]),
        "rotary_scaling": SCALINGS[kind],
    }
    if kind != "default":
        settings["rotary_factor"] = float(given["factor"])
    if kind == "llama3":
        settings["rotary_trained"] = int(given["original_max_position_embeddings"])
        bounds = (float(given["low_freq_factor"]), float(given["high_freq_factor"]))
        settings["rotary_bounds"] = bounds
    return settings


def lacking(base: PreTrainedConfig) -> str | None:
    """What a model of one of SHAPES has that this model lacks; None for nothing."""
    if getattr(base, "quantization_config", None):
        return "has quantised weights: take the model as it was before"
    if base.hidden_act != "silu":
        return f"has the activation {base.hidden_act}, which this model lacks: it knows silu"
    rope = base.rope_parameters
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_type"), str):
        return "has rotary positions that differ from layer to layer, which this model lacks"
    if rope["rope_type"] not in SCALINGS:
        return (
            f"stretches its rotary positions by {rope['rope_type']}, which this model lacks: it "
            f"knows {', '.join(SCALINGS)}"
        )
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        return f"turns {rope['partial_rotary_factor']} of each head, unlike others of its kind"
    return None


def out_of_reach(base: PreTrainedConfig, memory: MemoryShape) -> str | None:
    """What keeps a model from seeing as far as a memory reaches; None for nothing."""
    most, window = base.max_position_embeddings, sliding_window(base)
    less = "give less --memory, --compressed or --segment"
    if memory.reach > most:
        slots = "" if memory.positions == "rotary_slots" else ", or --positions rotary_slots"
        return (
            f"knows positions up to {most:,}, and a segment with all that its memory reaches has "
            f"{memory.reach:,}: {less}{slots}"
        )
    if window is not None and memory.reach > window:
        return (
            f"attends within a sliding window of {window:,} tokens, which this model lacks, and "
            f"its memory reaches {memory.reach:,}: {less} to stay inside"
        )
    return None


def sliding_window(base: PreTrainedConfig) -> int | None:
    """Tokens that some layer attends to at most; None where all see everything."""
    kinds = getattr(base, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    window: int | None = getattr(base, "sliding_window", None)
    return window


def parts_of(config: ModelConfig) -> dict[str, list[str]]:
    """Of each of our weights the names of theirs whose rows make it, one after the other; those of
    compression have none.
    """
    attention, feedforward = config.attention_bias, config.feedforward_bias
    maps: dict[str, tuple[list[str], bool]] = {
        "attention.query_key_value": (
            [f"self_attn.{part}_proj" for part in "qkv"],
            attention != "none",
        ),
        "attention.output": (["self_attn.o_proj"], attention == "all"),
        "feedforward.inner": (["mlp.gate_proj", "mlp.up_proj"], feedforward),
        "feedforward.outer": (["mlp.down_proj"], feedforward),
        "attention_norm": (["input_layernorm"], False),
        "feedforward_norm": (["post_attention_layernorm"], False),
    }
    if config.query_key_norm:
        maps["attention.query_norm"] = (["self_attn.q_norm"], False)
        maps["attention.key_norm"] = (["self_attn.k_norm"], False)
    names = {
        "embedding.weight": ["model.embed_tokens.weight"],
        "norm.weight": ["model.norm.weight"],
    }
    if not config.tied:
        names["head.weight"] = ["lm_head.weight"]
    for index in range(config.layers):
        here, there = f"blocks.{index}.", f"model.layers.{index}."
        for ours, (theirs, biased) in maps.items():
            for kind in ("weight", "bias") if biased else ("weight",):
                names[f"{here}{ours}.{kind}"] = [f"{there}{part}.{kind}" for part in theirs]
    return names


def rows_of(config: ModelConfig, name: str) -> list[int] | None:
    """How many rows of one of our weights each part of it has; None: one part has them all."""
    if ".attention.query_key_value." in name:
        stored = config.stored_heads * config.head_width
        return [config.heads * config.head_width, stored, stored]
    if ".feedforward.inner." in name:
        return [config.feedforward] * 2
    return None
