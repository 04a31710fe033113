"""What the results of eval programs hold, as they are read back.

Every file is checked whole before anything is made of it, so that what reads it may index it
without asking. Numbers are finite: no JSON file has others.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.common.integrity import read_sealed
from data.common.schema import Count, Record, Sha256, Size, as_record
from data.mixtures import SourceName
from eval.adapt_results import Adapted
from eval.score_record import Bucket, Checkpoint, Cost, Score, Share, Some
from eval.worth_results import WorthOfAll
from lm.inference.inference_config import BITS

FORMAT = 2
LENGTHS = (
    *("documents", "reading", "window", "stride", "segment", "memory", "compressed", "sinks"),
    *("lanes", "warmup", "reset_documents", "opening", "candidates", "dynamic"),
)
"""How the text was read."""
Pair = Field(min_length=2, max_length=2)

Result = dict[str, Any]
"""A file's content, once it is known to be as one of the records here says."""


class Place(Cost):
    """Places in documents, in tokens."""

    first: Annotated[Count, Field(alias="from")]
    to: Size
    bytes: Size | None = None
    tokens: Size | None = None
    documents: Size


class Gain(Cost):
    """What a place in documents gains over the beginning of those that reach it."""

    first: Annotated[Count, Field(alias="from")]
    to: Size
    gain: float
    regret: float
    documents: Size


class Attention(Record):
    """Shares of attention by layer; all empty where no lane filled its memories."""

    stores: dict[str, Annotated[list[float], Some]] = Field(default_factory=dict)
    ages: dict[str, Annotated[list[list[float]], Some]] = Field(default_factory=dict)
    segments: Count = 0
    spans: dict[str, Annotated[list[Count], Pair]] = Field(default_factory=dict)
    """Tokens ago at which a store ends and begins, at a segment's end; empty in older files."""

    @model_validator(mode="after")
    def _alike(self) -> Self:
        for name, layers in self.ages.items():
            if len({len(layer) for layer in layers}) > 1:
                raise ValueError(f"ages.{name} must have as many numbers in every layer")
        return self


class Breakdown(Score):
    """Where a score comes from, of eval.breakdown."""

    frequency: list[Bucket]
    position: Annotated[list[Place], Some]
    context: list[Gain] = Field(default_factory=list)
    attention: Attention
    reconstruction: list[float]
    reconstruction_relative: list[float] = Field(default_factory=list)
    """The same over the mean square of what is reconstructed."""
    ablation: dict[str, float]
    worth: WorthOfAll | None = None
    """Of models with memory, where it was asked for."""


class CurvePoint(Cost):
    """Cost of a stretch of the text that ends there."""

    tokens: Count


class Pass(Record):
    """One reading of the text; without a rate: with fixed weights."""

    nats: float
    lr: float | None
    value: float
    curve: Annotated[list[CurvePoint], Some]


class Passes(Record):
    """A text read with fixed weights first, and then with weights that move."""

    optimizer: str
    every: Size
    decay: Share
    clip: float
    learn: str = "all"
    """Older files do not say so."""
    unit: str
    passes: Annotated[list[Pass], Some]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if self.passes[0].lr is not None or any(found.lr is None for found in self.passes[1:]):
            raise ValueError("passes must begin with that of fixed weights, the only one")
        if len({len(found.curve) for found in self.passes}) > 1:
            raise ValueError("passes must have curves of the same points")
        return self


class Dynamic(Score):
    """Scores with weights that learn on the way, of eval.dynamic."""

    dynamic: Passes


class Answers(Record):
    """Answers whose distances are alike."""

    first: Annotated[Size, Field(alias="from")]
    to: Size
    answers: Size
    tokens: Size | None = None
    bytes: Size | None = None
    """Tokens of the answers, in files of earlier versions."""
    accuracy: Share
    whole: Share


class Recall(Record):
    """How much a model remembers, and how far back it sees."""

    reach: dict[Literal["segment", "memory", "compressed", "model"], Size]
    buckets: Annotated[list[Answers], Some]


class Distance(Score):
    """Recall by distance, of eval.distance."""

    distance: Recall


class Regret(Record):
    """Nats a symbol, or of an episode: the best prediction's, and what others cost beyond it."""

    nats: float
    regret: float
    segment: float
    memory: float
    compressed: float


class Stretch(Regret):
    """Places of an episode that are told apart."""

    first: Annotated[Count, Field(alias="from")]
    to: Size


class Sum(Regret):
    """A regret whose standard error is known."""

    deviation: float


class Seen(Record):
    """Symbols that exact predictors see, as `reach` of eval.distance."""

    segment: Size
    memory: Size
    compressed: Size


class Drawn(Record):
    """The source of a probe, as data.mixtures has it."""

    task: SourceName
    symbols: Size
    prior: float
    hazard: float | None


class Probe(Record):
    """Regret on episodes of a source."""

    source: Drawn
    episodes: Size
    length: Size
    reach: Seen
    places: Annotated[list[Stretch], Some]
    last: Sum
    total: Sum


class Bayes(Score):
    """Regret against exact predictions, of eval.bayes."""

    bayes: Probe


class Compressed(Record):
    """Sizes of a text that was compressed, of tools.evaluate."""

    bytes: Size
    bits_per_byte: Annotated[dict[str, float], Some]
    checkpoint: Checkpoint | None = None
    """None in files of earlier versions."""
    shards: Sha256 | None = None


def spoken(unit: str) -> str:
    """A unit in words."""
    return unit.replace("_", " ")


def digits(unit: str, value: float) -> str:
    """A number in its unit with as many digits as say something: bits to four places, perplexities
    to about four figures.
    """
    if not unit.endswith("perplexity"):
        return f"{value:.4f}"
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def bits_of(cost: Mapping[str, Any]) -> float:
    """Bits per byte of a record or, where it has none, per token."""
    bits: float = cost[unit_of(cost)]
    return bits


def unit_of(cost: Mapping[str, Any]) -> str:
    """The name that `bits_of` finds the cost by."""
    return BITS[cost.get(BITS[0]) is None]


def bits_named(costs: Iterable[Mapping[str, Any]]) -> str:
    """The units of some records in words."""
    units = {unit_of(cost) for cost in costs}
    return " or ".join(spoken(unit) for unit in BITS if unit in units)


def lengths(result: Result) -> str:
    """How the text was read, in words."""
    found = {name: result["protocol"][name] for name in LENGTHS if name in result["protocol"]}
    return ", ".join(f"{spoken(name)} {value}" for name, value in found.items())


MADE: dict[type[Record], tuple[str, str]] = {
    Score: ("a score", "eval.score --json"),
    Breakdown: ("a breakdown", "eval.breakdown"),
    Dynamic: ("dynamic evaluation", "eval.dynamic"),
    Adapted: ("ways to learn from a text", "eval.adapt"),
    Distance: ("recall by distance", "eval.distance"),
    Bayes: ("regret against exact predictions", "eval.bayes"),
    Compressed: ("compression", "tools.evaluate"),
}
"""What each kind of file is called, and what makes it."""


def read_result(path: Path, kind: type[Record] = Score) -> Result:
    """A result that a program of eval has written, as it wrote it.

    Args:
        path: the file.
        kind: what it must be.

    Raises:
        ValueError: there is no such file, it is not whole, or another version wrote it.
    """
    what, maker = MADE[kind]
    again = f"remove it and make it again with python -m {maker}"
    if not path.is_file():
        raise ValueError(f"{path} is not there; make it with python -m {maker}")
    result = read_sealed(path, again)
    if isinstance(result, dict) and result.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path} was written by another version; {again}")
    try:
        as_record(kind, result)
    except ValueError as error:
        raise ValueError(f"{path} is not the result of {what}: {error}; {again}") from None
    found: Result = result
    return found
