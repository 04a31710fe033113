"""How a trained model is read, scored and asked to write: settings that need no torch."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data.common.schema import Count, Positive, Size
from data.common.values import require_ranges

BITS = ("bits_per_byte", "bits_per_token")
LONGEST = 1 << 40
"""Tokens; no text has as many."""
LEAST, MOST = 1e-30, 1e30
"""Range of what logits are divided and multiplied by: within it float64 cannot overflow."""
Local = Literal["segment", "memory"]
"""What a reading sees that is to do without long memory: the segment alone, or memory too."""
Fraction = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn from the model's distribution."""

    temperature: Annotated[float, Field(ge=0, le=MOST)] = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: Size | None = None
    """Draw only from this many most probable tokens, and those that are as probable as the last."""
    top_p: Fraction | None = None
    """Draw only from the fewest tokens whose probabilities reach this sum (nucleus sampling); 1
    leaves all."""
    min_p: Fraction | None = None
    """Draw only from tokens at least this many times as probable as the most probable one."""
    typical: Fraction | None = None
    """Draw only from the fewest tokens that reach this sum of probabilities, those first whose
    information is closest to what the model expects (Meister et al., arXiv 2202.00666)."""
    repetition_penalty: Annotated[float, Field(ge=LEAST, le=MOST)] | None = None
    """Divides positive and multiplies negative logits of tokens of the prompt and of the text so
    far (Keskar et al., arXiv 1909.05858); above 1 it makes repetition rarer."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if 0 < self.temperature < LEAST:
            raise ValueError(f"temperature must be 0, or at least {LEAST}, not {self.temperature}")
        filters = (self.top_k, self.top_p, self.min_p, self.typical)
        if self.temperature == 0 and any(value is not None for value in filters):
            raise ValueError(
                "top-k, top-p, min-p and typical have no effect at temperature 0; leave them out"
            )


@dataclass(frozen=True)
class Lengths:
    """Lengths that may differ from training; none keeps the trained one."""

    segment: Size | None = None
    """Tokens read at once."""
    memory: Count | None = None
    """Slots of memory in each layer."""
    compressed: Count | None = None
    """Slots of compressed memory in each layer."""
    sinks: Count | None = None
    """First tokens of a text that stay visible for ever (model.sinks)."""


@dataclass(frozen=True)
class Placement:
    """Where a model computes, and in what numbers."""

    device: Literal["cpu", "cuda", "mps"] | None = None
    """Processor that computes; none: a GPU of NVIDIA's if there is one, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers that weights and memory are held and multiplied in; bfloat16 takes half the room."""


@dataclass(frozen=True)
class ScoringConfig:
    """How a split is read when it is scored."""

    lanes: Annotated[int, Field(ge=1, le=LONGEST)] = 8
    """Parts of the split that are read side by side."""
    warmup: Annotated[int, Field(ge=0, le=LONGEST)] | None = None
    """Tokens a lane reads unscored before its part; none: as many as both memories of a layer span.
    The score does not depend on the number of lanes once this covers the model's whole range."""
    reset_documents: bool = False
    """Begin each document with empty memory."""
    threads: Size | None = None
    """Threads that compute on a CPU; none: as many as are fastest, found by timing the reading
    itself (OMP_NUM_THREADS is kept to where it is set)."""

    def __post_init__(self) -> None:
        require_ranges(self)


@dataclass(frozen=True)
class GenerateConfig(SamplingConfig, Lengths, Placement):
    """What is continued, how, and how far; lengths default to those of training."""

    prompt: str | None = None
    """Text to continue."""
    prompt_file: Path | None = None
    """File that holds the text to continue, of any length."""
    prompts_file: Path | None = None
    """File with a text to continue on each line; all are read side by side."""
    tokens: Count = 500
    """Most tokens that are written to a text; 0 only reads, for save_memory."""
    samples: Size = 1
    """Continuations of each text, which is read once."""
    seed: Count = 0
    """Of the draws of the first continuation; the next ones have the numbers that follow. The same
    seed gives the same text on the same machine, alone or beside others."""
    stop: tuple[str, ...] = ()
    """Strings at which a continuation ends; they are not written."""
    interactive: bool = False
    """Read a line from the standard input, continue the text, read the next line, and so on, until
    the input ends; memory holds the whole conversation."""
    chat: bool | None = None
    """Put lines into the chat template that the run's tokenizer carries, and end an answer where
    the model ends its turn; null does so where there is one, false reads lines as they are."""
    system: str | None = None
    """What a chat begins with, as the system's words."""
    library_candidates: Size | None = None
    """Of --library: memories nearest to a text that are tried on its first tokens; it begins with
    the one that tells them best, or with none if that does. None: 8."""
    memory_weight: Annotated[float, Field(ge=0, le=1000)] | None = None
    """What long memory tells counts so many times: draw from full + (W - 1) (full - local), of
    logits, where local is a second reading without it; 1 is the model itself, 0 the local one."""
    local: Local | None = None
    """What the second reading sees: the segment alone, or memory without compressed memory; none:
    what it saw in training, or memory where there is compressed memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.prompt, self.prompt_file, self.prompts_file]
        if sum(value is not None for value in given) > 1:
            raise ValueError("give one of --prompt, --prompt-file and --prompts-file")
        if self.interactive and (self.samples > 1 or self.prompts_file is not None):
            raise ValueError("--interactive holds one conversation; leave out other texts")
        if not self.tokens and (self.interactive or self.samples > 1 or self.stop):
            raise ValueError("--interactive, --samples and --stop need --tokens of at least 1")
        if not self.interactive and (self.chat is not None or self.system is not None):
            raise ValueError("--chat and --system have no effect without --interactive")
        if self.local is not None and self.memory_weight is None:
            raise ValueError("--local has no effect without --memory-weight; leave it out")
        if self.chat is False and self.system is not None:
            raise ValueError("--system has no effect with --chat false; leave one of them out")


Share = Annotated[float, Field(ge=0, lt=1)]
LookupMethod = Literal["cache", "knn", "mbpa", "mbpa+cache", "mbpa+knn"]
LOOKUP_DEFAULTS: dict[str, dict[str, float | int | str | None]] = {
    "cache": {"sharpness": 10.0, "share": 0.1},
    "knn": {"neighbours": 32, "temperature": 0.1, "share": 0.1, "datastore": None},
    "mbpa": {
        "neighbours": 32,
        "kernel": "inverse",
        "softness": 0.1,
        "rate": 1.0,
        "steps": 1,
        "decay": 0.0,
    },
}
"""What each method takes besides the capacity, and what it is where nothing is said."""


@dataclass(frozen=True)
class LookupConfig:
    """Predictions changed by what was read before: looked up by content, forgotten after each."""

    method: LookupMethod | None = None
    """cache: what followed hidden states like the present one (Grave et al. 2017); knn: what
    followed its nearest neighbours (Khandelwal et al. 2020); mbpa: the output layer learns from
    the neighbours, for one prediction (Sprechmann et al. 2018); or mbpa and one of them after it.
    None: predictions stay as they are."""
    capacity: Size | None = None
    """Newest tokens of each text that are looked up; none: 2,000."""
    neighbours: Size | None = None
    """Nearest entries that knn and mbpa take; none: 32."""
    sharpness: Positive | None = None
    """Of the cache: what the product of two hidden states over their width is multiplied by; none:
    10."""
    temperature: Annotated[float, Field(ge=LEAST)] | None = None
    """Of knn: what the squared distance over the width is divided by; none: 0.1."""
    datastore: Path | None = None
    """Of knn: as many neighbours again are looked up in this datastore (longrange datastore)."""
    share: Share | None = None
    """Of the cache's or the neighbours' distribution in the mixture with the model's; none: 0.1."""
    kernel: Literal["inverse", "exponential"] | None = None
    """Of mbpa: how weights of neighbours fall with their squared distance over the width, d:
    inverse: 1 / (softness + d), exponential: exp(-d / softness); none: inverse."""
    softness: Annotated[float, Field(ge=LEAST)] | None = None
    """Of mbpa: how slowly they fall; none: 0.1."""
    rate: Annotated[float, Field(ge=0)] | None = None
    """Of mbpa: learning rate, times the width; none: 1."""
    steps: Size | None = None
    """Of mbpa: steps that the output layer goes; none: 1."""
    decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of mbpa: share of the way back to the trained weights that each step goes; none: 0."""

    def __post_init__(self) -> None:
        require_ranges(self)
        given = {field.name for field in fields(self) if getattr(self, field.name) is not None}
        if self.method is None and given:
            raise ValueError(f"{min(given)} has no effect without a method of looking up; give one")
        if unused := given - {"method", "capacity"} - self.takes.keys():
            raise ValueError(f"{min(unused)} has no effect with method {self.method}; leave it out")
        if self.steps in (None, 1) and self.decay:
            raise ValueError("decay has no effect on a single step; give more steps")

    @property
    def takes(self) -> dict[str, float | int | str | None]:
        """What the method takes besides the capacity, at its defaults."""
        parts = [] if self.method is None else self.method.split("+")
        return {name: value for part in parts for name, value in LOOKUP_DEFAULTS[part].items()}

    def settled(self) -> "LookupConfig":
        """The same with every default that the method takes written out."""
        if self.method is None:
            return self
        changes: dict[str, Any] = {"capacity": 2000} | self.takes
        for name in changes:
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        return replace(self, **changes)


PLAIN = LookupConfig()
"""Nothing is looked up."""
