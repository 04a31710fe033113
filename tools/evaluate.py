"""Program: all results and figures of some runs in one report: scores at swept lengths, breakdowns,
dynamic evaluation, a compressed file.

What a run's folder holds already is not computed again; remove a file to have it made anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common import command
from data.common.files import write_json
from data.shards import Split, open_shards
from eval import breakdown, compress, dynamic, report, score
from eval.breakdown import BreakdownConfig
from eval.dynamic import DynamicConfig
from eval.score import ProgramConfig
from eval.sweep import SweepConfig
from lm.loading import load_run


@dataclass(frozen=True)
class EvaluateConfig:
    """How much is done."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    """Lengths to choose from on validation text."""
    lanes: int = 16
    """Parts of a split that are read side by side."""
    lrs: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """Learning rates of dynamic evaluation, beside fixed weights."""
    segments: int = 400
    """Segments of each lane that dynamic evaluation reads."""
    compressed_bytes: int = 200_000
    """Of the test split, for the table of compressors."""


def main(
    runs: list[Path], out: Path, evaluate: EvaluateConfig, shards: list[Path] | None = None
) -> None:
    """Evaluate runs and write a report of them.

    Args:
        runs: their folders, as '[runs/a, runs/b]'; the test split is reported, or the validation
            split where there is none.
        out: folder for the report.
        evaluate: how much is done.
        shards: for each run the shards to be read instead of those of its training, such as some
            with shorter splits.
    """
    if not runs:
        raise ValueError("runs must name at least one folder")
    if shards is not None and len(shards) != len(runs):
        raise ValueError(f"shards must name a folder for each of the {len(runs)} runs")
    texts = [load_run(run).config.data.shards for run in runs] if shards is None else shards
    for run, text in zip(runs, texts, strict=True):
        one_run(run, text, evaluate)
    report.main(runs[0], runs[1:], reported(texts[0]), out, anyway=True)


def reported(shards: Path) -> str:
    """The split whose score is reported."""
    return "test" if "test" in open_shards(shards).splits else "validation"


def one_run(run: Path, shards: Path, config: EvaluateConfig) -> None:
    """Make every result file of a run that is not there."""
    split = reported(shards)
    lanes = config.lanes
    if not (file := run / f"score-{split}.json").exists():
        score.main(run, ProgramConfig(lanes=lanes, sweep=config.sweep), split, shards, json=file)
    if not (run / "breakdown-validation.json").exists():
        breakdown.main(run, BreakdownConfig(lanes=lanes), shards=shards)
    # Test text shows what moving weights gain; training text, what they have been used to.
    for part in (split, "train"):
        if not (file := run / f"dynamic-{part}.json").exists():
            how = DynamicConfig(lanes=lanes, lrs=config.lrs, limit=config.segments)
            dynamic.main(run, how, part, shards, json=file)
    if not (file := run / f"compress-{split}.json").exists():
        write_json(file, compressed(run, open_shards(shards).split(split), config))


def compressed(run: Path, part: Split, config: EvaluateConfig) -> dict[str, Any]:
    """A part of a split, compressed with the model, given back, and compressed with others."""
    loaded, name = load_run(run), Path(part.name)
    content = part.vocabulary.decode(part.tokens[: config.compressed_bytes])
    # A whole number of lines, which every vocabulary of text can write.
    content = content[: content.rfind(b"\n", 0, config.compressed_bytes) + 1] or content
    made = {"this model": compress.compress(loaded, content, None, name)}
    assert compress.restore(loaded, made["this model"], name) == content
    made |= {kind: do(content) for kind, do in compress.compressors().items()}
    bits = {kind: 8 * len(result) / len(content) for kind, result in made.items()}
    return {"bytes": len(content), "bits_per_byte": bits}


if __name__ == "__main__":
    command.run(main, section="evaluate")
