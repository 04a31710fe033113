"""Causal models of transformers as predictors: their hidden states, their head, what they keep.

Shapes: B lanes, t new tokens, T targets, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.tokenizers.registry import Tokenizer
from lm.inference.predictor import Predictor, StateT
from lm.model.components import cross_entropy

LOGITS = 1 << 26
"""Logits that are held at once for the costs of tokens."""
TRIAL = 12
"""Tokens by which is found out what a model does."""
CACHES = ("past_key_values", "cache_params", "state")
"""What models call what they keep of the past, as arguments and as results."""


def weight_type(head: nn.Module) -> torch.dtype:
    """Numbers that a head multiplies."""
    return next(head.parameters()).dtype


class CausalPredictor(Predictor[StateT]):
    """What ways of reading a causal model of transformers have in common."""

    def __init__(self, model: Any, vocabulary: Tokenizer) -> None:
        """Around a model in evaluation mode, whose tokens are those of `vocabulary`."""
        self.model, self.vocabulary = model, vocabulary
        self.head = head_of(model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def forward(self, ids_Bt: Tensor, **state: Any) -> tuple[Tensor, Any]:
        """Hidden states [B, t, D] (of a model whose logits its head alone does not make: logits)
        of tokens, and all that the model returned.
        """
        if self.head is None:
            output = self.model(input_ids=ids_Bt, **state)
            return output.logits, output
        output = self.model.base_model(input_ids=ids_Bt, **state)
        return output[0], output

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of the model's head, [..., V]."""
        if self.head is None:
            return hidden
        logits: Tensor = self.head(hidden.to(weight_type(self.head)))
        return logits

    @torch.no_grad()
    def nats(self, hidden: Tensor, targets_BT: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [B, T], with so many logits at once as are held."""
        rows = max(1, LOGITS // self.vocabulary.size)
        parts = zip(hidden.flatten(0, 1).split(rows), targets_BT.flatten().split(rows), strict=True)
        costs = [cross_entropy(self.logits(part), targets) for part, targets in parts]
        return torch.cat(costs).view(targets_BT.shape)


@torch.no_grad()
def head_of(model: Any) -> nn.Module | None:
    """The map that makes logits of a model's last hidden states, if these are all of it to the last
    bit: None where a cap or a scale comes after it.
    """
    head, base = model.get_output_embeddings(), model.base_model
    if head is None or base is model:
        return None
    ids = torch.arange(TRIAL, device=model.device)[None] % model.config.get_text_config().vocab_size
    hidden = base(input_ids=ids, use_cache=False)[0]
    logits = model(input_ids=ids, use_cache=False).logits
    found: nn.Module = head
    same = torch.equal(head(hidden.to(weight_type(found))).float(), logits.float())
    return found if same else None


class Place:
    """A tensor inside of what a model keeps, and where it is."""

    def __init__(self, owner: Any, key: Any, name: str) -> None:
        self.owner, self.key, self.name = owner, key, name

    @property
    def tensor(self) -> Tensor:
        """What is there."""
        held = self.owner if isinstance(self.owner, (list, dict)) else vars(self.owner)
        tensor: Tensor = held[self.key]
        return tensor

    def put(self, tensor: Tensor) -> None:
        """Put another there."""
        held = self.owner if isinstance(self.owner, (list, dict)) else vars(self.owner)
        held[self.key] = tensor


def places(kept: Any, name: str = "cache") -> Iterator[Place]:
    """The tensors of what a model keeps, by name; the first dimension of each is lanes."""
    if isinstance(kept, (list, dict)):
        items = list(kept.items() if isinstance(kept, dict) else enumerate(kept))
    elif type(kept).__module__.startswith("transformers."):
        items = list(vars(kept).items())
    else:
        return
    for key, value in items:
        if isinstance(value, Tensor):
            if value.dim():
                yield Place(kept, key, f"{name}.{key}")
        else:
            yield from places(value, f"{name}.{key}")


def size_of(kept: Any) -> int:
    """Bytes of all tensors of what a model keeps."""
    return sum(p.tensor.numel() * p.tensor.element_size() for p in places(kept))


def cache_of(output: Any) -> Any:
    """What a model keeps, of what it returned; None where it keeps nothing."""
    found = (getattr(output, name, None) for name in CACHES)
    return next((each for each in found if each is not None), None)
