"""Ranks that cannot meet, or are not of one run, end with a sentence before the first step."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore, Store

from data.shards import Shards
from lm.runs.run_config import RunConfig
from lm.training import meeting
from lm.training.meeting import Place, agree, facts_of, meet, patience
from tests.runs import with_training

SET = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SET, "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def test_what_launchers_set_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.of_environment() == Place()
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    assert Place.of_environment() == Place(1, 1, 2, "127.0.0.1", 29500)
    # A process alone needs no address, and one that is left over does no harm.
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "no.such.machine")
    assert isinstance(meet(Place.of_environment(), 1), HashStore)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in SET),
        *({"RANK": value} for value in ("2", "-1", "one", "1.0", "", "\u0661")),
        *({"LOCAL_RANK": value} for value in ("2", "-1", "x")),
        *({"WORLD_SIZE": value} for value in ("0", "-2", "two", "1e3", "", "99999999999", "nan")),
        *({"MASTER_PORT": value} for value in ("0", "65536", "-1", "http", "", "1 2")),
        {"MASTER_ADDR": ""},
        {"WORLD_SIZE": "1"},
    ],
    ids=str,
)
def test_an_environment_that_makes_no_sense_is_refused(
    changes: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as is left when a variable is set for another run, or forgotten."""
    for name, value in (SET | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"in the environment .*unset WORLD_SIZE"):
        Place.of_environment()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which something listens."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_taken_and_a_host_without_address(taken: int) -> None:
    with pytest.raises(ValueError, match=f"port {taken} of this machine .*another port"):
        meet(Place(0, 0, 2, "127.0.0.1", taken), 1)
    for rank in range(2):
        for host in ("no-such-machine.invalid", "a" * 300, "\udcff", "a b", "x..y"):
            with pytest.raises(ValueError, match="the name of no machine"):
                meet(Place(rank, rank, 2, host, taken), 1)


def test_ranks_of_two_jobs_at_one_port_do_not_become_one_run(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Place(rank, rank, 3, "127.0.0.1", free_port) for rank in range(3)]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    store = meet(places[0], 1)
    assert meet(places[1], 1).get("job") == b"7"
    with pytest.raises(ValueError, match="the ranks of another run meet"):
        meet(places[1], 1)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(ValueError, match="the ranks of another run meet"):
        meet(places[2], 1)
    # The run that was there first goes on.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    meet(places[2], 1)
    del store


def together(facts: list[dict[str, str]], runs: list[Path]) -> list[BaseException | None]:
    """What becomes of ranks with facts and folders, each in a thread."""
    store, ends = HashStore(), [None] * len(runs)

    def take_part(rank: int) -> None:
        place = Place(rank, rank, len(runs), "here", 1)
        try:
            agree(store, place, facts[rank], runs[rank])
        except BaseException as error:
            ends[rank] = error

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_ranks_that_agree_leave_no_trace(tmp_path: Path) -> None:
    run = tmp_path / "a" / "b"
    assert together([{"x": "1"}] * 3, [run] * 3) == [None] * 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        ({"optim.lr": "0.1"}, {"optim.lr": "0.2"}, "optim.lr 0.2 where rank 0 has 0.1"),
        ({"a": "1", "b": "1"}, {"a": "2", "b": "2"}, "has a 2 where"),
        ({"a": "1"}, {}, "has a nothing where"),
        ({}, {"b": "1"}, "has b 1 where rank 0 has nothing"),
    ],
    ids=str,
)
def test_ranks_that_differ_all_end(
    first: dict[str, str], other: dict[str, str], said: str, tmp_path: Path
) -> None:
    """The first rank says in what, the others end quietly."""
    one, two, three = together([first, first, other], [tmp_path] * 3)
    assert isinstance(one, ValueError) and str(one).startswith(
        f"rank 2 has {said.removeprefix('has ')}"
    )
    assert [end.code for end in (two, three) if isinstance(end, SystemExit)] == [2, 2]
    assert not list(tmp_path.iterdir())


def test_ranks_without_a_shared_folder_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "SHARED_S", 0.2)
    here, there = tmp_path / "here", tmp_path / "there"
    one, two = together([{}] * 2, [here, there])
    assert isinstance(one, ValueError) and isinstance(two, SystemExit)
    assert f"rank 1 does not see what rank 0 writes to {here}" in str(one)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    one, two = together([{}] * 2, [tmp_path / "file" / "run"] * 2)
    assert "may not be written" in str(one)


def test_every_setting_but_places_is_compared(run_config: RunConfig, shards: Shards) -> None:
    facts = facts_of(run_config, shards)
    data = replace(run_config.data, shards=Path("elsewhere"), source="other")
    assert facts_of(replace(run_config, data=data), shards) == facts
    for changes in ({"seed": 1}, {"steps": 13}, {"zero": 1}, {"timeout": 1.0}, {"ranks": 2}):
        other = facts_of(with_training(run_config, **changes), shards)
        assert [name for name in facts if facts[name] != other[name]] == [
            f"training.{name}" for name in changes
        ]
    assert {"the code", "the shards", "package torch"} <= facts.keys()


def test_a_rank_says_that_it_waits_and_ends_when_it_has_waited_too_long(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting, "NOTICE_S", 0.05)
    ended = threading.Event()
    monkeypatch.setattr(meeting.os, "_exit", lambda status: ended.set())
    with patience(Place(1, 1, 2, "node0", 29500), 0.2 / 60):
        assert ended.wait(10)
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("rank 1 waits for all 2 ranks at node0:29500; ")
    assert "has waited 0.00333333 minutes for all 2 ranks" in said[1] and len(said) == 2
    ended.clear()
    for place in (Place(), Place(1, 1, 2, "node0", 29500)):
        with patience(place, 10):
            pass
    assert not ended.wait(0.1) and not capfd.readouterr().err


def test_a_store_is_closed_with_its_last_user(free_port: int) -> None:
    """A second run of one process group after another finds its port free."""
    store: Store | None = meet(Place(0, 0, 2, "127.0.0.1", free_port), 1)
    assert store is not None
    store = None
    meet(Place(0, 0, 2, "127.0.0.1", free_port), 1)
