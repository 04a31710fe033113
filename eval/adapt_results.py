"""What the results of eval.adapt hold of each way to learn from a text, as they are read back."""

from typing import Annotated, Any, Self

from pydantic import model_validator

from data.common.schema import Count, Record
from eval.score_record import Score, Some


class Curve(Record):
    """What one setting costs on validation text at each of its values, in the result's unit."""

    setting: str
    values: Annotated[list[Any], Some]
    costs: list[float]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len(self.values) != len(self.costs):
            raise ValueError("values and costs must be of the same settings")
        return self


class Way(Record):
    """A way to learn from a text while it is scored, and what it takes."""

    method: str
    value: float
    nats: float
    settings: dict[str, Any]
    curves: list[Curve]
    tokens_per_second: float
    tokens_per_cpu_second: float
    bytes: Count
    """Of what it keeps of a lane beside the model as it is."""


class Ways(Record):
    """Fixed weights, and then each way at its best settings."""

    unit: str
    validation: float
    """Cost of fixed weights there."""
    ways: Annotated[list[Way], Some]

    @model_validator(mode="after")
    def _fixed_first(self) -> Self:
        if self.ways[0].method != "fixed":
            raise ValueError("ways must begin with fixed weights")
        return self


class Adapted(Score):
    """Scores with ways to learn from the text on the way, of eval.adapt."""

    adapt: Ways
