"""What a run needs and how fast it goes on a cluster, by arithmetic.

Sizes are in bytes of one rank, times in seconds. P parameters of the model, N ranks.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from lm.model.components import Linear
from lm.model.flops import Learning, training_flops
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Likelihood, Segment, terms_of
from lm.objectives.readings import Readings
from lm.objectives.readings_config import ReadingsConfig
from lm.runs.adapters import LoraConfig
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import SparseConfig
from lm.sparse.topkast import kind_of
from lm.training.engine import bucket_elements
from lm.training.learning import adapter_sizes
from tools.cluster import Cluster
from tools.teaching import teacher_bytes, teacher_flops

HOUR, DAY = 3600.0, 86400.0
FLOAT32 = 4
LASTING = 1e-6
"""Share of the time that must be work which lasts."""
MOMENTS = 2 * FLOAT32
"""AdamW's two moments of a parameter."""
PLAIN = ReadingsConfig()
ADAPTERS = LoraConfig()


@dataclass(frozen=True)
class Size:
    """Trained values of a model."""

    parameters: int
    """P: of sparse matrices, those of the backward set."""
    block: int
    """Of the largest layer, which ZeRO stage 3 gathers at once."""
    indices: int
    """Places of the sparse matrices' values, 4 bytes each."""
    trained: int
    """Of the parameters, those that move: others have no gradient and no optimiser state."""


@cache
def size(
    config: ModelConfig,
    vocabulary: int,
    sparse: SparseConfig,
    learn: Learning = "all",
    lora: LoraConfig = ADAPTERS,
) -> Size:
    """Count a model's parameters, dense or sparse, with the adapters of `lora` where they learn."""
    with torch.device("meta"):
        model = CompressiveTransformer(config, vocabulary)
    kept = {name: parameter.numel() for name, parameter in model.named_parameters()}
    indices = 0
    for name, module in model.named_modules():
        kind = kind_of(name)
        if sparse.density is not None and isinstance(module, Linear) and kind in sparse.kinds:
            values = round(sum(sparse.shares(kind)) * module.weight.numel())
            kept[f"{name}.weight"] = values
            indices += values
    if learn == "lora":
        kept |= adapter_sizes(model, lora)
    blocks: dict[str, int] = {}
    for name, count in kept.items():
        if name.startswith("blocks."):
            number = name.split(".")[1]
            blocks[number] = blocks.get(number, 0) + count
    trained = sum(count for name, count in kept.items() if learns(name, learn))
    return Size(sum(kept.values()), max(blocks.values()), indices, trained)


def passed(config: RunConfig) -> Learning:
    """What gradients pass through: nothing but compression where it learns alone, unless it has a
    likelihood over several segments, or at stage 3 every layer waits for its backward pass.
    """
    training, learn = config.training, config.training.learn
    alone = learn == "compression" and training.unroll == 1 and training.zero < 3
    return learn if alone or learn == "all" else "lora"


def learns(name: str, learn: Learning) -> bool:
    """Whether a parameter of a model moves."""
    return learn == "all" or any(part in name for part in (".compression.", ".decoder.", ".lora_"))


@cache
def saved_for_backward(
    config: ModelConfig,
    vocabulary: int,
    lanes: int,
    device: str,
    learn: Learning = "all",
    readings: ReadingsConfig = PLAIN,
) -> int:
    """Bytes that autograd keeps of one forward pass in float32, weights apart, counted by doing it.

    On "meta" nothing is computed: the routes are those of a GPU, unfused.
    """
    with torch.device(device):
        model = CompressiveTransformer(config, vocabulary)
        tokens = torch.zeros(lanes, config.segment, dtype=torch.int64)
        memory = model.empty_memory(lanes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name, learn))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, int] = {}
    # The graph and what it has saved live until the counting is done: no storage is counted twice.
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        if readings:
            every = torch.ones_like(tokens, dtype=torch.bool)
            segment = Segment(tokens, tokens, every, every[:, 0])
            read = Readings(readings)
            terms_of([Likelihood(), read], read.read(model, segment, memory, False, 0))
        else:
            model(tokens, memory, tokens)
    return sum(count for storage, count in saved.items() if storage not in weights)


def activations(config: RunConfig, vocabulary: int, lanes: int, device: str = "meta") -> float:
    """Bytes of activations of one back-propagation over `lanes` lanes.

    Counted for one and two layers and lanes, in which they are linear; bf16 halves them. What fixed
    weights compute is not kept, but for one layer, or the logits, at a time.
    """
    readings = config.training.readings
    ends, layer = _by_part(config.model, vocabulary, lanes, device, "all", readings)
    model, at_once = config.model, 0.0
    if passed(config) == "compression":
        at_once = max(ends, layer)
        ends, layer = _by_part(config.model, vocabulary, lanes, device, "compression", readings)
    kept = model.layers * layer
    if config.training.activation_checkpointing:
        inputs = FLOAT32 * lanes * readings.lanes * model.segment * model.width
        kept = min(kept, model.layers * inputs + layer)
    half = config.training.precision != "float32"
    return (config.training.unroll * (ends + kept) + at_once) / (2 if half else 1)


def _by_part(
    model: ModelConfig,
    vocabulary: int,
    lanes: int,
    device: str,
    learn: Learning,
    readings: ReadingsConfig,
) -> tuple[float, float]:
    """Bytes that are kept of the two ends of the model, and of one layer."""
    model, every = replace(model, memory_layers=None), readings.every
    groups = lanes / every

    def count(layers: int, of: int) -> int:
        shape = replace(model, layers=layers)
        return saved_for_backward(shape, vocabulary, of * every, device, learn, readings)

    try:
        one, two, wide, both = count(1, 1), count(2, 1), count(1, 2), count(2, 2)
    except RuntimeError as error:
        if "overflowed" not in str(error):
            raise
        raise ValueError(
            f"a segment of {model.segment:,} tokens over {model.slots:,} slots is larger than any "
            "machine; lower model.segment, model.memory or model.compressed"
        ) from None
    layer = (two - one) + (groups - 1) * ((both - wide) - (two - one))
    return one + (groups - 1) * (wide - one) - layer, layer


def memory_state(config: RunConfig, lanes: int) -> float:
    """Bytes of the memory of some lanes."""
    width = 2 if config.training.precision != "float32" else FLOAT32
    model = config.model
    slots = sum(model.at(layer).slots for layer in range(model.layers))
    filters = FLOAT32 * model.layers * model.filters
    return float(lanes) * (width * slots * model.width + filters)


def states(config: RunConfig, of: Size, ranks: int) -> dict[str, float]:
    """Bytes of weights, gradients, optimiser and buffers at their largest, by part.

    As DeepSpeed holds them with this project's settings; checked against live processes. Weights
    that do not move are held as they are, and at stage 3 shared among the ranks like others.
    """
    training, count, moving = config.training, float(of.parameters), float(of.trained)
    half = training.precision != "float32"
    weight = 2 if half else FLOAT32
    share = moving / ranks
    bucket = float(weight * bucket_elements(of.trained))
    masters = FLOAT32 * moving if half or training.zero else 0.0
    if half and not training.zero:
        # Without ZeRO the whole model has a copy in float32.
        masters = FLOAT32 * count
    parts = {"weights": weight * count, "optimiser": masters + MOMENTS * moving}
    if training.zero:
        parts["optimiser"] = 0.0 if training.offload else parts["optimiser"] / ranks
    if training.zero < 2:
        parts["gradients"] = weight * moving
    else:
        # At the update stand beside the rank's share its copies in one piece and in float32.
        parts["gradients"] = (2 * weight if training.offload else 2 * FLOAT32) * share
    if training.gate:
        # Those of auxiliary losses stand beside the others in float32.
        parts["gradients"] += FLOAT32 * moving
    if training.zero == 0:
        # Gradients of several ranks are summed in one piece, which in bf16 is also copied to
        # float32; so are, at the update, the masters' gradients.
        piece = weight * moving if ranks > 1 else 0.0
        parts["buffers"] = piece + (FLOAT32 * moving if half else 0.0)
    elif training.zero == 1:
        parts["buffers"] = (weight + FLOAT32) * share if half else 2 * bucket
    else:
        parts["buffers"] = bucket
    if training.zero == 3:
        # Two layers are whole at once, and one layer's gradient.
        parts["weights"] = weight * (count / ranks + 2 * of.block)
        parts["buffers"] += weight * of.block * (moving / count) + bucket
    parts["indices"] = FLOAT32 * float(of.indices)
    return parts


def sized(config: RunConfig, vocabulary: int) -> Size:
    """`size` of a run's model."""
    training = config.training
    return size(config.model, vocabulary, config.sparse, training.learn, training.lora)


def check_lanes(lanes: int, ranks: int, micro_batches: int = 1) -> None:
    """ValueError if the ranks cannot share the lanes evenly."""
    if lanes % (ranks * micro_batches):
        times = f" times {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise ValueError(
            f"training.lanes must be a multiple of {ranks:,} ranks{times}, not {lanes:,}: each "
            "rank reads as many"
        )


def needed(
    config: RunConfig, vocabulary: int, ranks: int, device: str = "meta"
) -> dict[str, float]:
    """Bytes that one rank needs, by part and at their largest together.

    Activations are gone when gradients are summed and used, so `total` is less than the sum.

    Raises:
        ValueError: the lanes do not divide.
    """
    training = config.training
    check_lanes(training.lanes, ranks, training.micro_batches)
    lanes = training.lanes // ranks
    parts = states(config, sized(config, vocabulary), ranks)
    part = lanes // training.micro_batches
    parts["activations"] = activations(config, vocabulary, part, device)
    # What it was before a step, and what it becomes, that of further readings too.
    parts["memory"] = (1 + training.readings.lanes) * memory_state(config, lanes)
    teacher, remembered = teacher_bytes(config, vocabulary, lanes)
    parts["weights"] += teacher
    parts["memory"] += remembered
    always = sum(parts[name] for name in ("weights", "optimiser", "indices", "memory"))
    gathered = parts["gradients"] if passes(config) > 1 else 0.0
    update = parts["gradients"] + parts["buffers"]
    return parts | {"total": always + max(parts["activations"] + gathered, update)}


def passes(config: RunConfig) -> int:
    """Back-propagations of a step, at most."""
    most = max(number for _, number in config.training.accumulate)
    return most * config.training.micro_batches


def traffic(config: RunConfig, of: Size, ranks: int) -> float:
    """Bytes that a rank sends in a step, and receives as many; where steps differ, in the largest.

    A sum over ranks moves (N - 1) / N of its size twice; scattered sums and gathered weights, once.
    """
    training = config.training
    width = 2 if training.precision != "float32" else FLOAT32
    once = width * of.trained * (ranks - 1) / ranks
    every = width * of.parameters * (ranks - 1) / ranks
    if training.zero == 0:
        return 2 * once
    if training.zero == 1:
        return 2 * once + once
    if training.zero == 2:
        return passes(config) * once + once
    return passes(config) * (2 * every + once)


@dataclass(frozen=True)
class Speed:
    """A training step as it is predicted; nothing overlaps."""

    compute: float
    communication: float
    tokens: int
    """Read by all ranks."""

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.compute + self.communication

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.tokens / self.seconds


def speed(config: RunConfig, vocabulary: int, cluster: Cluster) -> Speed:
    """Predict the time of a step from counted operations and moved bytes.

    With activation checkpointing the forward pass, a third of the operations, is done twice.
    """
    training, ranks = config.training, cluster.ranks
    segments = training.unroll * max(number for _, number in training.accumulate)
    tokens = training.lanes * segments * config.model.segment
    lanes = training.lanes // ranks
    flops = training_flops(
        config.model,
        vocabulary,
        lanes,
        learn=passed(config),
        readings=training.readings.lanes,
        gated=bool(training.gate),
    ).total
    flops += teacher_flops(config, vocabulary, lanes)
    again = 4 / 3 if training.activation_checkpointing else 1.0
    compute = tokens / ranks * flops * again / (cluster.tflops * 1e12 * cluster.efficiency)
    moved = traffic(config, sized(config, vocabulary), ranks)
    slowest = cluster.inside if cluster.nodes == 1 else min(cluster.inside, cluster.between)
    return Speed(compute, moved / (slowest * 1e9), tokens)


@dataclass(frozen=True)
class Checkpoints:
    """How often a run is best saved, and what share of the time is then work that lasts."""

    bytes: float
    stall: float
    """Seconds that training waits for the copy to host memory."""
    write: float
    """Seconds until it is on the disk, while training goes on."""
    interval: float
    goodput: float


def checkpoints(config: RunConfig, vocabulary: int, cluster: Cluster) -> Checkpoints:
    """Plan checkpoints by Young's and Daly's interval (Daly, FGCS 22, 2006, equation 37)."""
    of = sized(config, vocabulary)
    memory = memory_state(config, config.training.lanes)
    total = FLOAT32 * of.parameters + MOMENTS * of.trained + memory
    stall = total / cluster.ranks / (cluster.host * 1e9)
    write = total / (cluster.storage * 1e9)
    failure = cluster.failure_hours * HOUR / cluster.nodes
    # The disk must be done with one checkpoint before the next begins.
    interval = max(daly_interval(stall, failure), write)
    # A checkpoint counts from the moment it is whole on the disk.
    restart = cluster.restart_minutes * 60 + write
    share = goodput(interval, stall, restart, failure)
    if share < LASTING:
        raise ValueError(
            f"with a failure every {failure:g} s, {restart:g} s until training goes on and "
            f"{stall + write:g} s for a checkpoint no work lasts: see cluster.failure_hours, "
            "restart_minutes, host and storage"
        )
    return Checkpoints(total, stall, write, interval, share)


def daly_interval(stall: float, failure: float) -> float:
    """Seconds of work between two checkpoints that cost `stall`, with a mean time to failure."""
    if stall >= 2 * failure:
        return failure
    ratio = stall / (2 * failure)
    return math.sqrt(2 * stall * failure) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def goodput(interval: float, stall: float, restart: float, failure: float) -> float:
    """Share of the time that is work which lasts, with failures at random (Daly, equation 13)."""
    try:
        lost = failure * math.exp(restart / failure) * math.expm1((interval + stall) / failure)
    except OverflowError:
        return 0.0
    return interval / lost
