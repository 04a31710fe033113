"""Program: all results and figures of some runs in one report.

Scores at swept lengths, breakdowns, dynamic evaluation, a compressed file. What a run's folder
holds already is not computed again; remove a file to have it made anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common import command
from data.common.outputs import check_folder, write_result
from data.common.schema import Record, Size
from data.common.values import require_ranges
from data.shards import Shards, open_shards
from eval import breakdown, dynamic, report, score
from eval.eval_config import BreakdownConfig, DynamicConfig, ProgramConfig, SweepConfig
from eval.results import Breakdown, Compressed, Dynamic, read_result
from eval.score_record import Score


@dataclass(frozen=True)
class EvaluateConfig:
    """How much is done."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    """Lengths to choose from on validation text."""
    lanes: int = 16
    """Parts of a split that are read side by side."""
    lrs: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """Learning rates of dynamic evaluation, beside fixed weights."""
    segments: Size = 400
    """Segments of each lane that dynamic evaluation reads."""
    compressed_bytes: Size = 200_000
    """Of the test split, for the table of compressors."""

    def __post_init__(self) -> None:
        # What they mean is checked where they are used, but before the first of many hours.
        BreakdownConfig(lanes=self.lanes)
        DynamicConfig(lanes=self.lanes, lrs=self.lrs, limit=self.segments)
        require_ranges(self)


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
    from eval import coding
    from lm.inference.loading import parts_of

    if not runs:
        raise ValueError("runs must name at least one folder")
    if shards is not None and len(shards) != len(runs):
        raise ValueError(f"shards must name a folder for each of the {len(runs)} runs")
    if len({run.resolve().name for run in runs}) < len(runs):
        raise ValueError("the folders of the runs must have different names")
    check_folder(out, *(part for run in runs for part in parts_of(run)), *(shards or []))
    texts = [parts_of(run)[-1] for run in runs] if shards is None else shards
    split = reported(texts[0])
    # Found before the work, not after hours of it: a split that is not there, or a package.
    for text in texts:
        for part in (split, "validation", "train"):
            open_shards(text).split(part)
    coding.compressors()
    for run, text in zip(runs, texts, strict=True):
        one_run(run, text, evaluate, split)
    report.main(runs[0], runs[1:], split, out, anyway=True)


def reported(shards: Path) -> str:
    """The split whose score is reported."""
    return "test" if "test" in open_shards(shards).splits else "validation"


def one_run(run: Path, shards: Path, config: EvaluateConfig, split: str) -> None:
    """Make every result file of a run that is not there; the score is that of `split`."""
    lanes = config.lanes
    from lm.inference.loading import load_run

    loaded, hash_of_shards = load_run(run), open_shards(shards).hash

    def lacks(file: Path, kind: type[Record] = Score) -> bool:
        """Whether a result is not there.

        Raises:
            ValueError: it is, but damaged, or of other weights, another text or a part of it.
        """
        if not file.exists():
            return True
        result = read_result(file, kind)
        about = result.get("checkpoint"), result.get("protocol", result).get("shards")
        for there, now in zip(about, (loaded.weights, hash_of_shards), strict=True):
            found = there["sha256"] if isinstance(there, dict) else there
            if found not in (None, now):
                raise ValueError(
                    f"{file} is of other weights or shards than {loaded.checkpoint} and {shards}; "
                    "remove it to have it made anew"
                )
        if result.get("protocol", {}).get("documents") is not None:
            raise ValueError(
                f"{file} is of the first documents of the split alone; remove it to have it made "
                "anew"
            )
        return False

    if lacks(file := run / f"score-{split}.json"):
        score.main(run, ProgramConfig(lanes=lanes, sweep=config.sweep), split, shards, json=file)
    if lacks(run / "breakdown-validation.json", Breakdown):
        breakdown.main(run, BreakdownConfig(lanes=lanes), shards=shards)
    # Test text shows what moving weights gain; training text, what they have been used to.
    for part in (split, "train"):
        if lacks(file := run / f"dynamic-{part}.json", Dynamic):
            how = DynamicConfig(lanes=lanes, lrs=config.lrs, limit=config.segments)
            dynamic.main(run, how, part, shards, json=file)
    # What the tokens do not give back cannot be compressed.
    exact = open_shards(shards).split(split).exact
    if exact and lacks(file := run / f"compress-{split}.json", Compressed):
        write_result(file, compressed(run, open_shards(shards), split, config))


def compressed(run: Path, shards: Shards, split: str, config: EvaluateConfig) -> dict[str, Any]:
    """A part of a split, compressed with the model, given back, and compressed with others."""
    from eval import coding
    from lm.inference.loading import load_run

    loaded, part = load_run(run), shards.split(split)
    content = part.vocabulary.decode(part.tokens[: config.compressed_bytes])
    # A whole number of lines, which every vocabulary of text can write.
    content = content[: content.rfind(b"\n", 0, config.compressed_bytes) + 1] or content
    predictor, model, name = loaded.predictor, coding.model_digest(loaded), Path(part.name)
    made = {"this model": coding.compress(predictor, model, content, None, name)}
    if coding.restore(predictor, model, made["this model"], name) != content:
        raise ValueError(f"the {split} split of {shards.path} does not come back as it was")
    made |= {kind: do(content) for kind, do in coding.compressors().items()}
    return {
        "bytes": len(content),
        "bits_per_byte": {kind: 8 * len(result) / len(content) for kind, result in made.items()},
        "checkpoint": {"name": loaded.checkpoint.name, "sha256": loaded.weights},
        "shards": shards.hash,
    }


if __name__ == "__main__":
    command.run(main, section="evaluate")
