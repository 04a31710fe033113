"""A frozen run that teaches another: what is learnt from it, and for how long. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data.common.schema import Positive, Size
from data.common.values import require_ranges

Divergence = Literal["forward", "reverse", "jensen"]
SECTION = "training.teacher"


@dataclass(frozen=True)
class TeacherConfig:
    """A frozen run of the same vocabulary, which reads what the student reads, with a memory of its
    own.
    """

    run: Path | None = None
    """Its folder: trained, adopted or imported."""
    checkpoint: str | None = None
    """Which of its checkpoints; none: the newest."""
    weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the divergence from it, beside the likelihood."""
    divergence: Divergence = "forward"
    """forward: KL(teacher || student), which covers all that the teacher expects; reverse:
    KL(student || teacher), which keeps to where it is sure; jensen: Jensen and Shannon's, half of
    each from the mean."""
    temperature: Positive = 1.0
    """Divides the logits of both; the divergence is multiplied by its square."""
    until: Size | None = None
    """Step by which teaching has faded out, on a straight line; from then on the teacher is not
    read. None: it stays."""
    mix: bool = False
    """Train (1 - a) teacher + a student, of probabilities, by its likelihood, in place of the
    student alone, with a from 0 to 1 at `until`; the divergence counts 1 - a (Mix&Match)."""

    def __post_init__(self) -> None:
        require_ranges(self, SECTION)
        if self.run is None:
            for name, usual in DEFAULTS.items():
                if getattr(self, name) != usual:
                    raise ValueError(f"{SECTION}.{name} has no effect without {SECTION}.run")
        if self.mix and self.until is None:
            raise ValueError(
                f"{SECTION}.mix needs {SECTION}.until, the step at which the student is alone"
            )
        if self.mix and (self.divergence != "forward" or self.temperature != 1):
            raise ValueError(
                f"{SECTION}.mix matches by KL(teacher || student); leave {SECTION}.divergence and "
                "temperature out"
            )

    def __bool__(self) -> bool:
        return self.run is not None

    def share(self, step: int) -> float:
        """What the teacher still counts at a step, from 1 down to 0: 1 - a."""
        return 1.0 if self.until is None else max(0.0, 1 - step / self.until)

    def weights(self, step: int) -> dict[str, float]:
        """Of the terms `teacher`, `mixture` and `nats`."""
        share = self.share(step)
        if not share:
            return {}
        own = {"teacher": self.weight * share}
        return own | {"mixture": 1.0, "nats": 0.0} if self.mix else own


DEFAULTS = {
    "checkpoint": None,
    "weight": 0.5,
    "divergence": "forward",
    "temperature": 1.0,
    "until": None,
    "mix": False,
}
