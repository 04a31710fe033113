"""The record of a score: a number in the units that the field compares, how sure it is, and all
that one must know to compare it.

A unit divides the same sum of nats by what its benchmark divides by: raw bytes, characters, tokens,
or words whatever the tokens are (Compressive Transformer, section 4.2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.shards import Shards, Split, open_shards
from eval.eval_config import ScoreConfig
from eval.results import FORMAT, Result, spoken
from lm.inference.loading import LoadedRun, load_run
from lm.inference.predictor import Predictor
from lm.model.flops import training_flops
from lm.runs.adopted_config import AdoptedConfig
from lm.runs.runlog import commit
from lm.scoring import Score, resolved_warmup

BLOCK_TOKENS = 1 << 22
RESAMPLES = 1000
LEVEL = 0.95
MOST_NATS = 700.0
"""Whose exponential is still a floating-point number."""


@dataclass(frozen=True)
class Reading:
    """A model, the split that it reads, and how it reads it."""

    loaded: LoadedRun
    shards: Shards
    split: Split
    config: ScoreConfig
    warmup: int
    """Tokens that each lane reads unscored before its part."""
    state_bytes: int
    """Of what is kept of one text between segments."""
    vocabulary: str
    """SHA-256 of the vocabulary."""


def open_reading(
    run: Path, config: ScoreConfig, split: str, shards: Path | None, checkpoint: str | None
) -> Reading:
    """A run's model before a split of the shards that it was trained on, or of others with the same
    vocabulary.

    Raises:
        ValueError: there is no such run, checkpoint or split, the lengths are impossible, or the
            shards have another vocabulary.
    """
    loaded = load_run(run, checkpoint, config, config)
    opened = open_shards(shards or loaded.shards)
    if opened.vocabulary.hash != loaded.vocabulary.hash:
        raise ValueError(
            f"{opened.path} has another vocabulary ({opened.vocabulary.name}) than the model "
            f"({loaded.vocabulary.name}); prepare the text with the model's"
        )
    return Reading(
        loaded,
        opened,
        opened.split(split),
        config,
        warmup=resolved_warmup(config, loaded.predictor),
        state_bytes=state_bytes(loaded.predictor),
        vocabulary=loaded.vocabulary.hash,
    )


def record(reading: Reading, score: Score) -> Result:
    """A result as it is written to JSON; eval/results.py says what each field may be.

    Raises:
        ValueError: the number is not finite, or the text has none in its unit.
    """
    loaded = reading.loaded
    model = loaded.model
    return {
        **numbers(reading.split, score),
        "protocol": protocol(reading) | counted(reading.split, score),
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": model.config.layers,
            "width": model.config.width,
            "vocabulary": loaded.vocabulary.name,
            "vocabulary_sha256": reading.vocabulary,
            "training_flops_per_token": trained_with(loaded),
            "state_bytes": reading.state_bytes,
            "reach": model.config.range,
        },
        "checkpoint": {"name": loaded.checkpoint.name, "sha256": loaded.weights},
    }


def state_bytes(predictor: Predictor[Any]) -> int:
    """Bytes of what is kept of one text between segments."""
    kept = predictor.begin(1).tensors().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def denominator_of(split: Split, score: Score) -> int:
    """What the score is divided by in the split's unit; ValueError where there is none."""
    denominator = denominators(split, score)[split.unit]
    if denominator is None:
        raise ValueError(
            f"{spoken(split.unit)} cannot be told of a text that its tokens do not give back; "
            f"prepare {split.folder} with another vocabulary"
        )
    return denominator


def counted(split: Split, score: Score) -> dict[str, Any]:
    """What a protocol says of the text that was counted."""
    return {"denominator": denominator_of(split, score), "tokens": score.tokens}


def numbers(split: Split, score: Score) -> dict[str, Any]:
    """What a record says of a score, whichever model it is of.

    Raises:
        ValueError: the number is not finite, or the text has none in its unit.
    """
    denominator, sizes = denominator_of(split, score), denominators(split, score)
    value = convert(score.nats, split.unit, denominator)
    if not math.isfinite(value):
        raise ValueError(
            f"{score.nats:.6g} nats over {denominator:,} are a {spoken(split.unit)} beyond all "
            "floating-point numbers; score a text of more words, or another model"
        )
    whole = score.tokens == len(split.tokens)
    return {
        "format": FORMAT,
        "value": value,
        "interval": {
            "bounds": interval(score, split, split.unit, denominator),
            "level": LEVEL,
            "resamples": RESAMPLES,
            "documents": int((split.documents["tokens"] > 0).sum()),
        },
        "units": all_units(score.nats, sizes, split.vocabulary.kind),
        "nats": score.nats,
        # Those of the source, which tokens may not give back, where all of it was read.
        "bytes": split.bytes if whole else score.bytes,
        "characters": sizes["bits_per_character"],
        "words": sizes["word_perplexity"],
        "exact": split.exact,
        "unknown_words": split.unknown_words,
        "official_words": split.denominator_words is not None,
        "commit": commit(),
    }


def documents(split: Split, score: Score) -> dict[str, list[Any]]:
    """What each document costs, and its size."""
    sizes = {name: split.documents[name].tolist() for name in ("bytes", "words")}
    return {"nats": score.document_nats.tolist(), **sizes}


def trained_with(loaded: LoadedRun) -> float | None:
    """Operations a token of training, at its own lengths; none of a run that no training made."""
    if isinstance(loaded.config, AdoptedConfig):
        return None
    shape, vocabulary = loaded.config.model, loaded.model.vocabulary
    return training_flops(shape, vocabulary, loaded.lanes, readings=loaded.readings).total


def protocol(reading: Reading) -> dict[str, Any]:
    """What decides a number besides the weights; lengths in tokens, or slots a layer."""
    model = reading.loaded.model.config
    lengths = {name: getattr(model, name) for name in ("segment", "memory", "compressed")}
    lengths |= {"sinks": model.sinks} if model.sinks else {}
    return protocol_of(reading.shards, reading.split, reading.config, reading.warmup, lengths)


def protocol_of(
    shards: Shards, split: Split, config: ScoreConfig, warmup: int, how: Mapping[str, Any]
) -> dict[str, Any]:
    """The same of any model; `how` it reads the text besides lanes."""
    precise = config.precision == "float32"
    some = {} if split.first is None else {"documents": split.first}
    return (
        some
        | ({} if precise else {"precision": config.precision})
        | {
            "corpus": shards.corpus,
            "text": shards.manifest.source.sha256,
            "shards": shards.hash,
            "split": split.name,
            "unit": split.unit,
            **how,
            "lanes": config.lanes,
            "warmup": warmup,
            "reset_documents": config.reset_documents,
        }
    )


def denominators(split: Split, score: Score) -> dict[str, int | None]:
    """What the nats of a whole split are divided by in each unit; None where it has no such unit,
    as text that its tokens do not give back has neither bytes nor characters. Words are the
    published count where this is the full official split, else the split's own.
    """
    return {
        "bits_per_byte": score.bytes,
        "bits_per_character": characters(split) if split.exact else None,
        "bits_per_sample": score.tokens,
        "token_perplexity": score.tokens,
        "word_perplexity": split.denominator_words or split.words,
    }


def characters(split: Split) -> int:
    """Unicode characters of a split, counted at the byte that each begins with."""
    pieces = split.vocabulary.pieces
    begins_V = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces])
    blocks = range(0, len(split.tokens), BLOCK_TOKENS)
    return sum(int(begins_V[split.tokens[at : at + BLOCK_TOKENS]].sum()) for at in blocks)


def convert(nats: float, unit: str, denominator: float) -> float:
    """A sum of nats in a unit; a perplexity beyond all floating-point numbers is infinite."""
    mean = nats / denominator
    if not unit.endswith("perplexity"):
        return mean / math.log(2)
    return math.exp(mean) if mean < MOST_NATS else math.inf


def all_units(nats: float, sizes: Mapping[str, int | None], kind: str) -> dict[str, float]:
    """A score in every unit that makes sense for a kind of vocabulary.

    Audio has samples, one a token; text has bytes, characters, tokens and words. What the score
    does not fit into is left out, as are bytes and characters that the tokens do not give back.

    Args:
        nats: of the whole split.
        sizes: its `denominators`.
        kind: of the vocabulary.
    """
    sound = "bits_per_sample"
    names = [sound] if kind == "mulaw" else [name for name in sizes if name != sound]
    found = {name: convert(nats, name, size) for name in names if (size := sizes[name])}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def interval(score: Score, split: Split, unit: str, denominator: int, seed: int = 0) -> list[float]:
    """Bootstrap confidence interval of a score: documents drawn again, with replacement.

    It says how far the number may be from that of other documents of the kind. Empty for fewer than
    two documents, which say nothing of others, and where a bound is beyond all floating-point
    numbers.

    Args:
        score: of the split.
        split: with the documents' sizes.
        unit: of the interval.
        denominator: of the whole split in this unit.
        seed: of the draws.
    """
    documents = split.documents
    name = {"word_perplexity": "words", "bits_per_byte": "bytes"}.get(unit, "tokens")
    used = documents["tokens"] > 0
    size, nats = documents[name][used].astype(float), score.document_nats[used]
    if len(size) < 2:
        return []
    random = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        times = np.bincount(random.integers(len(size), size=len(size)), minlength=len(size))
        means.append(times @ nats / max(times @ size, 1))
    # Published counts differ a little from the documents' own.
    scale = size.sum() / denominator
    tails = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) * scale
    bounds = [convert(float(mean), unit, 1.0) for mean in tails]
    return bounds if all(map(math.isfinite, bounds)) else []
