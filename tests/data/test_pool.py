"""The pool of worker processes."""

import time
from pathlib import Path

from data.pool import Pool


def mark(folder: Path, index: int, item: str) -> str:
    """Leave a file that tells that this item was worked on."""
    (folder / str(index)).touch()
    return item


def test_few_results_wait_for_a_slow_reader(tmp_path: Path) -> None:
    items = [f"item {number}" for number in range(40)]
    results = Pool(2, mark, tmp_path).map(enumerate(items))
    first = next(results)
    time.sleep(0.5)
    # Two a worker are under way, and their results may have come.
    assert len(list(tmp_path.iterdir())) <= 1 + 4
    assert sorted([first, *results]) == sorted(items)
