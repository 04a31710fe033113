"""The record of a score, of a run or of a model of transformers, as it is read back: a number, its
protocol and its parts.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.common.schema import Count, Record, Sha256, Size

Share = Annotated[float, Field(ge=0, le=1)]
Some = Field(min_length=1)


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
    reading: Literal["windows", "carried"] | None = None
    """How a model of transformers reads; None: a run, which has the three lengths."""
    window: Size | None = None
    """Of windows: the most tokens that a prediction is made from."""
    stride: Size | None = None
    """Of windows: tokens from one to the next."""
    segment: Size | None = None
    memory: Count | None = None
    compressed: Count | None = None
    lanes: Size
    warmup: Count
    reset_documents: bool
    denominator: Size
    tokens: Size
    limit: Size | None = None
    documents: Size | None = None
    """Of a part of the split: so many, the first of it; None: all."""
    sinks: Count | None = None
    """First tokens that stayed visible, where there were any."""
    library: Sha256 | None = None
    """Of memories that documents began with."""
    opening: Size | None = None
    """Tokens of a document that such a memory is found by."""
    candidates: Size | None = None
    """Such memories that were tried on an opening; none: the nearest was taken untried."""
    precision: str | None = None
    """Numbers that the model computed with, where they were not float32."""

    @model_validator(mode="after")
    def _read_somehow(self) -> Self:
        if self.reading is None and None in (self.segment, self.memory, self.compressed):
            raise ValueError("segment, memory and compressed must be given, or else reading")
        if self.reading == "windows" and None in (self.window, self.stride):
            raise ValueError("window and stride must be given with reading windows")
        return self


class Model(Record):
    """Size and kind of a model."""

    parameters: Size
    layers: Size
    width: Size
    vocabulary: str
    training_flops_per_token: float | None
    """None of models of transformers, which are not counted."""
    vocabulary_sha256: Sha256 | None = None
    """None in files of earlier versions."""
    kind: str | None = None
    """Of models of transformers: the class."""
    state_bytes: Count | None = None
    """Memory that it takes to go on with one text; None in files of earlier versions."""
    reach: Size | Literal["unbounded"] | None = None
    """Tokens that may have a part in a prediction; None in files of earlier versions."""


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
    sinks: Count | None = None
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


class Documents(Record):
    """What each document of the split costs, and its size."""

    nats: list[float]
    bytes: list[Count]
    words: list[Count]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if not len(self.nats) == len(self.bytes) == len(self.words):
            raise ValueError("nats, bytes and words must be of the same documents")
        return self


class Stretched(Record):
    """Tokens that begin so many bytes from their document's beginning."""

    first: Annotated[Count, Field(alias="from")]
    to: Size
    nats: float
    bytes: Size
    documents: Size


class Bucket(Record):
    """Words of about one frequency in the training text."""

    name: str
    words: Size
    nats: float
    perplexity: float | None


class Speed(Record):
    """How fast the text was read, and on what."""

    tokens_per_second: float
    device: str
    threads: Size | None = None
    """Of a CPU."""


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
    documents: Documents | None = None
    """None in files of earlier versions, as are the rest."""
    places: list[Stretched] = Field(default_factory=list)
    frequency: list[Bucket] = Field(default_factory=list)
    speed: Speed | None = None
