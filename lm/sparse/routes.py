"""The ways to multiply with a sparse matrix, and the choice among them by a measurement."""

import copy
import time
from collections.abc import Mapping
from typing import Literal

import torch

from lm.sparse.kernels import BlockPattern, BsrPattern, CsrDensePattern, CsrPattern, SemiPattern
from lm.sparse.product import PatternMaker
from lm.sparse.sparse_linear import SparseLinear

Route = Literal["dense", "csr", "csr_dense", "blocks", "bsr", "semi"]
PATTERNS: dict[Route, PatternMaker] = {
    "csr": CsrPattern,
    "csr_dense": CsrDensePattern,
    "blocks": BlockPattern,
    "bsr": BsrPattern,
    "semi": SemiPattern,
}
"""All but the dense route, which has no pattern."""

MARGIN = 0.85
"""A route is taken in place of the dense one if it needs less than this share of its time."""
SMALLEST = 1 << 24
"""Multiplications of a dense product below which it is taken unmeasured: what is left to gain is
less than what a busy machine changes."""


def candidates(linear: SparseLinear, dtype: torch.dtype) -> list[Route]:
    """Routes that can multiply with a matrix where it is, in some precision; dense first."""
    granularity, cuda = linear.layout.granularity, linear.values.device.type == "cuda"
    routes: list[Route] = ["dense"]
    if granularity == "block":
        routes.append("bsr" if cuda else "blocks")
    elif granularity == "2:4" and cuda and dtype in (torch.float16, torch.bfloat16):
        routes.append("semi")
    elif granularity == "unstructured" and dtype in (torch.float32, torch.float64):
        # Below 16 bits torch has no CSR products on CPUs, and GPUs gain nothing from single zeros.
        routes += ["csr", "csr_dense"] if not cuda and torch.backends.mkl.is_available() else []
    return routes


def take(linear: SparseLinear, route: Route, dtype: torch.dtype) -> None:
    """Make a matrix, which will be used in this precision, go a route.

    Raises:
        ValueError: it cannot.
    """
    possible = candidates(linear, dtype)
    if route not in possible:
        raise ValueError(
            f"sparse.route {route} does not go with granularity {linear.layout.granularity} in "
            f"{dtype} on {linear.values.device.type}; possible are {', '.join(possible)}"
        )
    linear.make_pattern = None if route == "dense" else PATTERNS[route]
    linear.patterns.clear()


def measured(
    modules: Mapping[str, SparseLinear], tokens: int, dtype: torch.dtype, rounds: int = 5
) -> dict[str, Route]:
    """The fastest route of each sparse matrix, by the name of its module.

    Each distinct kind of matrix is timed, forward and both gradients, routes taking turns. Where
    two are about as fast, another measurement may choose otherwise, and weights differ by rounding
    then.

    Args:
        modules: by name, with weights where they will be used.
        tokens: tokens that a product has in training.
        dtype: the precision of training.
        rounds: timings of each route, of which the shortest counts.
    """
    chosen: dict[str, Route] = {}
    known: dict[tuple[object, ...], Route] = {}
    for name, module in modules.items():
        kind = (module.layout, module.active, module.explored)
        if kind not in known:
            known[kind] = _fastest(copy.deepcopy(module).to(dtype), tokens, rounds)
        chosen[name] = known[kind]
    return chosen


def _fastest(linear: SparseLinear, tokens: int, rounds: int) -> Route:
    dtype, device = linear.values.dtype, linear.values.device
    routes = candidates(linear, dtype)
    size = tokens * linear.layout.out_features * linear.layout.in_features
    if len(routes) == 1 or size < SMALLEST:
        return "dense"
    x = torch.randn(tokens, linear.in_features, dtype=dtype, device=device).requires_grad_()
    seconds: dict[Route, list[float]] = {route: [] for route in routes}
    # Alone in its thread, this process need not count what others do on the machine.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    # The first round prepares patterns and warms caches up.
    for turn in range(rounds + 1):
        for route in routes:
            take(linear, route, dtype)
            linear(x)
            start = clock()
            y = linear(x)
            torch.autograd.grad(y, [x, linear.values], y.detach())
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[route].append(clock() - start)
    times = {route: min(each) for route, each in seconds.items()}
    best = min(times, key=lambda route: times[route])
    return best if times[best] < MARGIN * times["dense"] else "dense"
