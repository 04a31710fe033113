"""Objectives: what training minimises of segments that the model has read, as named terms, and the
one place where terms become a number.

A term is a sum and a count. Sums stay whole across segments, micro-batches and ranks until one
division by what all of them counted together, so every token of an update weighs the same.
Exported folders carry this file, so it knows nothing of where segments come from.

Shapes: K segments, B lanes, T tokens of a segment, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lm.model.components import cross_entropy
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer, SegmentOutput, SegmentStates

Divisor = Literal["scored", "elements"]
"""What a term's sum is divided by: the tokens that an update scores, or the term's own count, as a
mean over the back-propagations of an update."""


class Term(NamedTuple):
    """A part of the loss, of some lanes and segments."""

    total: Tensor
    """scalar"""
    counted: Tensor
    """scalar"""
    divisor: Divisor = "elements"


def add_terms(sums: dict[str, Term], more: Mapping[str, Term]) -> None:
    """Add the terms of another segment to sums by name."""
    for name, term in more.items():
        before = sums.get(name)
        if before is not None:
            term = Term(before.total + term.total, before.counted + term.counted, term.divisor)
        sums[name] = term


def segment_loss(output: SegmentOutput) -> Tensor:
    """The loss of one segment alone: mean nats of its targets, and what the model adds.

    Args:
        output: of a forward pass with targets.
    """
    nats = output.predictions
    likelihood = Term(nats.sum(), torch.tensor(nats.numel(), device=nats.device))
    added = {name: Term(*loss) for name, loss in output.auxiliary.items()}
    return total_loss({"nats": likelihood} | added)


def total_loss(
    terms: Mapping[str, Term],
    factors: Mapping[str, float | Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """The number to minimise: sums times factors times weights.

    Args:
        terms: by name.
        factors: what each sum is multiplied by; none: one over its own count, so that it is a mean.
        weights: of the terms that are to count more or less than 1.
    """
    parts = []
    for name, term in terms.items():
        if factors is None:
            factor: float | Tensor = 1 / term.counted.clamp(min=1).to(term.total.dtype)
        else:
            factor = factors[name]
        if isinstance(factor, Tensor):
            factor = factor.to(term.total.dtype)
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        parts.append(term.total * (factor * weight))
    loss = parts[0]
    for part in parts[1:]:
        loss = loss + part
    return loss


class Segment(NamedTuple):
    """A segment of some lanes: what is read, and what is to be predicted."""

    inputs_BT: Tensor
    """int64"""
    targets_BT: Tensor
    """int64, the tokens that follow the inputs."""
    scored_BT: Tensor
    """bool, the targets that count."""
    reset_B: Tensor
    """bool, lanes that begin with empty memory."""

    def lanes(self, rows: slice) -> "Segment":
        """Some of its lanes."""
        return Segment(*(tensor[rows] for tensor in self))


class Compared(NamedTuple):
    """What is known of tokens that were read in several ways (lm.objectives.readings)."""

    values: Mapping[str, Tensor]
    """[b, T] by name, of some of the lanes."""
    scored_bT: Tensor
    """bool, the targets of these lanes that count."""
    stands_for: int
    """Lanes of the batch for each of them."""


class SegmentRead(NamedTuple):
    """A segment that the model has read: what objectives make their terms of.

    Probabilities are computed once, whoever asks, because at ZeRO stage 3 DeepSpeed takes the
    gradient of a layer once in a back-propagation.
    """

    segment: Segment
    """The tokens that were read, and those to predict."""
    states: SegmentStates
    """Final hidden states, memory, and what the model itself wants minimised."""
    nats_BT: Tensor
    """Negative log-likelihoods of the targets."""
    logits: Tensor | None = None
    """[B, T, V], where some objective asks for them."""
    compared: Compared | None = None
    """Where the segment was read in several ways."""
    told: Tensor | None = None
    """What a teacher makes of it, [B, T, ...], if there is one."""
    step: int = 0
    """Of training, counted from 0."""

    @property
    def targets_BT(self) -> Tensor:
        """int64, the tokens to predict."""
        return self.segment.targets_BT

    @property
    def scored_BT(self) -> Tensor:
        """bool, the targets that count."""
        return self.segment.scored_BT

    def logits_BTV(self) -> Tensor:
        """Unnormalised log-probabilities of every token, for objectives that set `logits`."""
        assert self.logits is not None
        return self.logits


ReadSegment = Callable[[CompressiveTransformer, Segment, MemoryState, bool, int], SegmentRead]
"""Reads a segment after memory that is reset where the segment begins anew; whether some objective
asks for probabilities of all tokens, and the step."""


def read_once(
    model: CompressiveTransformer, segment: Segment, memory: MemoryState, logits: bool, _: int
) -> SegmentRead:
    """The one reading that there usually is; see ReadSegment."""
    return judged(model, segment, model.read_segment(segment.inputs_BT, memory), logits)


def judged(
    model: CompressiveTransformer, segment: Segment, states: SegmentStates, logits: bool
) -> SegmentRead:
    """A segment whose states are known, with their probabilities."""
    if not logits:
        return SegmentRead(segment, states, model.head(states.hidden_BTD, segment.targets_BT))
    logits_BTV = model.head(states.hidden_BTD)
    nats = cross_entropy(logits_BTV.flatten(0, 1), segment.targets_BT.flatten())
    return SegmentRead(segment, states, nats.view(segment.targets_BT.shape), logits_BTV)


class Objective(ABC):
    """A family of losses."""

    logits: ClassVar[bool] = False
    """Whether it asks for the probabilities of all tokens."""

    @abstractmethod
    def terms(self, read: SegmentRead) -> dict[str, Term]:
        """The terms of one segment by name; the same names for every segment."""

    def weights(self, step: int) -> Mapping[str, float]:  # noqa: ARG002
        """What terms are multiplied by, at a step counted from 0; 1 where none is named."""
        return {}


class Likelihood(Objective):
    """Negative log-likelihood of the next token in nats, over the tokens that are scored."""

    def terms(self, read: SegmentRead) -> dict[str, Term]:
        """The sum over the segment, under the name `nats`."""
        scored = read.scored_BT
        return {"nats": Term((read.nats_BT * scored).sum(), scored.sum(), "scored")}


def terms_of(objectives: Iterable[Objective], read: SegmentRead) -> dict[str, Term]:
    """All terms of one segment: those of the objectives, and what the model adds itself (the loss
    that trains compression, and penalties on weights).
    """
    terms: dict[str, Term] = {}
    for objective in objectives:
        terms |= objective.terms(read)
    return terms | {name: Term(*loss) for name, loss in read.states.auxiliary.items()}


def weights_at(objectives: Iterable[Objective], step: int) -> dict[str, float]:
    """The weights of all terms that have one at a step."""
    return {name: w for each in objectives for name, w in each.weights(step).items()}


class Unroll(nn.Module):
    """The model over the K segments that one back-propagation spans (the BPTT window).

    The gradient passes from segment to segment through compressed memory and ends at the first; the
    memory returned is cut off. Plain tensors come out, as DeepSpeed needs of a module.
    """

    def __init__(
        self,
        model: CompressiveTransformer,
        objectives: Sequence[Objective],
        read: ReadSegment = read_once,
    ) -> None:
        """`read`: how segments are read in training; otherwise they are read once."""
        super().__init__()
        self.model, self.objectives, self.read = model, objectives, read
        self.logits = any(objective.logits for objective in objectives)
        self.step = 0
        """The step of training, which some readings depend on."""

    def forward(
        self,
        segments: list[Segment],
        memory: MemoryState,
        told: list[Tensor] | None = None,
    ) -> tuple[dict[str, Term], dict[str, Term], MemoryState]:
        """Read segments in order.

        Args:
            segments: of the B lanes.
            memory: of the lanes, before the first segment and its resets.
            told: what a teacher makes of each segment.

        Returns:
            The terms by name, the likelihood in nats first; losses that are known by layer, [l]
            each, to be looked at only; and memory.
        """
        terms: dict[str, Term] = {}
        by_layer: dict[str, Term] = {}
        read_segment = self.read if self.model.training else read_once
        for number, segment in enumerate(segments):
            before = memory.reset(segment.reset_B)
            read = read_segment(self.model, segment, before, self.logits, self.step)
            read = read._replace(told=told[number] if told else None, step=self.step)
            memory = read.states.memory
            add_terms(terms, terms_of(self.objectives, read))
            looked_at = read.states.by_layer
            add_terms(by_layer, {name: Term(*loss) for name, loss in looked_at.items()})
        return terms, by_layer, memory.detach()
