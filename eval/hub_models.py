"""A causal model of transformers before a split: the same text in its own tokens, read in windows
or with its state, and the record of what it costs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.files import hash_json
from data.reencoding import reencoded
from data.shards import Shards, Split, open_shards
from eval.eval_config import ProgramConfig
from eval.protocol import counted, numbers, protocol_of
from eval.results import Result
from lm.hub.carried import SEGMENT as CARRIED
from lm.hub.carried import CarriedPredictor
from lm.hub.opened import Opened, open_causal
from lm.hub.windows import WindowPredictor, positions
from lm.scoring import Score, resolved_warmup

WINDOW = 1024
"""Tokens of a window where nobody has said how many."""


@dataclass(frozen=True)
class HubReading:
    """A model of transformers, the split that it reads in its tokens, and how it reads it."""

    opened: Opened
    predictor: WindowPredictor | CarriedPredictor
    shards: Shards
    split: Split
    config: ProgramConfig


def open_hub_reading(config: ProgramConfig, split: str, shards: Path, progress: bool) -> HubReading:
    """A model of transformers before a split of some shards, whatever their vocabulary.

    Raises:
        ValueError: there is no such model or split, the model cannot be read so, or its tokenizer
            cannot hold the text.
    """
    prepared = open_shards(shards)
    part = prepared.split(split).beginning(config.documents)
    gguf = config.gguf if config.hf is not None or config.gguf is None else Path(config.gguf).name
    model = config.hf if config.hf is not None else str(Path(config.gguf or "").parent)
    opened = open_causal(model, gguf, config.vocabulary, config)
    predictor = predictor_of(opened, config)
    split_of_model = reencoded(part, opened.vocabulary, progress)
    return HubReading(opened, predictor, prepared, split_of_model, config)


def predictor_of(opened: Opened, config: ProgramConfig) -> WindowPredictor | CarriedPredictor:
    """The model as it is asked to read."""
    if config.carried:
        return CarriedPredictor(opened.model, opened.vocabulary, config.segment or CARRIED)
    window = config.window or min(WINDOW, positions(opened.model) or WINDOW)
    stride = config.stride or -(-window // 2)
    return WindowPredictor(opened.model, opened.vocabulary, window, stride)


def hub_protocol(reading: HubReading) -> dict[str, Any]:
    """What decides a number besides the weights; lengths in tokens."""
    predictor = reading.predictor
    how: dict[str, Any] = {"reading": "carried", "segment": predictor.segment}
    if isinstance(predictor, WindowPredictor):
        how = {"reading": "windows", "window": predictor.window, "stride": predictor.segment}
    warmup = resolved_warmup(reading.config, predictor)
    return protocol_of(reading.shards, reading.split, reading.config, warmup, how)


def hub_identity(opened: Opened) -> dict[str, Any]:
    """All that decides what a model predicts, in plain values."""
    config = opened.model.config.to_dict()
    # Where it lies decides nothing.
    said = {name: config[name] for name in sorted(config) if name != "_name_or_path"}
    return {
        "weights": opened.weights,
        "model": hash_json({name: str(value) for name, value in said.items()}),
        "vocabulary": opened.vocabulary.hash,
    }


def hub_record(reading: HubReading, score: Score) -> Result:
    """A result as eval.protocol.record makes it of a run."""
    model, predictor = reading.opened.model, reading.predictor
    shape = model.config.get_text_config()
    return {
        **numbers(reading.split, score),
        "protocol": hub_protocol(reading) | counted(reading.split, score),
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": shape.num_hidden_layers,
            "width": shape.hidden_size,
            "vocabulary": reading.opened.vocabulary.name,
            "vocabulary_sha256": reading.opened.vocabulary.hash,
            "training_flops_per_token": None,
            "kind": type(model).__name__,
            "state_bytes": predictor.state_bytes(),
            "reach": predictor.window if isinstance(predictor, WindowPredictor) else "unbounded",
        },
        "checkpoint": {"name": reading.opened.name, "sha256": reading.opened.weights},
    }
