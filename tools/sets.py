"""Program: what choosing sets of weights did in finished runs, and where their weights went.

Rises of the loss are seen beside a run on the same text that chooses nothing (such as a static mask
of the same seed), whose loss is taken away step by step; both log every step.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.common import command
from data.common.outputs import check_output, write_result
from data.common.schema import Size


def main(
    runs: list[Path],
    beside: list[Path] | None = None,
    groups: tuple[Size, ...] = (1, 5, 10, 15),
    json: Path | None = None,
) -> None:
    """Say of finished runs how many weights changed their sign or faded, how much the choices of
    sets exchanged, and what they did to the loss.

    Args:
        runs: folders of runs.
        beside: for each of them a run on the same text that chooses no sets, as the zero of the
            loss.
        groups: choices are put together from one of these numbers to the one before the next.
        json: file for the result.
    """
    from lm.inference.loading import load_run, pieces
    from tools.choices import choices, compare, spoken

    if not runs:
        raise ValueError("give at least one run, as --runs '[RUN]'")
    if beside is not None and len(beside) != len(runs):
        raise ValueError(f"there are {len(runs)} runs and {len(beside)} beside them")
    if list(groups) != sorted(set(groups)) or len(groups) < 2 or groups[0] < 1:
        raise ValueError(f"groups must be two or more rising numbers from 1 on, not {groups}")
    check_output(json, *(part for run in [*runs, *(beside or [])] for part in pieces(run)))
    results: list[dict[str, Any]] = []
    zeros: list[Path | None] = [None] * len(runs) if beside is None else [*beside]
    said = []
    for run, zero in zip(runs, zeros, strict=True):
        loaded = load_run(run)
        weights = compare(loaded)
        parts = choices(run, loaded, zero, groups)
        said.append(spoken(run, weights, parts))
        each = [asdict(part) for part in parts]
        results.append({"run": str(run), "weights": asdict(weights), "choices": each})
    write_result(json, results)
    print("\n".join(said))


if __name__ == "__main__":
    command.run(main)
