"""A scorer that learns from what it has scored."""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from data.shards import Split
from eval.eval_config import DynamicConfig
from eval.results import Result, spoken
from lm.inference.adapted import AdaptedPredictor
from lm.inference.inference_config import BITS, LookupConfig
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Segment
from lm.scoring import ASTRAY, Score, Scorer, require_finite

WINDOWS = 50
"""Points of the curve of a pass."""


class DynamicScorer(Scorer[Any]):
    """A scorer that scores a segment first and learns from it afterwards.

    It moves a copy of the weights, or of those of the output layer, by the gradient of the scored
    tokens' mean cost. What is read to warm lanes up is not learnt from: another lane may not have
    been scored on it yet.
    """

    config: DynamicConfig

    def __init__(self, model: CompressiveTransformer, split: Split, config: DynamicConfig) -> None:
        self.model = copy.deepcopy(model)
        # Kept keys would belong to weights that have moved.
        moving = ModelPredictor(self.model, split.vocabulary, keep_keys=False)
        super().__init__(moving, split, config)
        self.config = config
        if config.learn == "head":
            self.model.requires_grad_(False)
            # Vectors that it shares with the embedding are its own from here on.
            self.model.head = copy.deepcopy(self.model.head).requires_grad_()
        self.parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = [parameter.detach().clone() for parameter in self.parameters]
        (lr,) = config.lrs
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = kind(self.parameters, lr=lr)

    @torch.enable_grad()
    def read(self, segment: Segment, state: Any) -> tuple[Tensor, Any]:
        """What a segment costs before the model learns from it."""
        made = self.model.read_segment(segment.inputs_BT, self.memory_of(state))
        nats_BT = self.model.head(made.hidden_BTD, segment.targets_BT)
        memory = ModelState(made.memory.detach())
        hidden_BTD, plain_BT = made.hidden_BTD.detach(), nats_BT.detach()
        told_BT, state = self.told(segment, hidden_BTD, plain_BT, memory, state)
        scored_BT = segment.scored_BT
        if scored_BT.any():
            ((nats_BT * scored_BT).sum() / scored_BT.sum()).backward()
        if (self.step + 1) % self.config.every == 0:
            self._learn()
        return told_BT, state

    def memory_of(self, state: Any) -> MemoryState:
        """The model's memory in a state of this scorer."""
        memory: MemoryState = state.memory
        return memory

    def told(
        self,
        _segment: Segment,
        _hidden_BTD: Tensor,
        nats_BT: Tensor,
        memory: ModelState,
        _state: Any,
    ) -> tuple[Tensor, Any]:
        """What the segment costs by what is told of it, and the state afterwards: here the model's
        own.
        """
        return nats_BT, memory

    def kept(self) -> dict[str, Tensor]:
        """As a Scorer's, with the weights, their gradients so far and what the optimiser keeps."""
        tensors = super().kept()
        for number, parameter in enumerate(self.parameters):
            own = {"weight": parameter, "gradient": parameter.grad}
            own |= {f"optimizer.{n}": x for n, x in self.optimizer.state.get(parameter, {}).items()}
            for name, tensor in own.items():
                if isinstance(tensor, Tensor):
                    copied = tensor.detach().cpu().clone().contiguous()
                    tensors[f"learnt.{number}.{name}"] = copied
        return tensors

    @torch.no_grad()
    def load(self, kept: Mapping[str, Tensor]) -> None:
        """See Scorer."""
        super().load(kept)
        for number, parameter in enumerate(self.parameters):
            prefix = f"learnt.{number}."
            own = {n.removeprefix(prefix): t for n, t in kept.items() if n.startswith(prefix)}
            parameter.copy_(own.pop("weight"))
            gradient = own.pop("gradient", None)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
            # Adam counts its steps on the host.
            placed = {n: t.to(parameter.device) if t.dim() else t for n, t in own.items()}
            self.optimizer.state[parameter] = {
                name.removeprefix("optimizer."): tensor for name, tensor in placed.items()
            }

    @torch.no_grad()
    def _learn(self) -> None:
        """One step with the gradients that were gathered."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.decay:
            torch._foreach_lerp_(self.parameters, self.trained, self.config.decay)


class Given(ModelPredictor):
    """A model whose hidden states of the next segment are there already."""

    hidden_BTD: Tensor
    after: ModelState

    def read(
        self, tokens_Bt: Tensor, state: ModelState, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, ModelState]:
        """These hidden states; see Predictor."""
        assert counts is None
        assert tokens_Bt.shape == self.hidden_BTD.shape[:2]
        assert state.lanes == self.after.lanes
        return self.hidden_BTD, self.after


class DynamicLookup(DynamicScorer):
    """A scorer that learns from what it has scored, and also looks up what was read: states that
    weights of that time have made.
    """

    def __init__(
        self,
        model: CompressiveTransformer,
        split: Split,
        config: DynamicConfig,
        lookup: LookupConfig,
    ) -> None:
        super().__init__(model, split, config)
        self.given = Given(self.model, split.vocabulary, keep_keys=False)
        self.looking = AdaptedPredictor(self.given, lookup)
        self.state = self.looking.over(self.state)

    def restored(self, state: Mapping[str, Tensor]) -> Any:
        """See Scorer."""
        return self.looking.restore(state)

    def memory_of(self, state: Any) -> MemoryState:
        """See DynamicScorer."""
        return super().memory_of(state.inner)

    def told(
        self,
        segment: Segment,
        hidden_BTD: Tensor,
        _nats_BT: Tensor,
        memory: ModelState,
        state: Any,
    ) -> tuple[Tensor, Any]:
        """What the predictions cost that are changed by what is found."""
        self.given.hidden_BTD, self.given.after = hidden_BTD, memory
        logits_BTV, state = self.looking.read(segment.inputs_BT, state)
        return self.looking.nats(logits_BTV, segment.targets_BT), state


def one_pass(
    scorer: Scorer[ModelState], limit: int | None, name: str, why: str = ASTRAY
) -> dict[str, Any]:
    """Read to the end or to the limit; nats, and a curve of bits per byte (or per token, where
    these do not give the text back).

    Raises:
        ValueError: they are not finite; `why` ends the sentence.
    """
    exact = scorer.split.exact
    count = len(scorer) if limit is None else min(limit, len(scorer))
    ends = {count * number // WINDOWS for number in range(1, WINDOWS + 1)}
    marks = [(0.0, 0, 0)]
    for _ in scorer.through(limit, name):
        require_finite(scorer.document_nats, why)
        if scorer.step in ends:
            scorer.settle()
            size = scorer.bytes if exact else scorer.tokens
            marks.append((float(scorer.document_nats.sum()), size, scorer.tokens))
    require_finite(marks[-1][0], why)
    curve = [
        {"tokens": after[2], BITS[not exact]: (after[0] - before[0]) / math.log(2) / size}
        for before, after in pairwise(marks)
        if (size := after[1] - before[1])
    ]
    return {"nats": marks[-1][0], "curve": curve}


def as_read(result: Result, read: Score, limit: int | None) -> tuple[str, float]:
    """What nats of a text are divided by for the number that is told, and its unit; where a limit
    leaves some of the split unread, the record of the plain score becomes one of what was read.

    Args:
        result: record of the plain score.
        read: this score.
        limit: segments of each lane, if not all.
    """
    unit, denominator = result["protocol"]["unit"], result["protocol"]["denominator"]
    if limit is not None:
        # Bytes of what was read are all that can be divided by, or tokens.
        unit, denominator = read.unit, read.tokens if read.bytes is None else read.bytes
        result |= {"value": read.bits, "units": {}}
        result["interval"]["bounds"] = []
        result["protocol"] |= {"unit": unit, "denominator": denominator, "limit": limit}
    return unit, denominator


def table(result: dict[str, Any]) -> str:
    """The passes in lines."""
    dynamic = result["dynamic"]
    how = f"{dynamic['optimizer']}, a step every {dynamic['every']} segments"
    lines = [f"{spoken(dynamic['unit'])}; {how}, decay {dynamic['decay']:g}"]
    for found in dynamic["passes"]:
        name = "fixed weights" if found["lr"] is None else f"learning rate {found['lr']:g}"
        lines.append(f"  {name:<24}{found['value']:10.4f}")
    return "\n".join(lines)
