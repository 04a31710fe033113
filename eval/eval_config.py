"""How the programs of this folder read a split, and what each does with it: without torch."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from data.common.schema import Count, Positive, Size
from data.common.values import require_ranges
from eval.score_record import Share
from lm.inference.inference_config import (
    PLAIN,
    Lengths,
    Local,
    LookupConfig,
    Placement,
    ScoringConfig,
)
from lm.sparse.sparse_config import Kind, Scope

ABLATIONS = ("intact", "absent", "zeroed", "shuffled", "exchanged")
"""What may be done to compressed memory (eval.ablation)."""
AdaptMethod = Literal[
    "cache",
    "knn",
    "mbpa",
    "mbpa+cache",
    "mbpa+knn",
    "memory",
    "dynamic",
    "dynamic-head",
    "dynamic+cache",
    "dynamic+mbpa",
]
ADAPT_METHODS: tuple[AdaptMethod, ...] = get_args(AdaptMethod)
NAMES = ("segment", "memory", "compressed", "sinks")
"""Lengths that a sweep may try."""


@dataclass(frozen=True)
class ScoreConfig(ScoringConfig, Lengths, Placement):
    """How a split is read when it is scored; lengths default to those of training."""


@dataclass(frozen=True)
class SweepConfig:
    """Lengths to be tried on the validation split, in all combinations; the best is then scored."""

    segment: tuple[Size, ...] = ()
    """Tokens read at once."""
    memory: tuple[Count, ...] = ()
    """Slots of memory in each layer."""
    compressed: tuple[Count, ...] = ()
    """Slots of compressed memory in each layer."""
    sinks: tuple[Count, ...] = ()
    """First tokens of a text that stay visible for ever."""

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in NAMES)

    def points(self, fixed: Lengths) -> list[Lengths]:
        """Every combination; what no list names is as in `fixed`.

        Raises:
            ValueError: a length is given both ways.
        """
        for name in NAMES:
            if getattr(self, name) and getattr(fixed, name) is not None:
                raise ValueError(f"give either --{name} or --sweep.{name}")
        choices = [getattr(self, name) or (getattr(fixed, name),) for name in NAMES]
        return [Lengths(*lengths) for lengths in product(*choices)]


@dataclass(frozen=True)
class ProgramConfig(ScoreConfig):
    """How a split is read, at one choice of lengths or the best of several, and by which model of
    transformers if it is not a run that is scored.
    """

    sweep: SweepConfig = field(default_factory=SweepConfig)
    documents: Size | None = None
    """Score only so many documents, the first of the split."""
    frequency: bool = False
    """Sum the cost also by how often the training split has each word, all of which is read."""
    hf: str | None = None
    """Folder, or name on the hub, of a causal model of transformers that is scored instead of a
    run; the text is encoded anew with its own tokenizer."""
    gguf: str | None = None
    """GGUF file of such a model: a path, or its name in the folder."""
    vocabulary: Path | None = None
    """Folder of the model's tokenizer, if it is not beside the model."""
    window: Size | None = None
    """Tokens of a window that such a model reads anew; none: 1,024, or as many as it has positions
    for."""
    stride: Size | None = None
    """Tokens from one window to the next, which are scored with at least window - stride before
    them; as long as the window: disjoint windows; none: half of it."""
    carried: bool = False
    """Read on with the state of a recurrent model (Mamba, RWKV, xLSTM) in the place of windows."""
    library: Path | None = None
    """Memories of other texts (longrange library add); each document goes on after that of the text
    that is most like its opening, once that is read."""
    library_candidates: Size | None = None
    """Memories nearest to a document that are tried on its opening; it goes on after the one that
    tells it best, or after none if that does. None: 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.library is not None:
            self._require_documents()
        elif self.library_candidates is not None:
            raise ValueError("library_candidates has no effect without --library; leave it out")
        windows = self.window is not None or self.stride is not None
        if not self.of_hub:
            if windows or self.carried or self.vocabulary is not None:
                raise ValueError(
                    "--window, --stride, --carried and --vocabulary have no effect without --hf or "
                    "--gguf; leave them out"
                )
            return
        if self.carried and windows:
            raise ValueError("--carried reads no windows: leave --window and --stride out")
        given = [f"--{name}" for name in NAMES if getattr(self, name) is not None]
        given = [name for name in given if name != "--segment" or not self.carried]
        given += ["--sweep"] if self.sweep else []
        given += ["--library"] if self.library is not None else []
        if given:
            raise ValueError(f"{given[0]} has no effect on a model of transformers; leave it out")

    def _require_documents(self) -> None:
        """What a library leaves open of the way that a split is read."""
        if not self.reset_documents:
            raise ValueError("--library begins each document anew; say --reset_documents true")
        if self.warmup is not None:
            raise ValueError("warmup has no effect with --library: lanes read documents whole")
        if self.sweep:
            raise ValueError(
                "a library is of one choice of lengths; leave --sweep or --library out"
            )

    @property
    def of_hub(self) -> bool:
        """Whether a model of transformers is scored, not a run."""
        return self.hf is not None or self.gguf is not None


@dataclass(frozen=True)
class BreakdownConfig(ScoreConfig):
    """How the split is read, and how it is cut."""

    edges: tuple[Size, ...] = (10_000, 1_000, 100)
    """Occurrences in the training text at which a bucket of rarer words begins, falling."""
    ablations: tuple[str, ...] = ABLATIONS
    """What is done to compressed memory, each in a pass of its own: intact, absent, zeroed,
    shuffled, exchanged."""
    worth: bool = True
    """Measure what memory tells of each token, by a second reading without it; also writes a page
    of the passages where that is most."""
    local: Local | None = None
    """What the second reading sees: the segment alone, or memory without compressed memory; none:
    what it saw in training, or memory where there is compressed memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(set(self.edges), reverse=True) != list(self.edges) or not self.edges:
            raise ValueError(f"edges must fall from bucket to bucket, not {list(self.edges)}")
        if self.local is not None and not self.worth:
            raise ValueError("local has no effect with worth false; leave it out")
        if unknown := set(self.ablations) - set(ABLATIONS):
            raise ValueError(f"ablations are some of {', '.join(ABLATIONS)}, not {min(unknown)}")


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
    learn: Literal["all", "head"] = "all"
    """Weights that learn: all, or those of the output layer alone, which then shares none."""
    limit: Size | None = None
    """Read only this many segments of each lane; the plain score is then of these as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lrs:
            raise ValueError("lrs must be some rates of at least 0")
        if self.precision != "float32":
            raise ValueError("weights that learn need precision float32; leave --precision out")


@dataclass(frozen=True)
class CodingConfig:
    """How a file is read that is compressed."""

    lanes: Size | None = None
    """Parts of the file that are coded side by side, each beginning without memory; none: one for
    every 4,096 tokens, 256 at most."""
    adapt: LookupConfig = PLAIN
    """What is looked up in the text so far, to change predictions by; the same to get a file back
    as when it was compressed."""

    def __post_init__(self) -> None:
        require_ranges(self)


@dataclass(frozen=True)
class PruneConfig(ScoreConfig):
    """What is pruned, and how a split is read when it is scored."""

    sparsities: tuple[Share, ...] = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
    """Shares of the weights that are zero."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that are pruned."""
    scope: Scope = "matrix"
    """Whether the smallest weights of each matrix go, or the smallest of all together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsities:
            raise ValueError("sparsities must be some shares between 0 and 1")
        if not self.kinds:
            raise ValueError("kinds must name some matrices, such as '[attention, feedforward]'")


@dataclass(frozen=True)
class AdaptConfig(ScoreConfig):
    """How the text is read, which ways to learn from it on the way are compared, and the settings
    that each is tried with on the validation split, one after the other: the best of a list stays
    while the next is tried.
    """

    methods: tuple[AdaptMethod, ...] = ADAPT_METHODS
    """cache, knn, mbpa, mbpa+cache, mbpa+knn: what was read is looked up; memory: as many slots of
    uncompressed memory as a store has entries; dynamic, dynamic-head: weights, or those of the
    output layer, learn; dynamic+cache, dynamic+mbpa: they learn while what was read is looked up,
    both as they are best alone."""
    capacity: tuple[Size, ...] = (500, 2000)
    """Newest tokens that are looked up."""
    neighbours: tuple[Size, ...] = (4, 16, 64)
    """Nearest entries, of knn and mbpa."""
    sharpness: tuple[Positive, ...] = (5.0, 10.0, 20.0, 40.0)
    """Of the cache."""
    temperature: tuple[Positive, ...] = (0.03, 0.1, 0.3)
    """Of knn."""
    datastore: Path | None = None
    """Of knn: neighbours are looked up in this datastore too (longrange datastore)."""
    share: tuple[Share, ...] = (0.02, 0.05, 0.1, 0.2)
    """Of the cache's or the neighbours' distribution."""
    kernel: tuple[Literal["inverse", "exponential"], ...] = ("inverse", "exponential")
    """Of mbpa."""
    softness: tuple[Positive, ...] = (0.03, 0.1, 0.3)
    """Of mbpa."""
    rate: tuple[Annotated[float, Field(ge=0)], ...] = (0.3, 1.0, 3.0, 10.0)
    """Of mbpa."""
    steps: tuple[Size, ...] = (1,)
    """Of mbpa."""
    decay: tuple[Share, ...] = ()
    """Of mbpa with several steps."""
    lrs: tuple[Annotated[float, Field(ge=0)], ...] = (1e-5, 1e-4, 1e-3)
    """Learning rates of dynamic and dynamic-head, by Adam."""
    limit: Size | None = None
    """Read only this many segments of each lane, of both splits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise ValueError(f"methods must be some of {', '.join(ADAPT_METHODS)}")
        dynamic = {name for name in self.methods if name.startswith("dynamic")}
        if dynamic and not self.lrs:
            raise ValueError(f"{min(dynamic)} needs some learning rates; give --lrs")
        if dynamic and self.precision != "float32":
            raise ValueError(f"{min(dynamic)} needs precision float32; leave --precision out")
        if self.datastore is not None and not any("knn" in name for name in self.methods):
            raise ValueError("datastore has no effect without method knn; leave it out")
        if not self.capacity:
            raise ValueError("capacity must be some numbers of tokens")
        if "memory" in self.methods and self.memory is not None:
            raise ValueError("memory has no effect where method memory tries lengths of its own")
