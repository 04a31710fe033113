"""A Compressive Transformer's configuration as transformers keeps it."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from lm.model.model_config import ModelConfig

FOREIGN = ("quantization_config", "attn_implementation", "experts_implementation", "kernel_config")
"""Keys by which transformers would load other weights, or code from elsewhere."""


def refuse_foreign(values: Mapping[str, Any]) -> None:
    """ValueError for a configuration that asks for quantised weights or for other kernels."""
    for key, value in values.items():
        if key.lstrip("_") in FOREIGN and value not in (None, "eager"):
            raise ValueError(f"{key} {value!r} is not known here: remove it from config.json")


class CompressiveTransformerConfig(PreTrainedConfig):
    """The fields of ModelConfig by their names, and the size of the vocabulary."""

    model_type = "compressive_transformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "feedforward",
    }

    def __init__(self, vocab_size: int = 256, **kwargs: Any) -> None:
        refuse_foreign(kwargs)
        self.vocab_size = vocab_size
        defaults = asdict(ModelConfig())
        for name, default in defaults.items():
            setattr(self, name, kwargs.pop(name, default))
        kwargs["tie_word_embeddings"] = self.tied
        super().__init__(**kwargs)

    @classmethod
    def of(
        cls, model: ModelConfig, vocabulary: int, **kwargs: Any
    ) -> "CompressiveTransformerConfig":
        """The configuration of a model over a vocabulary of so many tokens."""
        return cls(vocab_size=vocabulary, **asdict(model), **kwargs)

    def sizes(self) -> ModelConfig:
        """As the model itself knows it; ValueError where it is impossible."""
        values = {field.name: getattr(self, field.name) for field in fields(ModelConfig)}
        # JSON has no tuples.
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        try:
            return ModelConfig(**(values | lists))
        except TypeError as error:
            raise ValueError(f"config.json has a field of a wrong type ({error})") from None
