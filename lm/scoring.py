"""The one scorer: what a model's predictions of a split cost.

Validation during training, evaluation and every other number go through `Scorer`.
Shapes: B lanes of this rank, T tokens of a segment, D documents, N tokens of the split.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from data.common.progress import Progress
from data.lanes import Batch, ScoringBatches
from data.shards import Split
from lm.feeding import tensors
from lm.inference.inference_config import BITS, ScoringConfig
from lm.inference.predictor import Predictor, StateT
from lm.model.components import exact_device
from lm.objectives.objective import Segment
from lm.threads import Threads

ASTRAY = "its weights are damaged or its training went astray; use another --checkpoint"


@dataclass(frozen=True)
class Score:
    """Sums over the scored tokens; divide by what the unit asks for (eval.protocol)."""

    nats: float
    """Negative log-likelihood of all scored tokens."""
    tokens: int
    bytes: int | None
    """Raw bytes that the scored tokens stand for; None where they do not give the text back."""
    document_nats: np.ndarray = field(compare=False, repr=False)
    """Nats of each document of the split, float64 [D]."""
    tallies: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """Of each cut of the split that was asked for, nats of each of its parts, float64."""

    @property
    def bits_per_byte(self) -> float:
        """Bits of information per byte of text.

        Raises:
            ValueError: the tokens do not give the text back, so that nobody has predicted it.
        """
        if self.bytes is None:
            raise ValueError("tokens that do not give the text back have no bits per byte")
        return self.nats / math.log(2) / self.bytes

    @property
    def unit(self) -> str:
        """What scores of one text are compared in, whatever its benchmark: `bits_per_byte`, or
        `bits_per_token` where tokens do not give the text back.
        """
        return BITS[self.bytes is None]

    @property
    def bits(self) -> float:
        """The score in this unit."""
        return self.nats / math.log(2) / (self.tokens if self.bytes is None else self.bytes)


def resolved_warmup(config: ScoringConfig, predictor: Predictor[Any]) -> int:
    """Warm-up in tokens, as it is reported."""
    return predictor.warmup if config.warmup is None else config.warmup


class Scorer(Generic[StateT]):
    """A pass over a split that scores every token once, and can stop and go on in between.

    It holds the sums so far, what each document has cost and, if asked, the cost of each token;
    so its size does not grow with the text unless asked. A subclass may look at what is read on the
    way.
    """

    def __init__(
        self,
        predictor: Predictor[StateT],
        split: Split,
        config: ScoringConfig,
        *,
        rows: slice = slice(None),
        token_nats: np.ndarray | None = None,
        cuts: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """A pass that has read nothing yet.

        Args:
            predictor: what is scored.
            split: tokens of its vocabulary.
            config: lanes, warm-up and resets.
            rows: the lanes that this rank reads.
            token_nats: [N], where the cost of each scored token is written.
            cuts: by name the part that each token belongs to, integers [N]; nats are summed by it.

        Raises:
            ValueError: the split has too few tokens for so many lanes, or ids that the predictor
                lacks, or the machine too little memory for such lengths.
        """
        if split.vocabulary.size != predictor.vocabulary.size:
            raise ValueError(
                f"the split {split.name!r} has a vocabulary of {split.vocabulary.size} tokens and "
                f"the model one of {predictor.vocabulary.size}; prepare the text with the model's"
            )
        self.predictor, self.split, self.rows, self.config = predictor, split, rows, config
        self.threads = Threads(fixed=True)
        self.state = predictor.begin(len(range(config.lanes)[rows]))
        self.batches = ScoringBatches(
            split,
            lanes=config.lanes,
            segment=predictor.segment,
            warmup=resolved_warmup(config, predictor),
            reset_documents=config.reset_documents,
        )
        self.step = 0
        self.token_nats = token_nats
        self.document_nats = np.zeros(len(split.documents))
        self.cuts = dict(cuts or {})
        self.tallies = {name: np.zeros(int(cut.max()) + 1) for name, cut in self.cuts.items()}
        self.tokens = self.bytes = 0
        self.rate: float | None = None
        """Tokens that this process has scored a second, where somebody has taken the time."""
        self.whole = True
        """Whether nothing is half done, as it is where a segment is interrupted."""
        self._uncounted: tuple[Batch, Callable[[], Tensor]] | None = None

    def __len__(self) -> int:
        """Number of segments that each lane reads, padding included."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Read on to the end, or as far as one wants."""
        return self.through(progress=False)

    def through(
        self, limit: int | None = None, name: str | None = None, progress: bool = True
    ) -> Iterator[Batch]:
        """Read on to the end, and stop after each segment.

        Args:
            limit: read only this many segments of each lane.
            name: what progress calls it, by default a score of the split.
            progress: show progress.
        """
        stop = len(self) if limit is None else min(limit, len(self))
        name = name or f"score {self.split.name}"
        with Progress(name, stop, "segment", enabled=progress, begun=self.step) as bar:
            while self.step < stop:
                batch = self.advance()
                bar.update()
                yield batch
        self.settle()

    def read(self, segment: Segment, state: StateT) -> tuple[Tensor, StateT]:
        """Nats [B, T] of the targets of a segment of `self.batch`, and the state after it."""
        hidden, state = self.predictor.read(segment.inputs_BT, state)
        return self.predictor.nats(hidden, segment.targets_BT), state

    @torch.no_grad()
    def advance(self) -> Batch:
        """Read the next segment of every lane and count what is scored of it."""
        self.whole = False
        self.batch = batch = self.batches.batch(self.step)
        segment = tensors(batch, self.rows, self.predictor.device)
        with self.threads.unit():
            nats_BT, self.state = self.read(segment, self.state.reset(segment.reset_B))
        self.step += 1
        # Counted while the next segment is computed, so that a GPU never waits.
        self.settle()
        self._uncounted = batch, arriving(nats_BT.detach())
        self.whole = True
        return batch

    def settle(self) -> None:
        """Bring all sums up to the segment read last."""
        if self._uncounted is None:
            return
        before, self.whole = self.whole, False
        (batch, arrived), self._uncounted = self._uncounted, None
        scored_BT = batch.scored_BT[self.rows]
        place_BT = batch.offset_B[self.rows, None] + np.arange(scored_BT.shape[1])
        place, nats = place_BT[scored_BT], arrived().double().numpy()[scored_BT]
        # Of documents that begin at one place all but the last are empty.
        document = self.split.documents["offset"].searchsorted(place, side="right") - 1
        np.add.at(self.document_nats, document, nats)
        for name, cut in self.cuts.items():
            np.add.at(self.tallies[name], cut[place], nats)
        if self.token_nats is not None:
            self.token_nats[place] = nats
        self.tokens += len(place)
        targets = batch.targets_BT[self.rows][scored_BT]
        self.bytes += int(self.split.vocabulary.token_bytes[targets].sum())
        self.whole = before

    def result(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> Score:
        """The score so far; `reduce` sums a float64 tensor over ranks."""
        self.settle()
        counts = np.array([self.tokens, self.bytes], dtype=np.float64)
        parts = [counts, self.document_nats, *self.tallies.values()]
        device = exact_device(self.predictor.device)
        sums = reduce(torch.from_numpy(np.concatenate(parts)).to(device))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        (tokens, size), documents, *tallies = np.split(sums.cpu().numpy(), ends)
        bytes_of_text = int(size) if self.split.exact else None
        named = dict(zip(self.tallies, tallies, strict=True))
        return Score(float(documents.sum()), int(tokens), bytes_of_text, documents, named)

    def kept(self) -> dict[str, Tensor]:
        """Everything but the tokens' own costs that `load` goes on from, on the CPU."""
        self.settle()
        progress = torch.tensor([self.step, self.tokens, self.bytes])
        tensors = {"progress": progress, "document_nats": torch.from_numpy(self.document_nats)}
        for name, tally in self.tallies.items():
            tensors[f"tally.{name}"] = torch.from_numpy(tally)
        for name, tensor in self.state.tensors().items():
            tensors[f"state.{name}"] = tensor.cpu().contiguous()
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Go on exactly where `kept` was taken of a scorer that was made the same way."""
        self.step, self.tokens, self.bytes = kept["progress"].tolist()
        self.document_nats = kept["document_nats"].numpy().copy()
        self.tallies = {name: kept[f"tally.{name}"].numpy().copy() for name in self.tallies}
        state = {n.removeprefix("state."): t for n, t in kept.items() if n.startswith("state.")}
        self.state = self.restored(state)

    def restored(self, state: Mapping[str, Tensor]) -> StateT:
        """What the predictor knows, of the tensors that its state has given."""
        return self.predictor.restore(state)


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
    predictor: Predictor[Any],
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
        predictor: what is scored.
        split: tokens of its vocabulary.
        config: lanes, warm-up and resets.
        rows: the lanes that this rank reads.
        limit: read only this many segments of each lane.
        reduce: sums a float64 tensor over ranks.
        progress: show progress.
        between: called after each segment; what it raises ends the pass.
    """
    scorer = Scorer(predictor, split, config, rows=rows)
    for _ in scorer.through(limit, progress=progress):
        between()
    return scorer.result(reduce)


def require_finite(numbers: ArrayLike, why: str = ASTRAY) -> None:
    """Refuse to report numbers of a model whose predictions are none.

    Raises:
        ValueError: some are not finite; `why` ends the sentence.
    """
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"the model's predictions are not finite numbers, so there is nothing to report: {why}"
        )
