"""Everything a run is made of, and what of it may change when the run goes on."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from data.common.command import dump_config, load_config
from data.common.files import hash_json
from data.common.integrity import check_text, seal_text
from data.common.outputs import writing
from data.common.schema import Count, Positive, Size
from data.common.values import require_ranges
from data.lanes import Order
from data.options import DataConfig
from lm.model.model_config import LEARNED, ModelConfig
from lm.objectives.readings_config import ReadingsConfig
from lm.objectives.teacher_config import TeacherConfig
from lm.runs.adapters import LoraConfig
from lm.runs.gating import GateConfig
from lm.sparse.sparse_config import PowerConfig, SparseConfig

Rate = Annotated[float, Field(ge=0)]
"""A rate that may be none at all."""
Beta = Annotated[float, Field(ge=0, lt=1)]
"""A decay rate of a moment."""
MINUTES_OF_A_YEAR = 365 * 24 * 60
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class TrainingConfig:
    """Length of a run, its lanes, and what it writes when."""

    steps: Size | None = None
    """Optimiser steps; each reads unroll x accumulate segments of every lane. A run may be
    continued with more; one whose rates did not depend on its end yet (wsd before its decay, cosine
    with optim.decay) is then as if it had had them from the start."""
    minutes: Positive | None = None
    """Instead of steps: as many as fit in this time, validation and checkpoints included. The
    learning rate follows the time that has passed, so only a run with steps repeats to the bit."""
    lanes: Size = 16
    """Lanes over all ranks, each carrying its own memory; a multiple of the number of ranks."""
    order: Order = "stream"
    """stream: the corpus cut into equal lanes; documents: whole documents in shuffled order."""
    reset_documents: bool = False
    """Begin each document with empty memory (only with order documents)."""
    objectives: tuple[str, ...] = ("likelihood",)
    """What is minimised, by the names in lm/objectives."""
    readings: ReadingsConfig = field(default_factory=ReadingsConfig)
    """Further readings of each segment."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """A frozen run that teaches this one."""
    gate: GateConfig = field(default_factory=GateConfig)
    """How far auxiliary losses may move what they share with the others."""
    learn: Literal["all", "compression", "lora"] = "all"
    """What learns. compression: the compression functions, while every other weight stays what it
    is; lora: these, and adapters of the model's linear maps, which training.lora describes."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    seed: Count = 0
    """Seed of the weights, of dropout and of the order of documents."""
    accumulate: tuple[tuple[int, int], ...] = ((0, 1),)
    """Back-propagations that one step gathers gradients of, while memory moves on, each as [first
    step, number]; the paper's [[0, 1], [60000, 4]] makes updates rarer late in training."""
    unroll: Size = 1
    """Consecutive segments that one back-propagation spans; above 1 the likelihood trains the
    compression functions too."""
    micro_batches: Size = 1
    """Parts that a rank's lanes are read in, one after the other, to save memory."""
    activation_checkpointing: bool = False
    """Keep only each layer's inputs for back-propagation and compute the rest again."""
    compile: bool = False
    """Compile the layers with torch.compile, which takes minutes at the start; where no compiler is
    at hand the run says so and goes on without."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """bf16 multiplies matrices in bfloat16 and keeps float32 master weights; auto does where the
    machine has instructions for it (a GPU, AVX512, AMX), float32 elsewhere."""
    zero: Literal[0, 1, 2, 3] = 0
    """ZeRO stage: what the ranks divide among themselves: nothing (best for one process), the
    optimiser's state (1), also gradients (2), also weights (3)."""
    offload: bool = False
    """Keep the optimiser's state in host memory (stages 2 and 3)."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite ends the run, or its step is left out and counted."""
    log_every: Size = 10
    """Steps between records in metrics.jsonl."""
    validate_every: Size = 1000
    """Steps between scores on the validation split; the last step is always scored."""
    validation_segments: Size | None = None
    """Segments of each of the lanes that these scores read; none: the whole split."""
    save_every: Size = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: Size = 2
    """Newest checkpoints that are kept."""
    keep_every: Size | None = None
    """Also keep the checkpoints of steps that are multiples of this."""
    keep_best: bool = False
    """Also keep the checkpoint with the best score on the validation split."""
    ranks: Size | None = None
    """Processes that must take part; none: as many as the launcher starts."""
    threads: Size | None = None
    """Threads that compute on a CPU. None: in a run of minutes as many as are fastest, found by
    timing its steps; in a run of steps, which repeats to the bit, as many as torch takes.
    OMP_NUM_THREADS is kept to where it is set."""
    timeout: Annotated[float, Field(gt=0, le=MINUTES_OF_A_YEAR)] = 10.0
    """Minutes without a sign from another rank after which a rank gives up."""

    def __post_init__(self) -> None:
        require_ranges(self, "training")
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                "give either training.steps or training.minutes; set the other to null"
            )
        if self.reset_documents and self.order == "stream":
            raise ValueError("training.reset_documents has no effect with training.order stream")
        if self.offload and self.zero < 2:
            raise ValueError("training.offload needs training.zero 2 or 3")
        if self.keep_best and self.save_every % self.validate_every:
            raise ValueError(
                "training.keep_best needs training.save_every to be a multiple of "
                "training.validate_every, so that every checkpoint has a score"
            )
        if self.learn != "lora" and self.lora != LoraConfig():
            raise ValueError(
                f"training.lora has no effect with training.learn {self.learn}; set that to lora"
            )
        firsts = [first for first, _ in self.accumulate]
        if firsts[:1] != [0] or sorted(set(firsts)) != firsts:
            raise ValueError(
                "training.accumulate must begin at step 0 and name later steps in order, such as "
                "[[0, 1], [60000, 4]]"
            )
        if any(number < 1 for _, number in self.accumulate):
            raise ValueError("training.accumulate must gather at least 1 back-propagation a step")


@dataclass(frozen=True)
class OptimConfig:
    """How weights move. Defaults are the paper's for characters (section 4, appendix B)."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for every parameter, or muon for the hidden matrices and adamw for the rest."""
    lr: Positive = 3e-4
    """Peak learning rate of adamw."""
    muon_lr: Positive | None = None
    """Peak learning rate of muon; must be given with it and only then."""
    floor: Rate = 1e-6
    """Learning rate of adamw before the warm-up and after the decay; muon's is in proportion."""
    warmup: Count = 4000
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """What follows the warm-up. cosine: decay in half a cosine; wsd (warm-up, stable, decay): the
    peak rate until `decay` steps before the end, then a straight line to the floor. A run that goes
    on with more steps has the rates of the longer run from then on."""
    decay: Size | None = None
    """Steps of the decay. cosine: from the warm-up on; none: until the last step, wherever that is.
    wsd: at the end of the run; none: a fifth of its steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of adamw's moments."""
    eps: Positive = 1e-8
    """What adamw adds to the root of the second moment; weights whose gradients are smaller hardly
    move."""
    weight_decay: Rate = 0.0
    """Decoupled weight decay of matrices (norms and biases have none)."""
    clip: Positive = 0.1
    """Largest global norm of the gradient."""

    def __post_init__(self) -> None:
        require_ranges(self, "optim")
        if (self.muon_lr is not None) != (self.name == "muon"):
            raise ValueError("optim.muon_lr must be given with optim.name muon, and only then")
        if self.floor > self.lr:
            raise ValueError(f"optim.floor must be at most optim.lr {self.lr}, not {self.floor}")


@dataclass(frozen=True)
class ReportConfig:
    """What a run shows of itself; metrics.jsonl is always written."""

    tensorboard: bool = False
    """Also write the records to tensorboard/ in the run's folder."""
    wandb: str | None = None
    """Also send the records to this project of Weights & Biases."""
    sample_every: Size | None = None
    """Steps between samples, written to samples/ in the run's folder: the model goes on with the
    first words of the validation split."""
    sample_tokens: Size = 300
    """Length of these samples."""
    profile: tuple[Count, Size] | None = None
    """Record what the machine does in some steps, as [first step, number], as a Chrome trace in
    profile/ in the run's folder."""

    def __post_init__(self) -> None:
        require_ranges(self, "report")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: what config.yaml holds."""

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    training: TrainingConfig
    report: ReportConfig = field(default_factory=ReportConfig)
    sparse: SparseConfig = field(default_factory=SparseConfig)
    power: PowerConfig = field(default_factory=PowerConfig)

    def __post_init__(self) -> None:
        self._check_reparameterised()
        self._check_learning()
        self.training.readings.check(self.model)
        if self.optim.name == "muon" and self.training.zero:
            raise ValueError(
                "optim.name muon needs training.zero 0: from stage 1 on DeepSpeed clips the "
                "orthogonal update instead of the gradient, which is another optimiser"
            )
        if self.training.teacher and self.model.head_chunk is not None:
            raise ValueError(
                "training.teacher needs the probabilities of all tokens at once; leave "
                "model.head_chunk out"
            )
        if self.training.gate and self.training.zero:
            raise ValueError(
                "training.gate needs training.zero 0: from stage 1 on no rank has the sums of "
                "gradients whose angle it is about"
            )
        if self.training.unroll > 1 and self.training.zero == 3:
            raise ValueError(
                "training.unroll above 1 needs training.zero 0 to 2: at stage 3 DeepSpeed takes "
                "the gradient of a layer once in a back-propagation"
            )
        if self.training.compile and self.model.backend == "blocked":
            raise ValueError(
                "training.compile cannot compile model.backend blocked; set it to auto"
            )
        if self.training.compile and self.training.zero == 3:
            raise ValueError(
                "training.compile needs training.zero 0 to 2: at stage 3 DeepSpeed gathers weights "
                "in hooks that cannot be compiled"
            )
        if self.training.unroll > 1 and not self.model.compressed:
            raise ValueError(
                "training.unroll has no effect with model.compressed 0, because no gradient "
                "passes through ordinary memory"
            )

    def _check_learning(self) -> None:
        learn, model = self.training.learn, self.model
        if learn != "all" and (self.sparse.density is not None or self.power.alpha > 1):
            raise ValueError(
                f"training.learn {learn} needs dense matrices; leave sparse and power out"
            )
        if learn != "compression":
            return
        if not model.compressed:
            raise ValueError(
                "training.learn compression needs a compressed memory; set model.compressed above 0"
            )
        if model.compression not in LEARNED:
            others = " or ".join(sorted(LEARNED))
            raise ValueError(
                f"training.learn compression has nothing to learn with model.compression "
                f"{model.compression}, which has no weights; set that to {others}"
            )
        for name in ("readings", "teacher", "gate"):
            if getattr(self.training, name) and self.training.unroll == 1:
                raise ValueError(
                    f"training.{name} teaches compression nothing with training.learn compression "
                    "and training.unroll 1: set training.unroll above 1"
                )
        if model.reconstruction == "none" and self.training.unroll == 1:
            raise ValueError(
                "training.learn compression needs something that teaches it: set "
                "model.reconstruction to attention or auto_encoding, or training.unroll above 1"
            )

    def _check_reparameterised(self) -> None:
        if self.optim.name == "muon":
            for name, used in (("sparse", self.sparse.density), ("power", self.power.alpha > 1)):
                if used:
                    raise ValueError(
                        f"{name} needs optim.name adamw, because muon makes the update of a whole "
                        "matrix orthogonal"
                    )
        if self.sparse.stop_exploration is not None and self.optim.weight_decay:
            raise ValueError(
                "sparse.stop_exploration needs optim.weight_decay 0, which would go on moving the "
                "weights outside the forward set; sparse.penalty shrinks those inside"
            )


@dataclass(frozen=True)
class RunFolder:
    """The run's folder and where in it to begin."""

    run: Path
    """Folder of the run; one that holds a checkpoint of the same run is continued."""
    checkpoint: str | None = None
    """Checkpoint to go back to and continue from, such as step-00001000; later ones are set aside.
    None: the newest."""
    from_: Path | None = None
    """Folder of another run whose weights a new one begins with, adopted, trained or imported. The
    model is as there unless something else is stated; all else is the new run's own."""
    from_checkpoint: str | None = None
    """Which of its checkpoints; none: the newest."""


def write_config(path: Path, config: Any) -> None:
    """Write a run's config.yaml, with its hash in a comment before it."""
    with writing(path) as temporary:
        temporary.write_text(seal_text(dump_config(config)), encoding="utf-8")


def read_config(path: Path) -> RunConfig:
    """Read the config.yaml of a run that was trained; errors as of `read_as`."""
    return read_as(RunConfig, path)


def read_as(kind: type[ConfigT], path: Path) -> ConfigT:
    """Read what `write_config` wrote.

    Raises:
        ValueError: it has changed since it was written, or is no such config.
    """
    mend = "put back the file as it was, or take its first line away if the change is meant"
    check_text(path, mend)
    try:
        return load_config(kind, path)
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ValueError(f"{where}{error}; put back the file as it was") from None


FIXED = (
    *("model.", "sparse.", "power.", "optim.name"),
    *("training.lanes", "training.order", "training.reset_documents", "training.seed"),
    *("training.learn", "training.lora."),
)
"""What makes a run the run that it is: the model's shape, what the optimiser remembers, and the
order of the data. (That the shards are the same ones is checked by their hash.)"""
FREE = {
    *("model.dropout", "model.attention_dropout", "model.head_chunk", "model.backend"),
    *("sparse.penalty", "sparse.reservoir", "sparse.route", "power.lr", "power.decay"),
}
"""What of it may be otherwise all the same. All other settings may change when a run goes on:
rates and their schedule, clipping, length, precision, what is saved, logged and shown when, and how
the ranks divide the work."""


def may_change(name: str) -> bool:
    """Whether a run may go on with another value of a setting, such as optim.lr."""
    return name in FREE or not name.startswith(FIXED)


def changed(wanted: RunConfig, stored: RunConfig, run: str) -> dict[str, tuple[Any, Any]]:
    """Settings with which a run goes on that are not those it had: new and old value by name.

    Raises:
        ValueError: a setting differs that would make it another run; names the first.
    """
    old = dict(settings(stored))
    found = {name: (new, old[name]) for name, new in settings(wanted) if new != old[name]}
    for name, (new, before) in found.items():
        if not may_change(name):
            raise ValueError(
                f"{run} holds a run with {name} {before}, not {new}: give another --run folder "
                f"or the same {name}"
            )
    return found


def identity(config: RunConfig) -> str:
    """Hash of all that may not change in a run.

    Settings that have their defaults do not count, so that it is the same when a new one joins.
    """
    kept = {name: value for name, value in settings(config) if not may_change(name)}
    return hash_json({n: value for n, value in kept.items() if value != _default(config, n)})


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by dotted name."""
    for part in fields(config):
        value = getattr(config, part.name)
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{part.name}.")
        else:
            yield prefix + part.name, value


def _default(config: Any, name: str) -> Any:
    section, _, last = name.rpartition(".")
    for part in section.split("."):
        config = getattr(config, part)
    return next(part.default for part in fields(config) if part.name == last)
