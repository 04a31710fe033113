"""A predictor whose predictions change by what it has read before: a store of hidden states and of
the tokens that followed them, looked up for each prediction.

It knows a token's successor only when that is read, so no prediction sees its own future, and what
it predicts does not depend on how the text is cut into readings.

Shapes: B lanes, t new tokens, T tokens of a piece of them, D width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from data.common.requirements import require_memory
from lm.inference.adaptation import adapted, by_distance, cache, mixed
from lm.inference.inference_config import LookupConfig
from lm.inference.ivf import Datastore
from lm.inference.model_hash import model_hash
from lm.inference.predictor import Predictor, State
from lm.inference.store import Store
from lm.model.components import Head
from lm.model.transformer import CompressiveTransformer

PART = 1 << 23
"""Numbers, such as distances or logits, that are held at once for one step of looking up."""
INNER, STORE = "inner.", "store."


class AdaptedState:
    """What the predictor within knows, the store, and the state that still lacks its successor."""

    def __init__(self, inner: State, store: Store, last_BD: Tensor, begun_B: Tensor) -> None:
        self.inner, self.store = inner, store
        self.last_BD, self.begun_B = last_BD, begun_B

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return self.store.lanes

    def reset(self, reset_B: Tensor) -> "AdaptedState":
        """The same with nothing read in some lanes; see State."""
        inner, store = self.inner.reset(reset_B), self.store.reset(reset_B)
        return AdaptedState(inner, store, self.last_BD, self.begun_B & ~reset_B)

    def select(self, lanes: Sequence[int]) -> "AdaptedState":
        """Some lanes; see State."""
        rows = torch.tensor(list(lanes), device=self.begun_B.device)
        inner, store = self.inner.select(lanes), self.store.select(lanes)
        return AdaptedState(inner, store, self.last_BD[rows], self.begun_B[rows])

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name; see State."""
        inner = {INNER + name: each for name, each in self.inner.tensors().items()}
        return inner | self.looked_up()

    def looked_up(self) -> dict[str, Tensor]:
        """What it has beside the predictor within, by name."""
        store = {STORE + name: each for name, each in self.store.tensors().items()}
        return store | {"last": self.last_BD, "begun": self.begun_B}


def looking_up(inner: Predictor[Any], config: LookupConfig) -> Predictor[Any]:
    """A predictor that looks up what `config` says, or the same where that is nothing; errors as
    of AdaptedPredictor.
    """
    return inner if config.method is None else AdaptedPredictor(inner, config)


class AdaptedPredictor(Predictor[AdaptedState]):
    """A predictor and what it has read."""

    def __init__(self, inner: Predictor[Any], config: LookupConfig) -> None:
        """A predictor around another.

        Args:
            inner: gives hidden states [B, t, D] and makes logits of them.
            config: what is looked up, and what is made of it.

        Raises:
            ValueError: mbpa with a model whose output layer is not one matrix.
        """
        assert config.method is not None
        self.config = config.settled()
        self.model: CompressiveTransformer | None = getattr(inner, "model", None)
        self.inner, self.methods = inner, config.method.split("+")
        self.vocabulary, self.segment = inner.vocabulary, inner.segment
        self.takes: dict[str, Any] = asdict(self.config)
        self.identity = {n: each for n, each in self.takes.items() if n != "datastore"}
        self.datastore: Datastore | None = None
        if config.datastore is not None:
            if self.model is None:
                raise ValueError("a datastore is of a model of this project's; leave it out")
            self.datastore = Datastore(config.datastore, model_hash(self.model))
            self.identity["datastore"] = self.datastore.hash
        self.capacity: int = self.takes["capacity"]
        # Entries are those of one long pass once the first of them saw as much as its model can.
        self.warmup = inner.warmup + self.capacity
        self.at_once = inner.segment
        head = None if self.model is None else self.model.head
        self.bias = isinstance(head, Head) and head.bias is not None
        if "mbpa" in self.methods and not isinstance(head, Head):
            raise ValueError(
                "mbpa adapts an output layer of one matrix, which this model has not; look up with "
                "method cache or knn"
            )

    @property
    def device(self) -> torch.device:
        """Where tokens are read."""
        return self.inner.device

    def begin(self, lanes: int) -> AdaptedState:
        """Nothing read; see Predictor."""
        return self.over(self.inner.begin(lanes))

    def over(self, inner: State) -> AdaptedState:
        """A state in which nothing was read but what the predictor within knows of already."""
        lanes, like_D = inner.lanes, self._like()
        each = 2 * len(like_D) * like_D.element_size()
        require_memory(
            lanes * (self.capacity + self.segment) * each,
            f"a store of {self.capacity:,} tokens for each of {lanes:,} lanes",
        )
        store = Store.empty(lanes, self.capacity, self.segment, like_D)
        last_BD = like_D.new_zeros(lanes, len(like_D))
        return AdaptedState(inner, store, last_BD, torch.zeros_like(store.written_B).bool())

    def after(self, inner: State, last_BD: Tensor) -> AdaptedState:
        """A state in which nothing is to be found of what was read so far.

        Args:
            inner: of the predictor within, which has read something in every lane.
            last_BD: the hidden states of what it read last.
        """
        begun = self.over(inner)
        last_BD = last_BD.to(begun.last_BD.dtype)
        return AdaptedState(inner, begun.store, last_BD, torch.ones_like(begun.begun_B))

    def without(self, hidden_BtD: Tensor) -> Tensor:
        """Logits [B, t, V] of hidden states, as they are where nothing is found."""
        return self._logits(hidden_BtD)

    def _like(self) -> Tensor:
        """A hidden state, of any content; in float32 at least."""
        if self.model is not None:
            like_D = self.model.embedding.weight.new_zeros(self.model.config.width)
        else:
            start_11 = torch.full((1, 1), self.vocabulary.start, device=self.device)
            like_D = self.inner.read(start_11, self.inner.begin(1))[0][0, 0]
        return like_D if like_D.dtype == torch.float64 else like_D.float()

    @torch.no_grad()
    def read(
        self, tokens_Bt: Tensor, state: AdaptedState, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, AdaptedState]:
        """Logits [B, t, V]; see Predictor."""
        hidden_BtD, inner = self.inner.read(tokens_Bt, state.inner, counts)
        state = AdaptedState(inner, state.store, state.last_BD, state.begun_B)
        count_B = torch.tensor(
            [tokens_Bt.shape[1]] * state.lanes if counts is None else list(counts),
            device=tokens_Bt.device,
        )
        parts = zip(
            tokens_Bt.split(self.segment, 1), hidden_BtD.split(self.segment, 1), strict=True
        )
        logits = []
        for number, (tokens_BT, hidden_BTD) in enumerate(parts):
            logits.append(
                self._piece(tokens_BT, hidden_BTD, state, count_B - number * self.segment)
            )
        return torch.cat(logits, dim=1), state

    def restore(self, tensors: Mapping[str, Tensor]) -> AdaptedState:
        """The inverse of AdaptedState.tensors; ValueError where a part is missing."""
        placed = {name: each.to(self.device) for name, each in tensors.items()}
        inner = {n.removeprefix(INNER): each for n, each in placed.items() if n.startswith(INNER)}
        return self.joined(self.inner.restore(inner), placed)

    def joined(self, inner: State, placed: Mapping[str, Tensor]) -> AdaptedState:
        """A state of that of the predictor within and of AdaptedState.looked_up; ValueError where a
        part of this is missing.
        """
        store = {n.removeprefix(STORE): each for n, each in placed.items() if n.startswith(STORE)}
        if not {"last", "begun"} <= placed.keys():
            raise ValueError("the state of looking up is not complete")
        return AdaptedState(inner, Store(store, self.capacity), placed["last"], placed["begun"])

    def _piece(
        self, tokens_BT: Tensor, hidden_BTD: Tensor, state: AdaptedState, count_B: Tensor
    ) -> Tensor:
        """Logits of up to a segment; the state has read it afterwards."""
        count_B = count_B.clamp(0, tokens_BT.shape[1])
        hidden_BTD = hidden_BTD.to(state.last_BD.dtype)
        keys_BTD = torch.cat([state.last_BD[:, None], hidden_BTD[:, :-1]], dim=1)
        live_BT = torch.arange(tokens_BT.shape[1], device=count_B.device) < count_B[:, None]
        newest_B11 = (count_B - 1).clamp(min=0)[:, None, None].expand(-1, -1, keys_BTD.shape[-1])
        reads_B = count_B > 0
        state.last_BD = torch.where(
            reads_B[:, None], hidden_BTD.gather(1, newest_B11)[:, 0], state.last_BD
        )
        live_BT[:, 0] &= state.begun_B
        state.begun_B = state.begun_B | reads_B
        seen_BT = state.store.add(keys_BTD, tokens_BT, live_BT)
        wide = max(state.store.keys_BRD.shape[1], self._numbers_of_a_query())
        queries = max(1, PART // (state.lanes * wide))
        pieces = zip(hidden_BTD.split(queries, 1), seen_BT.split(queries, 1), strict=True)
        return torch.cat([self._adapted(*piece, state.store) for piece in pieces], dim=1)

    def _numbers_of_a_query(self) -> int:
        several = self.takes["steps"] is not None and self.takes["steps"] > 1
        return self.vocabulary.size * (self.takes["neighbours"] if several else 1)

    def _adapted(self, hidden_BTD: Tensor, seen_BT: Tensor, store: Store) -> Tensor:
        """Logits of some queries."""
        takes, width = self.takes, hidden_BTD.shape[-1]
        logits_BTV = self._logits(hidden_BTD)
        if takes["neighbours"] is not None:
            found = store.nearest(hidden_BTD, seen_BT, takes["neighbours"])
        if "mbpa" in self.methods:
            weights = by_distance(
                found.squares_BTK, found.live_BTK, width, takes["kernel"], takes["softness"]
            )
            steps = (takes["rate"], takes["steps"], takes["decay"])
            logits_BTV = adapted(logits_BTV, store, found, weights, self._logits, self.bias, steps)
        if "knn" in self.methods:
            lane_B11 = torch.arange(store.lanes, device=seen_BT.device)[:, None, None]
            values = store.values_BR[lane_B11, found.slots_BTK]
            squares, live = found.squares_BTK, found.live_BTK
            if self.datastore is not None:
                more = self.datastore.nearest(hidden_BTD, takes["neighbours"])
                squares, values, live = (
                    torch.cat(pair, dim=-1)
                    for pair in zip((squares, values, live), more, strict=True)
                )
            weights = by_distance(squares, live, width, "exponential", takes["temperature"])
            logits_BTV = mixed(logits_BTV, values, weights, takes["share"])
        if "cache" in self.methods:
            weights = cache(store, hidden_BTD, seen_BT, takes["sharpness"])
            values = store.values_BR[:, None].expand(weights.shape)
            logits_BTV = mixed(logits_BTV, values, weights, takes["share"])
        return logits_BTV

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of the predictor within, in float32 at least."""
        if self.model is not None:
            hidden = hidden.to(self.model.embedding.weight.dtype)
        logits = self.inner.logits(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()
