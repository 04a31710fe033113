"""Results of an experiment's runs, and the table of its variants."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev

from pydantic import ConfigDict

from data.common.schema import Count, read_record
from eval.results import bits_named, bits_of, unit_of
from eval.score_record import Cost
from lm.inference.inference_config import BITS

RESULT = "result.json"


class Result(Cost):
    """A run's result.json, by this program or another, which may say more."""

    model_config = ConfigDict(extra="ignore")

    parameters: Count
    steps: Count
    tokens_per_second: float
    config: str | None = None


def read_result(folder: Path) -> Result:
    """What a run came to; ValueError if the file is damaged."""
    found: Result = read_record(Result, folder / RESULT, "remove it, and the run is looked at anew")
    return found


@dataclass(frozen=True)
class Row:
    """A line of the table: one variant over its seeds."""

    variant: str
    seeds: int
    bits_per_byte: float | None
    bits_per_token: float | None
    """Instead, where the tokens do not give the text back."""
    deviation: float | None
    """Standard deviation over the seeds."""
    difference: float | None
    """To the first variant, mean over the seeds that both have."""
    difference_error: float | None
    """Standard error of that mean."""
    parameters: int
    steps: int
    tokens_per_second: float
    paper: float | None


def rows(variants: list[str], paper: dict[str, float], out: Path) -> list[Row]:
    """A row for each variant that has a result.

    Args:
        variants: names that come first, in this order; differences are from the first.
        paper: what the literature reports, by name.
        out: folder of the experiment.
    """
    others = sorted({path.parents[1].name for path in out.glob(f"*/seed-*/{RESULT}")})
    names = [*variants, *(name for name in others if name not in variants)]
    found = {
        name: {
            path.parent.name: read_result(path.parent)
            for path in sorted((out / name).glob(f"seed-*/{RESULT}"))
        }
        for name in names
    }
    base = {seed: bits_of(each.model_dump()) for seed, each in found[names[0]].items()}
    lines = []
    for name, results in found.items():
        if not results:
            continue
        scores = {seed: bits_of(each.model_dump()) for seed, each in results.items()}
        pairs = [score - base[seed] for seed, score in scores.items() if seed in base]
        any_result = next(iter(results.values()))
        bits_in = unit_of(any_result.model_dump())
        lines.append(
            Row(
                variant=name,
                seeds=len(scores),
                **(dict.fromkeys(BITS) | {bits_in: mean(scores.values())}),
                deviation=stdev(scores.values()) if len(scores) > 1 else None,
                difference=mean(pairs) if pairs and name != names[0] else None,
                difference_error=(
                    stdev(pairs) / len(pairs) ** 0.5
                    if len(pairs) > 1 and name != names[0]
                    else None
                ),
                parameters=any_result.parameters,
                steps=any_result.steps,
                tokens_per_second=median(r.tokens_per_second for r in results.values()),
                paper=paper.get(name),
            )
        )
    return lines


def markdown(lines: list[Row], paper: bool) -> str:
    """The table in Markdown."""
    bits = bits_named(asdict(line) for line in lines)
    head = ["variant", bits, "to the first", "seeds", "parameters", "steps", "tokens/s"]
    table = [head + ["paper"] * paper, ["---"] * (len(head) + paper)]
    for line in lines:
        cells = [
            line.variant,
            _with_spread(f"{bits_of(asdict(line)):.4f}", line.deviation),
            "" if line.difference is None else _signed(line.difference, line.difference_error),
            f"{line.seeds}",
            f"{line.parameters:,}",
            f"{line.steps:,}",
            f"{line.tokens_per_second:,.0f}",
        ]
        table.append(cells + ([f"{line.paper:g}" if line.paper else ""] if paper else []))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def _signed(value: float, error: float | None) -> str:
    return _with_spread(f"{value:+.4f}", error)


def _with_spread(value: str, spread: float | None) -> str:
    return value if spread is None else f"{value} ± {spread:.4f}"
