"""How many threads compute on a CPU: found by timing the work itself, and again when it slows down.

Threads of one product wait for each other. Where a neighbour keeps a core busy, or a container has
less time than it has cores, each wait lasts as long as the slowest, and one thread may be the
faster choice. Results differ in the last bits with the number of threads, so work that must repeat
to the bit keeps the number that it was given.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

FIRST = 2
"""Units of work before any counts: they allocate and warm up."""
TRIALS = 3
"""Units for each choice; they take turns, so that what passes hits all alike."""
WATCHED = 8
"""Units whose median says how fast the work goes."""
SLOWER = 2.0
"""How many times slower than when it was chosen a choice may become."""
PAUSE = 20.0
"""Seconds between two choices at least."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available() -> int:
    """Cores that this process may use: its affinity, or a container's quota where that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        # No such group, or "max": as much as there is.
        pass
    return cores


def choices(most: int) -> list[int]:
    """Numbers of threads that are tried: all, half of them, and so on down to one."""
    numbers = [most]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    return numbers


def require_cores(threads: int | None, name: str = "threads") -> None:
    """Refuse a number of threads that the machine has no cores for; `name` is the option's.

    Raises:
        ValueError: it is below 1 or above the number of cores.
    """
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise ValueError(
            f"{name} must be from 1 to the {cores} cores of this machine, not {threads}"
        )


class Threads:
    """Sets torch's number of threads while units of equal work are done, one after the other."""

    def __init__(self, given: int | None = None, fixed: bool = False) -> None:
        """Begin with a number, and find the best from there on.

        Args:
            given: keep to this number; none: to OMP_NUM_THREADS where it is set, or find it.
            fixed: keep to what torch uses now, such as on a GPU or where bits must repeat.

        Raises:
            ValueError: `given` is below 1 or more than the machine has cores.
        """
        require_cores(given)
        if given is not None:
            torch.set_num_threads(given)
        self.choices = choices(available())
        chosen = fixed or given is not None or "OMP_NUM_THREADS" in os.environ
        self.finding = not chosen and len(self.choices) > 1
        self.waiting = FIRST
        self.trials: dict[int, list[float]] = {}
        self.expected = float("inf")
        self.last: deque[float] = deque(maxlen=WATCHED)
        self.chosen_at = 0.0
        if self.finding:
            self._try_all()

    @contextmanager
    def unit(self) -> Iterator[None]:
        """One unit of work, timed."""
        start = time.perf_counter()
        yield
        if self.finding:
            self._count(time.perf_counter() - start)

    def _try_all(self) -> None:
        self.trials = {number: [] for number in self.choices}
        torch.set_num_threads(self.choices[0])

    def _count(self, seconds: float) -> None:
        if self.waiting:
            self.waiting -= 1
            return
        if not self.trials:
            self._watch(seconds)
            return
        self.trials[torch.get_num_threads()].append(seconds)
        turn = min(self.choices, key=lambda number: len(self.trials[number]))
        if len(self.trials[turn]) < TRIALS:
            torch.set_num_threads(turn)
            return
        medians = {number: median(found) for number, found in self.trials.items()}
        best = min(medians, key=lambda number: medians[number])
        torch.set_num_threads(best)
        self.trials, self.expected = {}, medians[best]
        self.last.clear()
        self.chosen_at = time.perf_counter()

    def _watch(self, seconds: float) -> None:
        self.last.append(seconds)
        full = len(self.last) == WATCHED
        if full and median(self.last) > SLOWER * self.expected:
            if time.perf_counter() - self.chosen_at > PAUSE:
                self._try_all()
        elif full:
            # The best of what was seen is what it is compared with.
            self.expected = min(self.expected, median(self.last))
