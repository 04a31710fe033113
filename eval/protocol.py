"""The record of a score: a number, and everything one must know to compare it."""

import bz2
import lzma
from pathlib import Path
from typing import Any

from data.files import hash_file
from data.shards import Shards, Split
from lm.loading import LoadedRun
from lm.model.flops import training_flops
from lm.scoring import Score, ScoringConfig, resolved_warmup
from lm.training.runlog import commit


def record(
    loaded: LoadedRun, shards: Shards, split: str, config: ScoringConfig, result: Score
) -> dict[str, Any]:
    """A result as it is written to JSON; lengths in tokens or slots a layer.

    Words are the published count where this is the full official split, else the split's own.
    """
    model, part = loaded.model, shards.split(split)
    words = part.denominator_words or part.words
    weights = loaded.checkpoint / "model.safetensors"
    return {
        "corpus": shards.corpus,
        "split": split,
        "unit": part.unit,
        "value": result.value(part.unit, words),
        "bits_per_byte": result.bits_per_byte,
        "nats": result.nats,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "words": words,
        "official_words": part.denominator_words is not None,
        "protocol": {
            "segment": model.config.segment,
            "memory": model.config.memory,
            "compressed": model.config.compressed,
            "lanes": config.lanes,
            "warmup": resolved_warmup(config, model),
            "reset_documents": config.reset_documents,
        },
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": model.config.layers,
            "width": model.config.width,
            "vocabulary": loaded.vocabulary.name,
            "training_flops_per_token": training_flops(
                model.config, model.vocabulary, loaded.config.training.lanes
            ).total,
        },
        "shards_hash": shards.hash,
        "checkpoint": {"name": loaded.checkpoint.name, "sha256": hash_file(weights)},
        "commit": commit(),
    }


def compressors(split: Split) -> dict[str, float]:
    """Bits per byte that general compressors reach on the split's bytes, on their own."""
    text = split.vocabulary.decode(split.tokens)
    sizes = {"xz -9": len(lzma.compress(text, preset=9)), "bzip2 -9": len(bz2.compress(text, 9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def table(result: dict[str, Any]) -> str:
    """A result in a few lines, protocol included."""
    protocol = ", ".join(f"{name} {value}" for name, value in result["protocol"].items())
    rows = [("this model", result["bits_per_byte"]), *result.get("compressors", {}).items()]
    lines = [f"{result['corpus']} {result['split']}, bits per byte"]
    lines += [f"  {name:<12}{value:8.4f}" for name, value in rows]
    if result["unit"] != "bits_per_byte":
        lines.append(f"  {result['unit'].replace('_', ' ')} {result['value']:.4f}")
    lines.append(f"  {result['tokens']:,} tokens, {result['bytes']:,} bytes scored; {protocol}")
    lines.append(
        f"  {result['model']['parameters']:,} parameters, {result['checkpoint']['name']} "
        f"({result['checkpoint']['sha256'][:12]}), shards {result['shards_hash'][:12]}"
    )
    return "\n".join(lines)


def default_json(run: Path, split: str) -> Path:
    """Where a split's result is kept in a run's folder."""
    return run / f"score-{split}.json"
