"""The pool of worker processes."""

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data.pool import work_in_pool


def mark(folder: Path, index: int, item: str) -> str:
    """Leave a file that tells that this item was worked on."""
    (folder / str(index)).touch()
    return item


def test_few_results_wait_for_a_slow_reader(tmp_path: Path) -> None:
    items = [f"item {number}" for number in range(40)]
    results = work_in_pool(2, mark, tmp_path, enumerate(items))
    first = next(results)
    time.sleep(0.5)
    # Two a worker are under way, and their results may have come.
    assert len(list(tmp_path.iterdir())) <= 1 + 4
    assert sorted([first, *results]) == sorted(items)


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_that_was_killed_while_another_one_was_starting(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then starting it fails, because the pool closes its pipes; any other failure is its own."""
    submit = ProcessPoolExecutor.submit
    first: list[Future[Any]] = []

    def late(pool: ProcessPoolExecutor, *arguments: Any) -> Future[Any]:
        if not first:
            first.append(submit(pool, *arguments))
            return first[0]
        if killed:
            for worker in multiprocessing.active_children():
                worker.kill()
            first[0].exception(timeout=60)
        raise OSError("handle is closed")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", late)
    error, words = (ChildProcessError, "was killed") if killed else (OSError, "is closed")
    with pytest.raises(error, match=words):
        list(work_in_pool(2, mark, tmp_path, enumerate("ab")))
