"""Small random models of transformers as it saves them, and ways to read what is made of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from data.tokenizers.registry import ByteTokenizer
from lm.inference.loading import LoadedRun
from lm.model.incremental import Reader
from lm.runs.adopted_config import MemoryShape

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
SHAPES: dict[str, PreTrainedConfig] = {
    "Llama": LlamaConfig(**SIZES),
    "SmolLM": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "Qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Qwen3": Qwen3Config(**SIZES, head_dim=16),
    "Mistral": MistralConfig(**SIZES, sliding_window=200),
}
SHORT = MemoryShape(segment=8, memory=16, compressed=8, rate=4, sinks=2, function="conv")
COVERING = replace(SHORT, memory=40)
TOKENS = 40


def saved(config: PreTrainedConfig, folder: Path, dtype: torch.dtype, shard: str = "5GB") -> Path:
    """A random model as transformers saves it, with the vocabulary of bytes beside it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    ByteTokenizer().save(folder)
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal names, types and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
        for name in one
    )


def by_segments(loaded: LoadedRun, ids: Tensor, keep: bool) -> Tensor:
    model, logits = loaded.model, []
    memory = model.empty_memory(len(ids))
    memory = model.keep_keys(memory) if keep else memory
    for part in ids.split(model.config.segment, dim=1):
        output = model(part, memory)
        memory = output.memory
        logits.append(output.predictions)
    return torch.cat(logits, dim=1)


def token_by_token(loaded: LoadedRun, ids: Tensor) -> Tensor:
    reader = Reader(loaded.model, loaded.model.empty_memory(len(ids)))
    hidden = [reader.read(ids[:, i : i + 1]) for i in range(ids.shape[1])]
    return loaded.model.head(torch.cat(hidden, dim=1))
