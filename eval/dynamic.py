"""Program: dynamic evaluation: a model that goes on learning from the text it has been scored on.

Krause et al., arXiv 1709.07432; the Compressive Transformer's section 4.3 reports one pass of it.
Such a number stands beside that of fixed weights and never in its place. On the training split the
program shows the paper's finding (section 5.5.1) that weights which keep moving remember the text
they have just moved through: with the learning rate at zero the training loss jumps up.
"""

import copy
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from data.common import command
from data.common.outputs import check_output, write_result
from data.common.schema import Positive, Size
from data.shards import Split
from eval.protocol import ScoreConfig, convert, open_reading, record
from eval.results import Share, spoken
from lm.feeding import Segment
from lm.inference.loading import parts_of
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.transformer import CompressiveTransformer
from lm.scoring import ASTRAY, BITS, Scorer, require_finite

WINDOWS = 50
"""Points of the curve of a pass."""


@dataclass(frozen=True)
class DynamicConfig(ScoreConfig):
    """How the text is read, and how weights move on the way."""

    lanes: Size = 1
    """Parts of the split that are read side by side; weights learn from all of them at once."""
    lrs: tuple[Annotated[float, Field(ge=0)], ...] = (1e-5, 1e-4)
    """Learning rates, each in a pass of its own that begins with the trained weights."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """What turns gradients into steps."""
    every: Size = 1
    """Segments of each lane whose gradients are gathered for one step."""
    decay: Share = 0.0
    """Share of the way back to the trained weights that each step goes."""
    clip: Positive = 0.1
    """Largest global norm of a step's gradient."""
    limit: Size | None = None
    """Read only this many segments of each lane; the plain score is then of these as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lrs:
            raise ValueError("lrs must be some rates of at least 0")


def main(
    run: Path,
    scoring: DynamicConfig,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Score a split with fixed weights, and with weights that learn from what was scored.

    Args:
        run: folder of the run.
        scoring: how the text is read, and how weights move.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default dynamic-SPLIT.json in the run's folder.
    """
    target = json or run / f"dynamic-{split}.json"
    check_output(target, *parts_of(run), shards)
    reading = open_reading(run, scoring, split, shards, checkpoint)
    model, part = reading.loaded.model, reading.split
    plain = Scorer(reading.loaded.predictor, part, scoring)
    fixed = one_pass(plain, scoring.limit, "fixed weights")
    result = record(reading, plain.result())
    unit, denominator = result["protocol"]["unit"], result["protocol"]["denominator"]
    if scoring.limit is not None:
        # Not the whole split: bytes of what was read are all that can be divided by, or tokens.
        read = plain.result()
        unit, denominator = read.unit, read.tokens if read.bytes is None else read.bytes
        result |= {"value": read.bits, "units": {}}
        result["interval"]["bounds"] = []
        result["protocol"] |= {"unit": unit, "denominator": denominator, "limit": scoring.limit}
    passes = [fixed | {"lr": None, "value": convert(fixed["nats"], unit, denominator)}]
    for lr in scoring.lrs:
        moving = DynamicScorer(model, part, replace(scoring, lrs=(lr,)))
        why = f"learning rate {lr:g} carried its weights away; leave it out of --lrs"
        found = one_pass(moving, scoring.limit, f"learning rate {lr:g}", why)
        passes.append(found | {"lr": lr, "value": convert(found["nats"], unit, denominator)})
    how = {name: getattr(scoring, name) for name in ("optimizer", "every", "decay", "clip")}
    result["dynamic"] = how | {"unit": unit, "passes": passes}
    write_result(target, result)
    print(table(result))


class DynamicScorer(Scorer[ModelState]):
    """A scorer that scores a segment first and learns from it afterwards.

    It moves a copy of the weights, by the gradient of the scored tokens' mean cost. What is read
    to warm lanes up is not learnt from: another lane may not have been scored on it yet.
    """

    def __init__(self, model: CompressiveTransformer, split: Split, config: DynamicConfig) -> None:
        self.model = copy.deepcopy(model)
        # Kept keys would belong to weights that have moved.
        moving = ModelPredictor(self.model, split.vocabulary, keep_keys=False)
        super().__init__(moving, split, config)
        self.config = config
        self.parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = [parameter.detach().clone() for parameter in self.parameters]
        (lr,) = config.lrs
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = kind(self.parameters, lr=lr)

    @torch.enable_grad()
    def read(self, segment: Segment, state: ModelState) -> tuple[Tensor, ModelState]:
        """What a segment costs before the model learns from it."""
        output = self.model(segment.inputs_BT, state.memory, segment.targets_BT)
        scored_BT = segment.scored_BT
        if scored_BT.any():
            ((output.predictions * scored_BT).sum() / scored_BT.sum()).backward()
        if (self.step + 1) % self.config.every == 0:
            self._learn()
        return output.predictions.detach(), ModelState(output.memory.detach())

    @torch.no_grad()
    def _learn(self) -> None:
        """One step with the gradients that were gathered."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.decay:
            torch._foreach_lerp_(self.parameters, self.trained, self.config.decay)


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


def table(result: dict[str, Any]) -> str:
    """The passes in lines."""
    dynamic = result["dynamic"]
    how = f"{dynamic['optimizer']}, a step every {dynamic['every']} segments"
    lines = [f"{spoken(dynamic['unit'])}; {how}, decay {dynamic['decay']:g}"]
    for found in dynamic["passes"]:
        name = "fixed weights" if found["lr"] is None else f"learning rate {found['lr']:g}"
        lines.append(f"  {name:<24}{found['value']:10.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main, section="scoring")
