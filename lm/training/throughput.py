"""What the machine can do, and what of its memory is used."""

import resource
import sys
import time
from statistics import median

import torch


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
