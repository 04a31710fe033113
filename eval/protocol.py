"""The record of a score: a number, and everything one must know to compare it."""

import bz2
import lzma
import math
from pathlib import Path
from typing import Any

from data.shards import Shards, Split
from eval.keeping import require_finite
from eval.results import FORMAT, Result
from eval.units import LEVEL, RESAMPLES, all_units, convert, interval, plain, sizes
from lm.inference.loading import LoadedRun
from lm.model.flops import training_flops
from lm.runs.runlog import commit
from lm.scoring import Score, ScoringConfig, resolved_warmup

LENGTHS = ("segment", "memory", "compressed", "lanes", "warmup", "reset_documents", "dynamic")
"""How the text was read; lengths in tokens, or slots a layer."""
SAME_TEXT = ("corpus", "text", "split", "unit", "denominator")
"""What the number is about. Shards may differ: another vocabulary reads the same text."""


def record(
    loaded: LoadedRun, shards: Shards, split: str, config: ScoringConfig, result: Score
) -> Result:
    """A result as it is written to JSON.

    Raises:
        ValueError: the number is not finite.
    """
    part = shards.split(split)
    size = sizes(part, result)
    denominator = size.denominator(part.unit)
    if denominator is None:
        raise ValueError(
            f"{spoken(part.unit)} cannot be told of a text that its tokens do not give back; "
            f"prepare {shards.path} with another vocabulary"
        )
    value = convert(result.nats, part.unit, denominator)
    require_finite(math.isfinite(result.nats))
    if not math.isfinite(value):
        raise ValueError(
            f"{result.nats:.6g} nats over {denominator:,} are a {spoken(part.unit)} beyond all "
            "floating-point numbers; score a text of more words, or another model"
        )
    return {
        "format": FORMAT,
        "value": value,
        "interval": {
            "bounds": interval(result, part, part.unit, denominator),
            "level": LEVEL,
            "resamples": RESAMPLES,
            "documents": int((part.documents["tokens"] > 0).sum()),
        },
        "units": all_units(result, size, part.vocabulary.kind),
        "nats": result.nats,
        "bytes": bytes_read(part, result),
        "characters": size.characters,
        "words": size.words,
        "exact": part.exact,
        "unknown_words": part.unknown_words,
        "official_words": part.denominator_words is not None,
        "protocol": protocol(loaded, shards, split, config)
        | {"denominator": denominator, "tokens": result.tokens},
        "model": describe_model(loaded),
        "checkpoint": {
            "name": loaded.checkpoint.name,
            "sha256": loaded.weights,
        },
        "commit": commit(),
    }


def bytes_read(split: Split, score: Score) -> int | None:
    """Bytes of the text that was scored: those of the source where all was; None if unknown."""
    return split.bytes if score.tokens == len(split.tokens) else score.bytes


def protocol(
    loaded: LoadedRun, shards: Shards, split: str, config: ScoringConfig
) -> dict[str, Any]:
    """What decides a number besides the weights."""
    model = loaded.model.config
    return {
        "corpus": shards.corpus,
        "text": shards.manifest.source.sha256,
        "shards": shards.hash,
        "split": split,
        "unit": shards.split(split).unit,
        "segment": model.segment,
        "memory": model.memory,
        "compressed": model.compressed,
        "lanes": config.lanes,
        "warmup": resolved_warmup(config, loaded.predictor),
        "reset_documents": config.reset_documents,
    }


def describe_model(loaded: LoadedRun) -> dict[str, Any]:
    """Size and kind of a model."""
    model = loaded.model
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.layers,
        "width": model.config.width,
        "vocabulary": loaded.vocabulary.name,
        "training_flops_per_token": training_flops(
            model.config, model.vocabulary, loaded.config.training.lanes
        ).total,
    }


def require_comparable(results: dict[str, Result], anyway: bool = False) -> None:
    """Refuse to put results side by side that were not measured alike.

    Raises:
        ValueError: two of them differ in their protocol, and nobody said that this is meant.
    """
    if anyway or len(results) < 2:
        return
    (first, reference), *others = results.items()
    for name, result in others:
        for key in (*SAME_TEXT, *LENGTHS):
            a, b = reference["protocol"].get(key), result["protocol"].get(key)
            if a != b:
                raise ValueError(
                    f"{first} and {name} were scored under different protocols ({key} {a} and {b});"
                    " score them alike, or give --anyway to compare them all the same"
                )


def compressors(split: Split) -> dict[str, float]:
    """Bits per byte that general compressors reach on the split's bytes, on their own; none where
    the tokens do not give these back.
    """
    if not split.exact:
        return {}
    text = split.vocabulary.decode(split.tokens)
    sizes = {"xz -9": len(lzma.compress(text, preset=9)), "bzip2 -9": len(bz2.compress(text, 9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def lengths(result: Result) -> str:
    """How the text was read, in words."""
    found = {name: result["protocol"][name] for name in LENGTHS if name in result["protocol"]}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())


def spoken(unit: str) -> str:
    """A unit in words."""
    return unit.replace("_", " ")


def table(result: Result) -> str:
    """A result in a few lines, protocol included."""
    protocol, bounds = result["protocol"], result["interval"]["bounds"]
    lines = [f"{plain(protocol['corpus'])} {protocol['split']}: {result['value']:.4f}"]
    lines[0] += f" {spoken(protocol['unit'])}"
    if bounds:
        lines[0] += f" ({LEVEL:.0%} of resampled documents: {bounds[0]:.4f} to {bounds[1]:.4f})"
    rows = [(spoken(name), value) for name, value in result["units"].items()]
    rows += [
        (f"{name}, bits per byte", value) for name, value in result.get("compressors", {}).items()
    ]
    # The word perplexity of a text with few words may have hundreds of digits.
    lines += [f"  {name:<24}{value:10{'.4f' if value < 1e6 else '.4g'}}" for name, value in rows]
    official = "the published count" if result["official_words"] else "its own count"
    lines.append(
        f"  {protocol['tokens']:,} tokens scored; {result['bytes']:,} bytes; "
        f"{result['words']:,} words ({official})"
    )
    if result["unknown_words"] is not None:
        lines[-1] += f"; {result['unknown_words']:.2%} of words unknown"
    if not result["exact"]:
        lines.append("  no bits per byte or character: the tokens do not give the text back")
    lines.append(f"  {lengths(result)}")
    lines.append(
        f"  {result['model']['parameters']:,} parameters, {result['checkpoint']['name']} "
        f"({result['checkpoint']['sha256'][:12]}), shards {protocol['shards'][:12]}, "
        f"commit {(result['commit'] or 'unknown')[:12]}"
    )
    return "\n".join(lines)


def default_json(run: Path, split: str) -> Path:
    """Where a split's result is kept in a run's folder."""
    return run / f"score-{split}.json"
