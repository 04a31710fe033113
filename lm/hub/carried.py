"""A recurrent model of transformers that reads on with its state.

Shapes: B lanes, t new tokens, D width.
"""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from data.tokenizers.registry import Tokenizer
from lm.hub.causal import CACHES, TRIAL, CausalPredictor, cache_of, places, size_of

SEGMENT, WARMUP = 256, 1024
"""Tokens that are read at once, and that are read unscored before those that count."""


class CarriedState:
    """What a recurrent model keeps of each lane, and which lanes have read nothing."""

    def __init__(self, cache: Any, fresh: list[bool]) -> None:
        self.cache, self.fresh = cache, fresh

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return len(self.fresh)

    def reset(self, reset_B: Tensor) -> "CarriedState":
        """The same with nothing read in some lanes; see State."""
        resets = reset_B.tolist()
        fresh = [old or new for old, new in zip(self.fresh, resets, strict=True)]
        return CarriedState(self.cache, fresh)

    def select(self, lanes: Sequence[int]) -> "CarriedState":
        """Some lanes; see State."""
        fresh = [self.fresh[lane] for lane in lanes]
        if self.cache is None or all(fresh):
            return CarriedState(None, fresh)
        cache = deepcopy(self.cache)
        for place in places(cache):
            place.put(place.tensor[list(lanes)])
        return CarriedState(cache, fresh)

    def tensors(self) -> dict[str, Tensor]:
        """All that is kept, by name; see State."""
        found = [] if self.cache is None else places(self.cache)
        kept = {place.name: place.tensor for place in found}
        return {"fresh": torch.tensor(self.fresh), **kept}


class CarriedPredictor(CausalPredictor[CarriedState]):
    """A recurrent model that reads on with its state, which never grows.

    Pieces of several tokens are read at once where the model's own code goes on from its state
    with them, else token by token; both are tried on a few tokens beforehand.
    """

    def __init__(self, model: Any, vocabulary: Tokenizer, segment: int = SEGMENT) -> None:
        """As CausalPredictor, with the tokens of each lane that are read at once.

        Raises:
            ValueError: what the model keeps grows with the text, or does not go on.
        """
        super().__init__(model, vocabulary)
        self.segment, self.warmup = segment, WARMUP
        taken = inspect.signature(model.base_model.forward).parameters
        self.name = next((name for name in CACHES if name in taken), CACHES[0])
        self.pieces = self._tried()

    def begin(self, lanes: int) -> CarriedState:
        """Nothing is kept of what was not read."""
        return CarriedState(None, [True] * lanes)

    @torch.no_grad()
    def read(
        self, tokens_Bt: Tensor, state: CarriedState, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, CarriedState]:
        """Final hidden states [B, t, D]; see Predictor. Lanes that are alike are read together."""
        read = [tokens_Bt.shape[1]] * state.lanes if counts is None else list(counts)
        alike: dict[tuple[bool, int], list[int]] = {}
        for lane, kind in enumerate(zip(state.fresh, read, strict=True)):
            alike.setdefault(kind, []).append(lane)
        if len(alike) == 1 and read[0]:
            hidden, cache = self._on(tokens_Bt[:, : read[0]], state.cache, state.fresh[0])
            return filled(hidden, tokens_Bt.shape[1]), CarriedState(cache, [False] * state.lanes)
        parts, caches = [], []
        for (fresh, count), lanes in alike.items():
            here = state.select(lanes)
            if count:
                hidden, cache = self._on(tokens_Bt[lanes, :count], here.cache, fresh)
                parts.append((lanes, filled(hidden, tokens_Bt.shape[1])))
                here = CarriedState(cache, [False] * len(lanes))
            caches.append((lanes, here))
        if not parts:
            raise ValueError("some lane must read a token")
        whole = parts[0][1].new_zeros(state.lanes, *parts[0][1].shape[1:])
        for lanes, hidden in parts:
            whole[lanes] = hidden
        return whole, joined(caches, state.lanes)

    def _on(self, ids_Bt: Tensor, cache: Any, fresh: bool) -> tuple[Tensor, Any]:
        """Hidden states of tokens of lanes that are alike, and what is kept afterwards."""
        cache = None if fresh else cache
        hidden = []
        step = ids_Bt.shape[1] if self.pieces or fresh else 1
        for part in ids_Bt.split(step, dim=1):
            states, output = self.forward(part, use_cache=True, **{self.name: cache})
            cache = cache_of(output)
            hidden.append(states)
        return torch.cat(hidden, dim=1), cache

    @torch.no_grad()
    def _tried(self) -> bool:
        """Whether pieces of several tokens go on from a state as one reading of all does.

        Raises:
            ValueError: single tokens do not either, or what is kept grows.
        """
        ids = torch.arange(1, 2 * TRIAL + 1, device=self.device)[None] * 7 % self.vocabulary.size
        whole = self.logits(self.forward(ids, use_cache=False)[0])[:, TRIAL:].float()
        error: dict[bool, float] = {}
        for self.pieces in (True, False):
            _, state = self.read(ids[:, :TRIAL], self.begin(1))
            before = size_of(state.cache)
            hidden, state = self.read(ids[:, TRIAL:], state)
            error[self.pieces] = float((self.logits(hidden).float() - whole).abs().max())
        if not before or size_of(state.cache) > before:
            raise ValueError(
                "the model has no state of one size that goes on from token to token: read it in "
                "windows (--window, --stride)"
            )
        noise = (1e-4 if self.model.dtype == torch.float32 else 1e-1) * float(whole.std())
        if not error[False] <= noise:
            raise ValueError(
                "the model does not go on from its state as it reads a whole text: read it in "
                "windows (--window, --stride)"
            )
        return error[True] <= noise

    def restore(self, tensors: Mapping[str, Tensor]) -> CarriedState:
        """The inverse of `CarriedState.tensors`."""
        fresh = [bool(each) for each in tensors["fresh"]]
        if len(tensors) == 1:
            return CarriedState(None, fresh)
        ids = torch.full((len(fresh), 1), self.vocabulary.start, device=self.device)
        _, state = self.read(ids, self.begin(len(fresh)))
        for place in places(state.cache):
            place.put(tensors[place.name].to(place.tensor.device, place.tensor.dtype))
        return CarriedState(state.cache, fresh)

    def state_bytes(self) -> int:
        """Bytes that are kept of one text."""
        ids = torch.full((1, 1), self.vocabulary.start, device=self.device)
        return size_of(self.read(ids, self.begin(1))[1].cache)


def filled(hidden_BtD: Tensor, length: int) -> Tensor:
    """Hidden states with zeros for tokens that no lane here read."""
    return nn.functional.pad(hidden_BtD, (0, 0, 0, length - hidden_BtD.shape[1]))


def joined(parts: list[tuple[list[int], CarriedState]], lanes: int) -> CarriedState:
    """One state of lanes that were read apart; what is kept of lanes that have read nothing may be
    anything.
    """
    fresh = [True] * lanes
    cache = deepcopy(next(state.cache for _, state in parts if state.cache is not None))
    for place in places(cache):
        place.put(place.tensor.new_zeros(lanes, *place.tensor.shape[1:]))
    for numbers, state in parts:
        for lane, each in zip(numbers, state.fresh, strict=True):
            fresh[lane] = each
        if state.cache is not None:
            for to, at in zip(places(cache), places(state.cache), strict=True):
                to.tensor[numbers] = at.tensor
    return CarriedState(cache, fresh)
