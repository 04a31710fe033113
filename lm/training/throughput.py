"""Tokens per second, and what share of the machine's matrix rate they use."""

import time
from statistics import median

import torch


def matmul_rate(device: torch.device, size: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations per second of a float32 matrix product with the current threads.

    The median of several products of [size, size] matrices; on two cores about a tenth of a second.
    """
    # Its own generator: a resumed run's random numbers must go on as if nothing had happened.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator) for _ in range(2))
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


class Stopwatch:
    """Time spent training since the last report, without validation and saving."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.total_seconds = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Count one step."""
        self.seconds += seconds
        self.total_seconds += seconds
        self.tokens += tokens

    def rate(self) -> float:
        """Tokens per second since the last call."""
        rate = self.tokens / max(self.seconds, 1e-9)
        self.seconds, self.tokens = 0.0, 0
        return rate
