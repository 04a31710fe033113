"""The number of threads follows what the work costs, and keeps still where it must."""

import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from data.shards import Shards
from eval import keeping
from lm import threads
from lm.inference.inference_config import ScoringConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer
from lm.threads import FIRST, TRIALS, WATCHED, Threads, available, choices
from lm.training import dist
from tests.predictors import predictor

TINY = ModelConfig(
    layers=1, width=8, heads=1, feedforward=8, segment=8, memory=8, compressed=4, rate=2
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Seconds that a unit takes by number of threads, on a clock that only units move."""
    costs = {4: 1.0, 2: 0.6, 1: 0.8}
    state = {"threads": 4, "clock": 0.0}

    def set_threads(number: int) -> None:
        state["threads"] = number

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", set_threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(threads.time, "perf_counter", lambda: state["clock"])
    costs["now"] = lambda: state["threads"]
    costs["pass"] = lambda seconds: state.update(clock=state["clock"] + seconds)
    return costs


def work(chooser: Threads, machine: dict, units: int) -> list[int]:
    used = []
    for _ in range(units):
        with chooser.unit():
            used.append(machine["now"]())
            machine["pass"](machine[machine["now"]()])
    return used


def test_every_choice_has_its_turns_and_the_fastest_stays(machine) -> None:
    used = work(Threads(), machine, FIRST + 3 * TRIALS + 5)
    assert {n: used[FIRST:].count(n) for n in (4, 1)} == {4: TRIALS, 1: TRIALS}
    assert used[-5:] == [2] * 5


def test_it_chooses_again_when_the_work_slows_down(machine) -> None:
    chooser = Threads()
    work(chooser, machine, FIRST + 3 * TRIALS + 2 * WATCHED)
    assert machine["now"]() == 2
    machine[2] = 1.3  # more than twice 0.6: a neighbour has come
    machine["pass"](threads.PAUSE)
    work(chooser, machine, 2 * WATCHED + 3 * TRIALS)
    assert machine["now"]() == 1
    # A single slow unit is no reason.
    machine[1] = 0.8
    work(chooser, machine, 20)
    machine[1] = 9.0
    work(chooser, machine, 1)
    machine[1] = 0.8
    assert set(work(chooser, machine, 20)) == {1}


def test_it_tries_again_after_a_while_though_nothing_slows_down(machine) -> None:
    chooser = Threads()
    machine[2] = 1.3
    work(chooser, machine, FIRST + 3 * TRIALS + 2 * WATCHED)
    assert machine["now"]() == 1
    machine[2] = 0.6  # the neighbour has gone
    machine["pass"](threads.AGAIN)
    work(chooser, machine, 1 + 3 * TRIALS)
    assert machine["now"]() == 2


def test_a_choice_that_is_far_slower_has_one_turn(machine) -> None:
    machine[4] = 40.0
    used = work(Threads(), machine, FIRST + 3 * TRIALS)
    assert used.count(4) == 1
    assert machine["now"]() == 2


def test_where_nothing_comes_of_trying_it_is_tried_more_rarely(machine) -> None:
    chooser = Threads()
    machine["pass"](threads.AGAIN)
    used = work(chooser, machine, 2000)
    # In 1,200 seconds after 60, 180, 420, 900, and not after each 60.
    assert used.count(4) == 5 * TRIALS


def test_what_is_said_before_the_work_is_what_it_will_be_done_with(machine) -> None:
    assert Threads().spoken() == "up to 4 threads, as many as prove fastest"
    assert Threads(1).spoken() == "1 thread"
    assert Threads(fixed=True).spoken() == "1 thread"


@pytest.mark.parametrize("how", ["given", "environment", "fixed", "one core"])
def test_what_is_given_is_kept(machine, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    make: dict[str, Callable[[], Threads]] = {
        "given": lambda: Threads(1),
        "environment": Threads,
        "fixed": lambda: Threads(fixed=True),
        "one core": Threads,
    }
    if how == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    if how == "one core":
        monkeypatch.setattr(threads, "available", lambda: 1)
    assert len(set(work(make[how](), machine, 40))) == 1


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="threads must be from 1 to"):
        Threads(10**6)
    with pytest.raises(ValueError, match="threads must be from 1 to"):
        Threads(0)


@pytest.mark.parametrize(
    ("own", "files", "most"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 6),
        ("0::/", {"cpu.max": ""}, 6),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "1e5"}, 6),
        (
            "4:cpu,cpuacct:/d\n9:memory:/d",
            {
                "cpu,cpuacct/d/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/d/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ("", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ("", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_container_s_quota_counts(
    tmp_path, monkeypatch, own: str, files: dict[str, str], most: int
) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(threads, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    assert available() == most
    assert choices(6) == [6, 3, 1]


def test_ranks_share_what_the_quota_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(dist, "available", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    dist.join()
    assert taken == [3]


FAULTS = """
import resource, sys, torch
from lm.threads import keep_blocks
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(40 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
free = pages()
keep_blocks()
# A block may first find a place of its own.
print(free, min(pages() for _ in range(4)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library alone")
def test_large_blocks_are_kept_and_not_taken_anew_page_by_page() -> None:
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    before, after = map(int, told.stdout.split())
    assert after < before / 10


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, bool]]:
    """What reading asks a chooser for: a number, and whether it must keep still."""
    calls: list[tuple[int | None, bool]] = []

    class Noted(Threads):
        def __init__(self, given: int | None = None, fixed: bool = False) -> None:
            calls.append((given, fixed))
            super().__init__(given, fixed)

    monkeypatch.setattr(keeping, "Threads", Noted)
    return calls


@pytest.mark.parametrize(("threads", "rows"), [(None, None), (1, None), (None, slice(0, 1))])
def test_reading_finds_its_threads_unless_ranks_share_the_cores(
    shards: Shards, asked: list[tuple[int | None, bool]], threads: int | None, rows: slice | None
) -> None:
    torch.manual_seed(0)
    model = CompressiveTransformer(TINY, 256)
    config = ScoringConfig(lanes=2, threads=threads)
    part = {} if rows is None else {"rows": rows}
    keeping.read_to_end(Scorer(predictor(model), shards.split("test"), config, **part), None, False)
    assert asked == [(threads, rows is not None)]
