"""What a run measures of itself: losses, time, the rate of the machine and its memory."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from data.shards import Split
from lm.model.flops import scoring_flops, training_flops
from lm.training.compiling import has_fast_bf16
from lm.training.trainer import Trainer


def matmul_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 5
) -> float:
    """Floating-point operations per second of a matrix product with the current threads.

    The median of several products of square matrices, large enough to fill the device; on two cores
    about a tenth of a second.
    """
    size = 8192 if device.type == "cuda" else 1024
    # Its own generator: a resumed run's random numbers must go on as if nothing had happened.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    product = left @ right
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: allocated on a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


UNITS = {
    "bits_per_byte": "bits/byte",
    "bits_per_sample": "bits/sample",
    "word_perplexity": "word ppl",
}
"""The corpora's units, as the progress line names them."""
LARGEST_EXPONENT = 700.0


class Meter:
    """Times training steps, without validation and saving, and sums their losses up."""

    def __init__(self, trainer: Trainer, seconds: float = 0.0) -> None:
        """`seconds`: of the steps before, for a run that goes on from a checkpoint that does not
        know them.
        """
        model, training = trainer.model, trainer.config.training
        self.trainer, self.split = trainer, trainer.shards.split("train")
        self.flops = training_flops(
            model.config,
            model.vocabulary,
            trainer.memory.lanes,
            readings=training.readings.lanes,
            gated=bool(training.gate),
        ).total
        self.teacher_flops = 0.0
        """A token, as long as a teacher is read."""
        if trainer.teacher is not None:
            taught = trainer.teacher.predictor.model
            self.teacher_flops = scoring_flops(
                taught.config, model.vocabulary, trainer.memory.lanes, kept=True
            ).total
        # Where a CPU emulates bf16, at a rate that says nothing, its float32 is what it could do.
        half = training.precision == "bf16" and has_fast_bf16()
        self.dtype = torch.bfloat16 if half else torch.float32
        self.due = 0.0
        """When the rate of matrix products may be measured again."""
        self._restart()
        self.total_seconds = seconds
        if trainer.restored is not None and (before := trainer.restored.meter):
            # All ranks have the same sums.
            self.nats, self.tokens, self.seconds = before.nats, before.tokens, before.seconds
            self.total_seconds = before.total_seconds

    def state(self) -> dict[str, float]:
        """What a checkpoint needs to hold, so that the next record is of all its steps."""
        names = ("nats", "tokens", "seconds", "total_seconds")
        return {name: getattr(self, name) for name in names}

    def _restart(self) -> None:
        self.seconds = self.nats = self.tokens = 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Context whose time is a training step's."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.total_seconds += seconds

    def count(self, nats: float, tokens: float) -> None:
        """Add what a step has read."""
        self.nats += nats
        self.tokens += tokens

    def peak(self) -> float | None:
        """What all ranks' matrix products come to now, operations a second.

        A machine that others use too is not as fast at one time as at another, so that a rate
        measured earlier says nothing of these steps. None where measuring would take more than a
        twentieth of the time, or a GPU has no room for it; and where a part of the model learns,
        whose step has fewer products than are counted.
        """
        start = time.perf_counter()
        if start < self.due or self.trainer.config.training.learn != "all":
            return None
        try:
            rate = matmul_rate(self.trainer.world.device, self.dtype, repeats=3)
        except torch.cuda.OutOfMemoryError:
            return None
        now = time.perf_counter()
        self.due = now + 20 * (now - start)
        # Each rank is measured at the same time as the others, with its own threads.
        return rate * self.trainer.world.size

    def summary(self) -> dict[str, float]:
        """Loss in nats per token and in the corpus's unit, and speed, since the last call."""
        rate, peak = self.tokens / max(self.seconds, 1e-9), self.peak()
        flops = self.flops + (self.teacher_flops if self.trainer.teaching else 0.0)
        record = {
            "tokens_per_second": rate,
            **({} if peak is None else {"mfu": rate * flops / peak}),
            "seconds": self.total_seconds,
            "memory_bytes": float(peak_memory(self.trainer.world.device)),
        }
        if self.tokens:
            loss = self.nats / self.tokens
            record = {"loss": loss, self.split.unit: in_unit(self.split, loss), **record}
        self._restart()
        return record

    def shown(self, record: dict[str, float]) -> dict[str, str]:
        """What the progress line says of a record."""
        shown = {}
        if "loss" in record:
            shown[UNITS[self.split.unit]] = f"{record[self.split.unit]:.3f}"
        # Layers without memory have none.
        named = (v for name, v in record.items() if name.startswith("reconstruction_relative/"))
        if errors := [error for error in named if error]:
            shown["compression error"] = f"{sum(errors) / len(errors):.3f}"
        shown["tok/s"] = f"{record['tokens_per_second']:,.0f}"
        # One that was measured for earlier steps must not stand beside this speed.
        shown["mfu"] = f"{record['mfu']:.0%}" if "mfu" in record else "not measured"
        shown["memory"] = f"{record['memory_bytes'] / 2**30:.2f} GiB"
        return shown


def in_unit(split: Split, loss: float) -> float:
    """A mean loss in nats per token in the unit of the corpus's benchmark.

    Tokens are taken to stand for as many bytes and words as the split's do on average.
    """
    tokens = len(split.tokens)
    if split.unit == "word_perplexity":
        nats = loss * tokens / (split.denominator_words or split.words)
        return math.exp(nats) if nats < LARGEST_EXPONENT else math.inf
    units = split.bytes if split.unit == "bits_per_byte" else tokens
    return loss / math.log(2) * tokens / units
