"""Learning from a teacher's probabilities: distillation in its teacher-driven forms (Czarnecki et
al., arXiv 1902.02186), and a mixture with a teacher that is left behind (Mix&Match, Czarnecki et
al., arXiv 1806.01780).

On the text, with T the teacher's probabilities of a token and S the student's:

    forward  KL(T || S)             gradient on the student's logits S - T
    reverse  KL(S || T)             S (log S/T - KL)
    jensen   half of KL(T || M) and KL(S || M), M = (T + S) / 2
    mixture  -log((1 - a) T(x) + a S(x)), of the token x that came

Shapes: B lanes, T tokens of a segment, V vocabulary.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lm.objectives import measures
from lm.objectives.objective import Objective, SegmentRead, Term
from lm.objectives.teacher_config import TeacherConfig


class Teaching(Objective):
    """The terms `teacher`, the divergence, and with a mixture `mixture`, its likelihood.

    The student's own likelihood stays `nats`; while a mixture learns it is only shown.
    """

    logits = True

    def __init__(self, config: TeacherConfig, logits: Callable[[Tensor], Tensor]) -> None:
        """`logits`: makes the teacher's logits [B, T, V] of what it told of a segment."""
        self.config, self.teacher_logits = config, logits

    def terms(self, read: SegmentRead) -> dict[str, Term]:
        """See the class; nothing where the teacher has not read the segment."""
        if read.told is None:
            return {}
        with torch.no_grad():
            told_BTV = self.teacher_logits(read.told)
        own_BTV, scored = read.logits_BTV(), read.scored_BT
        weights, found = self.weights(read.step), {}
        found["teacher"] = self.divergence(told_BTV, own_BTV)
        if not weights["teacher"]:
            found["teacher"] = found["teacher"].detach()
        if self.config.mix:
            teacher, student = map(measures.log_probabilities, (told_BTV, own_BTV))
            share = 1 - self.config.share(read.step)
            target = read.targets_BT[..., None]
            t, s = (log.gather(-1, target)[..., 0] for log in (teacher, student))
            found["mixture"] = -measures.mixture(t, s, share)
        return {
            name: Term((value * scored).sum(), scored.sum(), "scored")
            for name, value in found.items()
        }

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Of logits [..., V] to [...], in nats, times the temperature's square."""
        heat = self.config.temperature
        t, s = (measures.log_probabilities(logits / heat) for logits in (teacher, student))
        if self.config.divergence == "forward":
            found = measures.divergence(t, s)
        elif self.config.divergence == "reverse":
            found = measures.divergence(s, t)
        else:
            found = measures.jensen_shannon(t, s)
        return heat**2 * found

    def weights(self, step: int) -> Mapping[str, float]:
        """Those of the config."""
        return self.config.weights(step)
