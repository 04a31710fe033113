"""Objectives: what makes terms of a segment that the model has read.

Shapes: K segments, B lanes, T tokens of a segment, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from lm.feeding import Segment
from lm.model.components import cross_entropy
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer, SegmentStates
from lm.objectives.terms import Term, add_terms


class SegmentRead:
    """A segment that the model has read: what objectives make their terms of.

    Probabilities are computed once, whoever asks, because at ZeRO stage 3 DeepSpeed takes the
    gradient of a layer once in a back-propagation.

    Args:
        model: what has read it.
        states: final hidden states, and what the model itself wants minimised.
        segment: the tokens that were read, and those to predict.
        logits: whether some objective asks for probabilities of all tokens.
    """

    def __init__(
        self,
        model: CompressiveTransformer,
        states: SegmentStates,
        segment: Segment,
        logits: bool,
    ) -> None:
        self.states, targets_BT = states, segment.targets_BT
        self.targets_BT, self.scored_BT = targets_BT, segment.scored_BT
        self._logits = model.head(states.hidden_BTD) if logits else None
        if self._logits is None:
            self.nats_BT: Tensor = model.head(states.hidden_BTD, targets_BT)
        else:
            nats = cross_entropy(self._logits.flatten(0, 1), targets_BT.flatten())
            self.nats_BT = nats.view(targets_BT.shape)
        """Negative log-likelihoods of the targets."""

    def logits_BTV(self) -> Tensor:
        """Unnormalised log-probabilities of every token, for objectives that set `logits`."""
        assert self._logits is not None
        return self._logits


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

    def __init__(self, model: CompressiveTransformer, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.model, self.objectives = model, objectives
        self.logits = any(objective.logits for objective in objectives)

    def forward(
        self, segments: list[Segment], memory: MemoryState
    ) -> tuple[dict[str, Term], dict[str, Term], MemoryState]:
        """Read segments in order.

        Args:
            segments: of the B lanes.
            memory: of the lanes, before the first segment and its resets.

        Returns:
            The terms by name, the likelihood in nats first; losses that are known by layer, [l]
            each, to be looked at only; and memory.
        """
        terms: dict[str, Term] = {}
        by_layer: dict[str, Term] = {}
        for segment in segments:
            states = self.model.read_segment(segment.inputs_BT, memory.reset(segment.reset_B))
            memory = states.memory
            read = SegmentRead(self.model, states, segment, self.logits)
            add_terms(terms, terms_of(self.objectives, read))
            add_terms(by_layer, {name: Term(*loss) for name, loss in states.by_layer.items()})
        return terms, by_layer, memory.detach()
