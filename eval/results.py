"""What the results of eval programs hold, as they are read back.

Every file is checked whole before anything is made of it, so that what reads it may index it
without asking. Numbers are finite: no JSON file has others.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from data.common.integrity import read_sealed
from data.common.schema import Count, Record, Sha256, Size, as_record

FORMAT = 2
Share = Annotated[float, Field(ge=0, le=1)]
Some = Field(min_length=1)

Result = dict[str, Any]
"""A file's content, once it is known to be as one of the records here says."""


class Cost(Record):
    """What some text costs: per byte or, where its tokens do not give it back, per token."""

    bits_per_byte: float | None = None
    bits_per_token: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.bits_per_byte is None) == (self.bits_per_token is None):
            raise ValueError("bits_per_byte must be given, or else bits_per_token")
        return self


class Protocol(Record):
    """What decides a number besides the weights."""

    corpus: str
    text: str
    shards: Sha256
    split: str
    unit: str
    segment: Size
    memory: Count
    compressed: Count
    lanes: Size
    warmup: Count
    reset_documents: bool
    denominator: Size
    tokens: Size
    limit: Size | None = None


class Model(Record):
    """Size and kind of a model."""

    parameters: Size
    layers: Size
    width: Size
    vocabulary: str
    training_flops_per_token: float


class Checkpoint(Record):
    """Where the weights came from."""

    name: str
    sha256: Sha256


class Interval(Record):
    """How sure a number is; no bounds for fewer than two documents."""

    bounds: Annotated[list[float], Field(max_length=2)]
    level: Share
    resamples: Size
    documents: Count

    @model_validator(mode="after")
    def _both(self) -> Self:
        if len(self.bounds) == 1:
            raise ValueError("bounds must be two numbers or none")
        return self


class Point(Record):
    """A score at one choice of lengths."""

    segment: Size
    memory: Count
    compressed: Count
    value: float
    unit: str


class Sweep(Record):
    """Scores at several lengths."""

    split: str
    points: Annotated[list[Point], Some]
    best: Count

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        if self.best >= len(self.points):
            raise ValueError(f"best must be one of {len(self.points)} points")
        return self


class Score(Record):
    """A number and everything one must know to compare it, of eval.score."""

    format: Literal[2]
    value: float
    interval: Interval
    units: dict[str, float]
    nats: float
    bytes: Count | None
    """Of the source text that was read, where that is known."""
    characters: Count | None
    words: Count
    exact: bool = True
    """Whether the tokens give the text back; else there are no bits per byte or character."""
    unknown_words: Share | None = None
    """Of the split's words, the share that the vocabulary does not have; None without words."""
    official_words: bool
    protocol: Protocol
    model: Model
    checkpoint: Checkpoint
    commit: str | None
    compressors: dict[str, float] = Field(default_factory=dict)
    sweep: Sweep | None = None


class Bucket(Record):
    """Words of about one frequency in the training text."""

    name: str
    words: Size
    nats: float
    perplexity: float | None


class Place(Cost):
    """Places in documents, in tokens."""

    first: Annotated[Count, Field(alias="from")]
    to: Size
    bytes: Size | None = None
    tokens: Size | None = None
    documents: Size


class Attention(Record):
    """Shares of attention by layer; all empty where no lane filled its memories."""

    stores: dict[str, Annotated[list[float], Some]] = Field(default_factory=dict)
    ages: dict[str, Annotated[list[list[float]], Some]] = Field(default_factory=dict)
    segments: Count = 0

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
    attention: Attention
    reconstruction: list[float]
    ablation: dict[str, float]


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
    bytes: Size
    accuracy: Share
    whole: Share


class Recall(Record):
    """How much a model remembers, and how far back it sees."""

    reach: dict[Literal["segment", "memory", "compressed", "model"], Size]
    buckets: Annotated[list[Answers], Some]


class Distance(Score):
    """Recall by distance, of eval.distance."""

    distance: Recall


class Compressed(Record):
    """Sizes of a text that was compressed, of tools.evaluate."""

    bytes: Size
    bits_per_byte: Annotated[dict[str, float], Some]
    checkpoint: Checkpoint | None = None
    """None in files of earlier versions."""
    shards: Sha256 | None = None


class PrunedPoint(Record):
    """A score at one sparsity."""

    sparsity: Share
    zero: Share
    value: float


class Pruning(Record):
    """Scores of a pruned model, of eval.prune."""

    pruning: Annotated[list[PrunedPoint], Some]
    alpha: float
    kinds: list[str]
    scope: str
    unit: str
    protocol: Protocol
    model: Model
    checkpoint: Checkpoint


class Variant(Cost):
    """A line of an experiment's table.json, as far as it is drawn."""

    model_config = ConfigDict(extra="ignore")

    variant: str
    deviation: Annotated[float, Field(ge=0)] | None = None


class MemoryLine(Record):
    """Bytes for each weight in one form of the matrices, of tools.bench sparse."""

    model_config = ConfigDict(extra="ignore")

    form: str
    parameters: float
    gradients: float
    moments: float
    places: float
    reservoir: float
    bits: float


class TimeLine(Record):
    """Speed against dense matrices in one form, of tools.bench sparse."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    form: str
    share: Annotated[str | None, Field(alias="forward/backward")] = None
    x: float | None = None
    both: Annotated[float | None, Field(alias="both x")] = None

    @model_validator(mode="after")
    def _timed(self) -> Self:
        if self.x is None and self.both is None and not self.form.endswith("dense"):
            raise ValueError("x or both x must be given")
        return self


class Sparse(Record):
    """Figures of tools.bench sparse, each of which may be absent."""

    model_config = ConfigDict(extra="ignore")

    memory: Annotated[list[MemoryLine], Some] | None = None
    step: Annotated[list[TimeLine], Some] | None = None
    matrix: Annotated[list[TimeLine], Some] | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.memory is None and self.step is None and self.matrix is None:
            raise ValueError("it has none of memory, step and matrix")
        return self


def read_result(path: Path, kind: type[Record] = Score) -> Result:
    """A result that a program of eval has written, as it wrote it.

    Args:
        path: the file.
        kind: what it must be.

    Raises:
        ValueError: there is no such file, it is not whole, or another version wrote it.
    """
    again = f"remove it and make it again{MAKERS.get(kind, '')}"
    if not path.is_file():
        raise ValueError(f"{path} is not there; make it{MAKERS.get(kind, '')}")
    result = read_sealed(path, again)
    if isinstance(result, dict) and result.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path} was written by another version; {again}")
    try:
        as_record(kind, result)
    except ValueError as error:
        said = f"{path} is not the result of {NAMES.get(kind, 'such a program')}"
        raise ValueError(f"{said}: {error}; {again}") from None
    found: Result = result
    return found


NAMES: dict[type[Record], str] = {
    Score: "a score",
    Breakdown: "a breakdown",
    Dynamic: "dynamic evaluation",
    Distance: "recall by distance",
    Compressed: "compression",
}
MAKERS: dict[type[Record], str] = {
    Score: " with python -m eval.score --json",
    Breakdown: " with python -m eval.breakdown",
    Dynamic: " with python -m eval.dynamic",
    Distance: " with python -m eval.distance",
    Compressed: " with python -m tools.evaluate",
}
