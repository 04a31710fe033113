"""How many threads compute on a CPU: found by timing the work itself, and again when it slows down.

Threads of one product wait for each other. Where a neighbour keeps a core busy, or a container has
less time than it has cores, each wait lasts as long as the slowest, and one thread may be the
faster choice. Results differ in the last bits with the number of threads, so work that must repeat
to the bit keeps the number that it was given.
"""

import ctypes
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import torch

FIRST = 2
"""Units of work before any counts: they allocate and warm up."""
TRIALS = 3
"""Units for each choice; they take turns, so that what passes hits all alike."""
WATCHED = 8
"""Units whose median says how fast the work goes."""
SLOWER = 1.5
"""How many times slower than when it was chosen a choice may become. Where one of two cores gets
busy, two threads take about twice as long."""
PAUSE = 20.0
"""Seconds between two choices at least."""
OUT = 2.0
"""How many times as long as another choice's a unit may take; that choice gets no further turn.
With ten busy processes beside them, two threads took ten times as long as one."""
AGAIN = 60.0
"""Seconds after which all are tried again in any case: one thread runs no faster when a neighbour
has gone, but two would. Twice as long each time that nothing else comes of it."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt."""
LARGEST_BLOCK = 1 << 28
"""Bytes of a block up to which it is kept."""
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available() -> int:
    """Cores that this process may use: its affinity, or a container's quota where that is less."""
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _own_groups() if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(int, quotas)]))


def _own_groups() -> list[Path]:
    """Folders of the control groups that this process is in, and of those around them."""
    folders = [GROUPS, GROUPS / "cpu"]
    with suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text().splitlines():
            # number:controllers:path; version 2 has no controllers.
            _, controllers, path = line.split(":", 2)
            if "cpu" not in controllers.split(",") and controllers:
                continue
            own = (GROUPS / controllers).joinpath(path.strip("/"))
            folders += [own, *(part for part in own.parents if part.is_relative_to(GROUPS))]
    return folders


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that a control group has; None for as much as there is."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        # No such group, or "max".
        return None


def keep_blocks() -> None:
    """Have the C library keep memory that is freed, for what is allocated next.

    glibc takes blocks of tens of megabytes from the kernel and gives them back at once, so that
    each step has all pages of its logits made and cleared anew: a seventh of the time of the quick
    start's steps. Elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        if not set_option(M_MMAP_THRESHOLD, LARGEST_BLOCK):
            # As much as older ones allow.
            set_option(M_MMAP_THRESHOLD, 1 << 25)
        set_option(M_TRIM_THRESHOLD, (1 << 31) - 1)


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
        self.chosen_at, self.again = 0.0, AGAIN
        self.best: int | None = None
        if self.finding:
            self._try_all()

    @contextmanager
    def unit(self) -> Iterator[None]:
        """One unit of work, timed."""
        start = time.perf_counter()
        yield
        if self.finding:
            self._count(time.perf_counter() - start)

    def spoken(self) -> str:
        """What there is to say before the work begins."""
        if self.finding:
            return f"up to {self.choices[0]} threads, as many as prove fastest"
        number = torch.get_num_threads()
        return f"{number} thread{'s' if number > 1 else ''}"

    def _try_all(self) -> None:
        # The fewest first: with them the others find out whether they are worth their turns.
        self.trials = {number: [] for number in reversed(self.choices)}
        torch.set_num_threads(self.choices[-1])

    def _count(self, seconds: float) -> None:
        if self.waiting:
            self.waiting -= 1
            return
        if not self.trials:
            self._watch(seconds)
            return
        tried = torch.get_num_threads()
        self.trials[tried].append(seconds)
        others = (min(found) for number, found in self.trials.items() if found and number != tried)
        if seconds > OUT * min(others, default=seconds):
            del self.trials[tried]
        turn = min(self.trials, key=lambda number: len(self.trials[number]))
        if len(self.trials[turn]) < TRIALS:
            torch.set_num_threads(turn)
            return
        medians = {number: median(found) for number, found in self.trials.items()}
        best = min(medians, key=lambda number: medians[number])
        torch.set_num_threads(best)
        self.again = 2 * self.again if best == self.best else AGAIN
        self.trials, self.expected, self.best = {}, medians[best], best
        self.last.clear()
        self.chosen_at = time.perf_counter()

    def _watch(self, seconds: float) -> None:
        self.last.append(seconds)
        full = len(self.last) == WATCHED
        since = time.perf_counter() - self.chosen_at
        slow = full and median(self.last) > SLOWER * self.expected
        if since > (PAUSE if slow else self.again):
            self._try_all()
        elif full and not slow:
            # The best of what was seen is what it is compared with.
            self.expected = min(self.expected, median(self.last))
