"""The number of threads follows what the work costs, and keeps still where it must."""

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


@pytest.mark.parametrize(("text", "most"), [("150000 100000", 1), ("max 100000", None), ("", None)])
def test_a_container_s_quota_counts(tmp_path, monkeypatch, text: str, most: int | None) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(threads, "QUOTA", quota)
    assert available() == (most or 6)
    assert choices(6) == [6, 3, 1]


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
