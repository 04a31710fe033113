"""The one scorer: what a model's predictions of a split cost.

Validation during training, evaluation and every other number go through `Scorer`.
Shapes: B lanes of this rank, T tokens of a segment, D documents, N tokens of the split.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.common.progress import Progress
from data.common.resources import require_memory
from data.lanes import Batch, scoring_batches
from data.shards import Split
from lm.feeding import tensors
from lm.model import CompressiveTransformer, MemoryState, SegmentOutput

LONGEST = 1 << 40
"""Tokens; no text has as many."""


@dataclass(frozen=True)
class ScoringConfig:
    """How a split is read when it is scored."""

    lanes: int = 8
    """Parts of the split that are read side by side."""
    warmup: int | None = None
    """Tokens a lane reads unscored before its part; none: as many as both memories of a layer span.
    The score does not depend on the number of lanes once this covers the model's whole range."""
    reset_documents: bool = False
    """Begin each document with empty memory."""

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {self.lanes}")
        if self.warmup is not None and self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, not {self.warmup}")
        if max(self.lanes, self.warmup or 0) > LONGEST:
            raise ValueError(f"lanes and warmup must be at most {LONGEST:,}")


@dataclass(frozen=True)
class Score:
    """Sums over the scored tokens; divide by what the unit asks for (eval.units)."""

    nats: float
    """Negative log-likelihood of all scored tokens."""
    tokens: int
    bytes: int
    """Raw bytes that the scored tokens stand for."""
    document_nats: np.ndarray = field(compare=False, repr=False)
    """Nats of each document of the split, float64 [D]."""

    @property
    def bits_per_byte(self) -> float:
        """Bits of information per byte of text."""
        return self.nats / math.log(2) / self.bytes


def resolved_warmup(config: ScoringConfig, model: CompressiveTransformer) -> int:
    """Warm-up in tokens, as it is reported."""
    if config.warmup is not None:
        return config.warmup
    return model.config.memory + model.config.rate * model.config.compressed


class Read(NamedTuple):
    """One segment of every lane, and what the model made of it."""

    batch: Batch
    memory: MemoryState
    """Before the segment."""
    output: SegmentOutput


class Scorer:
    """A pass over a split that scores every token once, and can stop and go on in between.

    It holds the sums so far, what each document has cost and, if asked, the cost of each token;
    so its size does not grow with the text unless asked. A subclass may read segments in its own
    way.
    """

    def __init__(
        self,
        model: CompressiveTransformer,
        split: Split,
        config: ScoringConfig,
        *,
        rows: slice = slice(None),
        token_nats: np.ndarray | None = None,
        keep_keys: bool = True,
    ) -> None:
        """A pass that has read nothing yet.

        Args:
            model: read in evaluation mode; its mode is restored after each segment.
            split: tokens of the vocabulary that the model was trained on.
            config: lanes, warm-up and resets.
            rows: the lanes that this rank reads.
            token_nats: [N], where the cost of each scored token is written.
            keep_keys: keep keys and values of memory from segment to segment instead of projecting
                memory anew; needs weights that do not change.

        Raises:
            ValueError: the split has too few tokens for so many lanes, or ids that the model lacks,
                or the machine too little memory for such lengths.
        """
        if split.vocabulary.size != model.vocabulary:
            raise ValueError(
                f"the split {split.name!r} has a vocabulary of {split.vocabulary.size} tokens and "
                f"the model one of {model.vocabulary}; prepare the text with the model's"
            )
        require_room(model, len(range(config.lanes)[rows]))
        self.model, self.split, self.rows = model, split, rows
        self.batches = scoring_batches(
            split,
            lanes=config.lanes,
            segment=model.config.segment,
            warmup=resolved_warmup(config, model),
            reset_documents=config.reset_documents,
        )
        self.step = 0
        self.token_nats = token_nats
        self.document_nats = np.zeros(len(split.documents))
        self.tokens = self.bytes = 0
        self._uncounted: tuple[Batch, Callable[[], Tensor]] | None = None
        memory = model.empty_memory(len(range(config.lanes)[rows]))
        self.memory = keeping_keys(model, memory) if keep_keys else memory

    def __len__(self) -> int:
        """Number of segments that each lane reads, padding included."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Read]:
        """Read on to the end, or as far as one wants."""
        while self.step < len(self):
            yield self.advance()
        self.settle()

    def read(self, inputs_BT: Tensor, memory: MemoryState, targets_BT: Tensor) -> SegmentOutput:
        """What the model makes of `self.batch`; predictions are the targets' nats [B, T]."""
        output: SegmentOutput = self.model(inputs_BT, memory, targets_BT)
        return output

    @torch.no_grad()
    def advance(self) -> Read:
        """Read the next segment of every lane and count what is scored of it."""
        self.batch = batch = self.batches.batch(self.step)
        inputs, targets, _, reset = tensors(batch, self.rows, self.model.embedding.weight.device)
        memory = self.memory.reset(reset)
        with evaluating(self.model):
            output = self.read(inputs, memory, targets)
        self.memory = output.memory
        self.step += 1
        # Counted while the next segment is computed, so that a GPU never waits.
        self.settle()
        self._uncounted = batch, arriving(output.predictions.detach())
        return Read(batch, memory, output)

    def settle(self) -> None:
        """Bring all sums up to the segment read last."""
        if self._uncounted is None:
            return
        (batch, arrived), self._uncounted = self._uncounted, None
        scored_BT = batch.scored_BT[self.rows]
        place_BT = batch.offset_B[self.rows, None] + np.arange(scored_BT.shape[1])
        place, nats = place_BT[scored_BT], arrived().double().numpy()[scored_BT]
        # Of documents that begin at one place all but the last are empty.
        document = self.split.documents["offset"].searchsorted(place, side="right") - 1
        np.add.at(self.document_nats, document, nats)
        if self.token_nats is not None:
            self.token_nats[place] = nats
        self.tokens += len(place)
        targets = batch.targets_BT[self.rows][scored_BT]
        self.bytes += int(self.split.vocabulary.token_bytes[targets].sum())

    def result(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> Score:
        """The score so far; `reduce` sums a float64 tensor over ranks."""
        self.settle()
        counts = torch.tensor([self.tokens, self.bytes], dtype=torch.float64)
        sums = torch.cat([counts, torch.from_numpy(self.document_nats)])
        tokens, size, *_ = sums = reduce(sums.to(self.model.embedding.weight.device)).cpu()
        documents = sums[2:].numpy()
        return Score(float(documents.sum()), int(tokens), int(size), documents)

    def state(self) -> dict[str, Tensor]:
        """Everything but the tokens' own costs that `load_state` goes on from, on the CPU."""
        self.settle()
        progress = torch.tensor([self.step, self.tokens, self.bytes])
        tensors = {"progress": progress, "document_nats": torch.from_numpy(self.document_nats)}
        for name, tensor in self.memory.tensors().items():
            tensors[f"state.{name}"] = tensor.cpu().contiguous()
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on exactly where `state` was taken of a scorer that was made the same way."""
        self.step, self.tokens, self.bytes = state["progress"].tolist()
        self.document_nats = state["document_nats"].numpy().copy()
        device = self.memory.memory_count.device
        kept = {
            name.removeprefix("state."): tensor.to(device)
            for name, tensor in state.items()
            if name.startswith("state.")
        }
        self.memory = MemoryState.from_tensors(kept)


def require_room(model: CompressiveTransformer, lanes: int) -> None:
    """Refuse lengths and lanes that this machine could never hold, before anything is allocated.

    Raises:
        ValueError: there is too little memory.
    """
    config, weight = model.config, model.embedding.weight
    slots = sum(config.at(layer).slots for layer in range(config.layers))
    each = config.width + 2 * config.stored_heads * config.head_width
    # A segment is there twice besides, before and after a layer.
    numbers = slots * each + 2 * config.segment * config.width
    there = None
    if weight.device.type == "cuda":
        there = torch.cuda.get_device_properties(weight.device).total_memory
    require_memory(
        lanes * numbers * weight.element_size(),
        f"reading {lanes:,} lanes with segment {config.segment:,}, memory {config.memory:,} and "
        f"compressed {config.compressed:,}",
        there,
    )


def keeping_keys(model: CompressiveTransformer, empty: MemoryState) -> MemoryState:
    """Empty memory that keeps keys and values. Nobody reads those of empty slots, so no weight is
    needed, which ZeRO stage 3 would not have at hand here.
    """
    config = model.config

    def nothing(layer: int) -> Tensor:
        shape = (empty.lanes, config.stored_heads, config.at(layer).slots, config.head_width)
        return empty.memory[layer].new_zeros(shape)

    zeros = tuple(nothing(layer) for layer in range(config.layers))
    return empty.with_named(keys=zeros, values=zeros)


def arriving(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; the function returned waits for it and nothing later."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def arrived() -> Tensor:
        copied.synchronize()
        return host

    return arrived


def score(
    model: CompressiveTransformer,
    split: Split,
    config: ScoringConfig,
    *,
    rows: slice = slice(None),
    limit: int | None = None,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    progress: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Score:
    """Score every token of a split once; arguments and errors are those of Scorer.

    Args:
        model: read in evaluation mode.
        split: tokens of the vocabulary that the model was trained on.
        config: lanes, warm-up and resets.
        rows: the lanes that this rank reads.
        limit: read only this many segments of each lane.
        reduce: sums a float64 tensor over ranks.
        progress: show progress.
        between: called before each segment; what it raises ends the pass.
    """
    scorer = Scorer(model, split, config, rows=rows)
    count = len(scorer) if limit is None else min(limit, len(scorer))
    with Progress(f"score {split.name}", count, "segment", enabled=progress) as bar:
        while scorer.step < count:
            between()
            scorer.advance()
            bar.update()
    return scorer.result(reduce)


@contextmanager
def evaluating(model: CompressiveTransformer) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
