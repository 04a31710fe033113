"""Everything that is worth knowing of a GPU in nine minutes: tests, then times against ceilings.

Each number stands beside an error against float32, and beside what the device's matrix products and
copies reach.
"""

import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.command import load_config
from data.common.outputs import check_output, write_result
from data.common.say import say
from data.common.schema import Positive
from data.options import DataConfig
from data.shards import Shards
from lm.model.attention.base import MemoryAttention
from lm.model.attention.relative import RelativeAttention
from lm.model.attention.rotary import RotaryAttention
from lm.model.flops import training_flops
from lm.model.incremental import Reader
from lm.model.model_config import FUSED_WIDTH, Backend, ModelConfig
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import SparseConfig
from lm.training import dist
from lm.training.meter import matmul_rate
from lm.training.trainer import Trainer
from tools.benchmarks.building import CONFIGS, new_model, random_shards, segments_to_fill
from tools.benchmarks.sections import Sections
from tools.benchmarks.timing import machine, pick_device, synchronize, take_turns, without_nan

PRESETS = ("enwik8-12", "enwik8-24", "wikitext103-18", "pg19-36")
STEPS = ("enwik8-12", "enwik8-12-fast", "enwik8-24")
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Bench:
    """Where and at what size things are measured."""

    device: torch.device
    toy: bool
    """Tiny sizes, which show that everything runs."""

    @property
    def dtype(self) -> torch.dtype:
        """bf16 on GPUs; CPUs may emulate it."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def model(self, config: ModelConfig) -> ModelConfig:
        """A preset's model, at full size or tiny, without dropout so that it can be compared."""
        config = replace(config, dropout=0.0, attention_dropout=0.0, cutoffs=None)
        if not self.toy:
            return config
        sizes = {"layers": 2, "width": 64, "feedforward": 64, "heads": 2, "segment": 16}
        sinusoids = None if config.sinusoids is None else 16
        return replace(config, memory=16, compressed=8, sinusoids=sinusoids, **sizes)  # type: ignore[arg-type]

    def rounds(self, number: int) -> int:
        """How often something is timed."""
        return 2 if self.toy else number


def main(
    device: str = "auto", minutes: Positive = 9.0, tests: bool = True, json: Path | None = None
) -> None:
    """Test and time a GPU; at tiny sizes on a CPU, to show that all of it runs.

    Args:
        device: cpu, cuda, or auto for the GPU where there is one.
        minutes: time for all parts; what does not fit is left out.
        tests: begin with the tests that need a GPU.
        json: file for the results.
    """
    check_output(json)
    place = pick_device(device)
    bench = Bench(place, toy=place.type == "cpu")
    sections = Sections(minutes)
    if tests:
        sections.run("tests", 60, lambda: gpu_tests(min(240.0, sections.left)))
    sections.run("ceilings", 10, lambda: ceilings(bench))
    peak = sections.results["ceilings"].get("matmul_tflops", float("nan")) * 1e12
    for name in PRESETS:
        sections.run(f"attention {name}", 20, partial(attention, bench, name))
    with tempfile.TemporaryDirectory() as folder:
        shards = random_shards(Path(folder))
        for name in STEPS:
            for compiled in (False, True):
                title = f"step {name} {'compiled' if compiled else 'eager'}"
                seconds = 90 if compiled else 30
                config = step_config(bench, name, shards)
                config = replace(config, training=replace(config.training, compile=compiled))
                sections.run(title, seconds, partial(step, bench, config, shards, peak))
        for title, sparse in SPARSE.items():
            config = replace(step_config(bench, "enwik8-12", shards), sparse=sparse)
            sections.run(f"sparse {title}", 60, partial(step, bench, config, shards, peak))
    sections.run("generation", 30, lambda: generation(bench))
    result = without_nan({**machine(place), "toy": bench.toy, **sections.results})
    write_result(json, result)
    print("\n".join(table(result)))
    if sections.failed:
        say(f"failed: {', '.join(sections.failed)}")
        raise SystemExit(1)


def gpu_tests(seconds: float) -> dict[str, Any]:
    """`pytest -m gpu`; an error if a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    result = subprocess.run(
        command, cwd=CONFIGS.parent, capture_output=True, text=True, timeout=seconds, check=False
    )
    last = result.stdout.strip().splitlines()[-1]
    if result.returncode:
        say(result.stdout[-4000:])
        raise RuntimeError(last)
    return {"pytest": last}


def ceilings(bench: Bench) -> dict[str, float]:
    """What the device's matrix products and copies reach."""
    size = 1 << 20 if bench.toy else COPY_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    taken = take_turns({"copy": lambda: target.copy_(source)}, bench.device, bench.rounds(20))
    return {
        "matmul_tflops": round(matmul_rate(bench.device, bench.dtype) / 1e12, 3),
        "float32_tflops": round(matmul_rate(bench.device) / 1e12, 3),
        # Each byte is read and written.
        "copy_gb_per_second": round(2 * size / taken["copy"] / 1e9, 1),
    }


def attention(bench: Bench, preset: str) -> dict[str, Any]:
    """Every way to compute attention at a preset's shapes: milliseconds and TFLOP/s of forward and
    backward, and the largest error against float32, as a share of the largest value.
    """
    whole = load_config(RunConfig, CONFIGS / f"{preset}.yaml")
    config, training = bench.model(whole.model), whole.training
    lanes = 2 if bench.toy else max(1, training.lanes // training.micro_batches)
    actions: dict[str, Callable[[], object]] = {}
    results: dict[str, Any] = {}
    for name, module in backends(config, bench.device):
        # The plainest way, in float32, with the same weights.
        own = module.config
        module.config = replace(own, backend="auto" if name == "rotary" else "shift")
        reference = with_gradients(module, config, lanes, torch.float32, bench.device)()
        module.config = own
        action = with_gradients(module, config, lanes, bench.dtype, bench.device)
        errors = [_error(a, b) for a, b in zip(action(), reference, strict=True)]
        actions[name] = action
        results[name] = {"error": max(errors)}
    work = training_flops(config, 256, lanes).flops
    flops = sum(work[part] for part in ("content_scores", "position_scores", "values"))
    flops *= lanes * config.segment / config.layers
    for name, seconds in take_turns(actions, bench.device, bench.rounds(10)).items():
        results[name] |= {
            "milliseconds": round(1e3 * seconds, 3),
            # Of the shift's operations, whichever way they are saved.
            "tflops": round(flops / seconds / 1e12, 3),
        }
    return results


def backends(
    config: ModelConfig, device: torch.device
) -> Iterator[tuple[str, MemoryAttention[Any]]]:
    """Attention modules of the same sizes, by the way in which they compute."""
    fits = (FUSED_WIDTH - config.head_width) // 2
    few = replace(config, sinusoids=min(64, fits - fits % 2))
    ways: dict[Backend, ModelConfig] = {"shift": config}
    if device.type == "cpu":
        ways["blocked"] = config
    if fits >= 2:
        ways["fused"] = few
    for name, sizes in ways.items():
        yield name, RelativeAttention(replace(sizes, backend=name)).to(device)
    yield "rotary", RotaryAttention(replace(config, positions="rotary", sinusoids=None)).to(device)


def with_gradients(
    module: MemoryAttention[Any],
    config: ModelConfig,
    lanes: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that attends from a segment over full memory and back; returns what was read and
    the gradient of the segment.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(length: int) -> Tensor:
        shape = (lanes, length, config.width)
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    inputs, slots = random(config.segment).requires_grad_(), random(config.slots)
    live = torch.ones(lanes, config.slots, dtype=torch.bool, device=device)

    def act() -> tuple[Tensor, Tensor]:
        module.to(dtype)
        inputs.grad = None
        read = module(inputs, module.project(slots), live).output_BTD
        read.float().square().sum().backward()
        module.zero_grad()
        assert inputs.grad is not None
        return read.detach(), inputs.grad

    return act


def _error(value: Tensor, reference: Tensor) -> float:
    largest = reference.float().abs().max()
    return float(f"{((value.float() - reference.float()).abs().max() / largest).item():.2g}")


def step_config(bench: Bench, preset: str, shards: Shards) -> RunConfig:
    """A preset's run on other text, from a step on where each updates."""
    config = load_config(RunConfig, CONFIGS / f"{preset}.yaml")
    training = replace(config.training, accumulate=((0, 1),))
    if bench.toy:
        training = replace(training, lanes=4, micro_batches=2, precision="float32")
    data = DataConfig("text", Path(shards.path))
    return replace(config, data=data, model=bench.model(config.model), training=training)


SPARSE = {
    "10 % of single weights": SparseConfig(density=0.1, exploration=0.1),
    "10 % in blocks of 32": SparseConfig(density=0.1, exploration=0.1, granularity="block"),
    "2:4": SparseConfig(density=0.5, exploration=0.25, granularity="2:4"),
}


def step(bench: Bench, config: RunConfig, shards: Shards, peak: float) -> dict[str, Any]:
    """The training step with full memory: tokens/s, and the first loss against float32."""
    world = dist.join()
    steps = 1000
    exact = replace(config.training, precision="float32", compile=False)
    trainer = Trainer(replace(config, training=exact), shards, world)
    result = trainer.train_step(steps)
    reference = result["nats"] / result["tokens"]
    del trainer
    release(bench.device)
    trainer = Trainer(config, shards, world)
    result = trainer.train_step(steps)
    error = abs(result["nats"] / result["tokens"] - reference) / reference
    model = config.model
    for _ in range(segments_to_fill(model)):
        trainer.train_step(steps)
    actions = {"step": partial(trainer.train_step, steps)}
    seconds = take_turns(actions, bench.device, bench.rounds(8))["step"]
    lanes = config.training.lanes
    speed = lanes * model.segment / seconds
    flops = training_flops(model, shards.vocabulary.size, lanes // config.training.micro_batches)
    found = trainer.sparsity.state().get("routes", {})
    used = {"routes": sorted(set(found.values()))} if found else {}
    memory = {}
    if bench.device.type == "cuda":
        memory = {"gib": round(torch.cuda.max_memory_allocated(bench.device) / 2**30, 1)}
        torch.cuda.reset_peak_memory_stats(bench.device)
    del trainer, actions
    release(bench.device)
    return {
        "tokens_per_second": round(speed),
        "milliseconds": round(1e3 * seconds, 2),
        # Of a sparse model, the operations of the dense one.
        "mfu": round(speed * flops.total / peak, 4),
        "error": float(f"{error:.2g}"),
        **memory,
        **used,
    }


def release(device: torch.device) -> None:
    """Give memory back before the next part."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def generation(bench: Bench) -> dict[str, Any]:
    """Tokens/s of the 12-layer model with full memory, and logits against whole segments in
    float32.
    """
    config = bench.model(load_config(RunConfig, CONFIGS / "enwik8-12.yaml").model)
    model = new_model(config, device=bench.device).eval()
    length = config.memory + config.rate * config.compressed + config.segment
    tokens = torch.randint(256, (16, length + config.segment), device=bench.device)
    memory = model.empty_memory(2)
    for part in tokens[:2].split(config.segment, dim=1)[:-1]:
        memory = model(part, memory).memory
    segment = tokens[:2, -config.segment :]
    reference = model(segment, memory).predictions[:, : config.segment // 2]
    model.to(bench.dtype)
    reader = Reader(model, model.empty_memory(2))
    reader.read(tokens[:2, : -config.segment])
    hidden = reader.read(segment[:, : config.segment // 2])
    results: dict[str, Any] = {"error": _error(model.head(hidden), reference)}
    for lanes in (1, 16):
        reader = Reader(model, model.empty_memory(lanes))
        reader.read(tokens[:lanes, :length])
        seconds = take_turns(
            {"token": partial(_next, reader, tokens[:lanes, :1])}, bench.device, bench.rounds(100)
        )["token"]
        results[f"tokens_per_second_{lanes}"] = round(lanes / seconds)
    synchronize(bench.device)
    return results


def _next(reader: Reader, tokens_B1: Tensor) -> Tensor:
    reader.read(tokens_B1)
    return reader.logits()


def table(result: dict[str, Any]) -> list[str]:
    """Results as Markdown."""
    lines = [f"{result['device']}, torch {result['torch']}", "", "| part | result |", "|---|---|"]
    for name, values in result.items():
        if not isinstance(values, dict):
            continue
        for way, numbers in _rows(name, values):
            shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in numbers.items())
            lines.append(f"| {way} | {shown} |")
    return lines


def _rows(name: str, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
    if flat:
        yield name, flat
    for way, numbers in values.items():
        if isinstance(numbers, dict):
            yield f"{name}: {way}", numbers
