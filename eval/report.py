"""Program: what came out of a run, in a short table."""

from pathlib import Path
from typing import Any

from data import command
from eval.protocol import default_json, lengths, read_result, spoken
from lm.training.runlog import read_metrics


def main(run: Path, split: str = "test") -> None:
    """Print size, training and score of a run, beside general compressors.

    Args:
        run: folder of the run.
        split: the split whose result was written to score-SPLIT.json in the run's folder.
    """
    result = read_result(default_json(run, split))
    rows = summary(result, read_metrics(run / "metrics.jsonl"))
    for path in (run / "curve.png", *sorted((run / "samples").glob("*"))):
        if path.exists():
            rows.append((path.stem, str(path)))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def summary(result: dict[str, Any], metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows of a table: what was trained, how fast, and the score with its protocol."""
    training = [record for record in metrics if "loss" in record]
    last, median = training[-1], sorted(r["tokens_per_second"] for r in training)
    protocol = result["protocol"]
    size = f"{result['model']['parameters']:,} parameters, {result['model']['layers']} layers"
    speed = f"{median[len(median) // 2]:,.0f} tokens/s, {last['mfu']:.0%} of the matmul rate"
    rows = [
        ("model", f"{size} of width {result['model']['width']}"),
        ("training", f"{last['step']:,} steps in {last['seconds'] / 60:.1f} minutes, {speed}"),
        (
            f"{protocol['corpus']} {protocol['split']}",
            f"{result['value']:.4f} {spoken(protocol['unit'])}",
        ),
    ]
    for name, value in result.get("compressors", {}).items():
        rows.append((f"  {name}", f"{value:.4f} bits per byte"))
    return [*rows, ("protocol", lengths(result))]


if __name__ == "__main__":
    command.run(main)
