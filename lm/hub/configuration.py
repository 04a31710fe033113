"""A Compressive Transformer's configuration as transformers keeps it."""

from dataclasses import asdict, fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from lm.model import ModelConfig


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
        return ModelConfig(**(values | lists))
