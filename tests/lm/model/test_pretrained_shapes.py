"""Random models of transformers as configurations of this model: equal logits while memory covers
the text, by segments, by kept keys and token by token.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lm.hub.adopting import read_weights
from lm.hub.pretrained import Source
from lm.hub.shapes import model_config
from lm.model.incremental import Reader
from lm.model.transformer import CompressiveTransformer
from lm.runs.adopted_config import MemoryShape

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "Llama": lambda: LlamaConfig(**SIZES),
    "Llama 3": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "Llama, stretched": lambda: LlamaConfig(
        **SIZES,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "Llama, wide heads": lambda: LlamaConfig(**SIZES | {"num_key_value_heads": 1}, head_dim=16),
    "Qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "Mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "Mistral, wide window": lambda: MistralConfig(**SIZES, sliding_window=100),
}
SEGMENT, SEGMENTS, LANES = 8, 5, 2
MEMORY = MemoryShape(
    segment=SEGMENT, memory=SEGMENT * SEGMENTS, compressed=4, sinks=2, function="conv"
)


class ExactRotary(nn.Module):
    """Their cosines and sines with angles in float64; theirs are formed in float32."""

    def __init__(self, module: nn.Module, frequencies: Tensor) -> None:
        super().__init__()
        self.scaling, self.frequencies = module.attention_scaling, frequencies

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[:, :, None].double() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


def make_exact(theirs: PreTrainedModel, ours: CompressiveTransformer) -> None:
    """Have their model compute in float64 where it always goes through float32."""
    from lm.model.attention.rotary import frequencies

    def exact_norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
        epsilon = module.variance_epsilon
        return lambda x: nn.functional.rms_norm(x, x.shape[-1:], module.weight, epsilon)

    theirs.double()
    for module in theirs.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = exact_norm(module)  # type: ignore[method-assign]
    rotary = theirs.model.rotary_emb
    expected = frequencies(ours.config, torch.device("cpu"))
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)
    theirs.model.rotary_emb = ExactRotary(rotary, expected)


@pytest.fixture(params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, CompressiveTransformer]:
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(SHAPES[request.param](), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    source = Source("it", theirs.config, theirs.state_dict(), Path())
    config = model_config(theirs.config, MEMORY, "it")
    ours = CompressiveTransformer(config, SIZES["vocab_size"]).eval()
    ours.load_state_dict(read_weights(source, config, None), strict=config.tied is False)
    return theirs, ours


@torch.no_grad()
def by_segments(model: CompressiveTransformer, tokens: Tensor, keep: bool) -> Tensor:
    memory = model.empty_memory(len(tokens))
    memory = model.keep_keys(memory) if keep else memory
    logits = []
    for part in tokens.split(SEGMENT, dim=1):
        output = model(part, memory)
        memory = output.memory
        logits.append(output.predictions)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def token_by_token(model: CompressiveTransformer, tokens: Tensor) -> Tensor:
    reader = Reader(model, model.empty_memory(len(tokens)))
    hidden = [reader.read(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]
    return model.head(torch.cat(hidden, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gives_the_logits_of_transformers(
    pair: tuple[PreTrainedModel, CompressiveTransformer], dtype: torch.dtype
) -> None:
    theirs, ours = pair
    tolerance = 1e-4
    if dtype == torch.float64:
        ours.double()
        make_exact(theirs, ours)
        tolerance = 1e-10
    tokens = torch.randint(SIZES["vocab_size"], (LANES, SEGMENT * SEGMENTS))
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
    assert expected.std() > 0.5
    for logits in (
        by_segments(ours, tokens, keep=False),
        by_segments(ours, tokens, keep=True),
        by_segments(ours.train(), tokens, keep=False),
        token_by_token(ours.eval(), tokens),
    ):
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
