"""Scores whose lanes are shared by processes and that go on where they were: of runs, and of models
of transformers.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.common.files import hash_file
from data.shards import Split
from eval.eval_config import ProgramConfig, ScoreConfig
from eval.keeping import Keeper, read_to_end
from eval.protocol import Reading, documents, protocol, record
from eval.recalling import RecallingScorer
from eval.results import Result
from eval.tallies import Cuts, cuts_of
from lm.inference.episodes import CANDIDATES, Library
from lm.inference.loading import LoadedRun
from lm.inference.predictor import ModelState, StateT
from lm.runs.checkpoints import SETS
from lm.scoring import Score, Scorer
from lm.training import dist


def of_run(
    reading: Reading,
    world: dist.World,
    keep: Path | None,
    frequency: bool,
    library: Library | None = None,
) -> tuple[Result, Split]:
    """The record of a run's score, and the split that it is of.

    Args:
        reading: the run before the split.
        world: the ranks that share the lanes.
        keep: where the state of the score is kept.
        frequency: whether it is summed by the frequency of words too.
        library: memories that documents begin with.

    Raises:
        ValueError: as of `read_through`, `cuts_of` and `record`.
    """
    cuts = cuts_of(reading.split, reading.shards, frequency)
    reading = reading if library is None else whole_documents(reading)
    scorer = scored(reading, world, keep, cuts.parts, library)
    score = scorer.result(world.sum)
    result = record(reading, score) | details(scorer, score, cuts, world)
    if library is not None:
        result["protocol"] |= library.protocol()
    return result, reading.split


def library_of(config: ProgramConfig, reading: Reading) -> Library | None:
    """The library that documents begin with, if one is named; errors as of Library."""
    if config.library is None:
        return None
    return Library(config.library, reading.loaded, config.library_candidates or CANDIDATES)


def whole_documents(reading: Reading) -> Reading:
    """The same with lanes that read documents from their beginning, on which hangs what is found
    for them.
    """
    warmup = int(reading.split.documents["tokens"].max(initial=0))
    how = {each.name: getattr(reading.config, each.name) for each in fields(ScoreConfig)}
    return replace(reading, config=ScoreConfig(**how | {"warmup": warmup}), warmup=warmup)


def of_hub(
    config: ProgramConfig, split: str, shards: Path, world: dist.World, keep: Path | None
) -> tuple[Result, Split]:
    """The same of a model of transformers on any shards of a text that its tokens can hold."""
    # Imported here because transformers takes seconds.
    from eval.hub_models import hub_identity, hub_protocol, hub_record, open_hub_reading

    reading = open_hub_reading(config, split, shards, world.first)
    cuts = cuts_of(reading.split, reading.shards, config.frequency)
    rows = rows_of(config.lanes, world)
    scorer = Scorer[Any](reading.predictor, reading.split, config, rows=rows, cuts=cuts.parts)
    what = hub_protocol(reading) | hub_identity(reading.opened)
    score = read_through(scorer, what, world, keep).result(world.sum)
    return hub_record(reading, score) | details(scorer, score, cuts, world), reading.split


def details(scorer: Scorer[Any], score: Score, cuts: Cuts, world: dist.World) -> dict[str, Any]:
    """What a record of eval.score has beside the number: documents, cuts and speed."""
    return {
        "documents": documents(cuts.split, score),
        **cuts.rows(score.tallies),
        "speed": speed(scorer, world),
    }


def identity(loaded: LoadedRun) -> dict[str, Any]:
    """All that decides what a model predicts, in plain values."""
    sets = loaded.checkpoint / SETS
    return {
        "weights": loaded.weights,
        "sets": hash_file(sets) if sets.is_file() else None,
        "model": loaded.model.config.shape(),
        "sparse": asdict(loaded.config.sparse) | {"reservoir": None},
        "power": asdict(loaded.config.power),
        "vocabulary": loaded.vocabulary.hash,
    }


def scored(
    reading: Reading,
    world: dist.World,
    keep: Path | None = None,
    cuts: Mapping[str, np.ndarray] | None = None,
    library: Library | None = None,
) -> Scorer[ModelState]:
    """A scorer that has read this rank's lanes to the end; with a library, documents begin with
    memories of it. Arguments and errors as of `read_through`.
    """
    what = protocol(reading) | identity(reading.loaded)
    rows = rows_of(reading.config.lanes, world)
    if library is None:
        scorer = Scorer(
            reading.loaded.predictor, reading.split, reading.config, rows=rows, cuts=cuts
        )
    else:
        what |= library.protocol()
        scorer = RecallingScorer(library, reading.split, reading.config, rows=rows, cuts=cuts)
    return read_through(scorer, what, world, keep)


def rows_of(lanes: int, world: dist.World) -> slice:
    """The lanes that a rank reads; ValueError where they do not divide among the ranks."""
    if lanes % world.size:
        raise ValueError(f"lanes must be a multiple of the {world.size} processes, not {lanes}")
    share = lanes // world.size
    return slice(world.rank * share, (world.rank + 1) * share)


def read_through(
    scorer: Scorer[StateT], what: dict[str, Any], world: dist.World, keep: Path | None
) -> Scorer[StateT]:
    """Take a scorer to the end of this rank's lanes, from where it was left if it was.

    Args:
        scorer: of these lanes.
        what: its protocol and all that decides what its predictor predicts.
        world: the ranks that share the lanes.
        keep: where the state of the score is kept.

    Raises:
        ValueError: `keep` holds another score.
    """
    cuts = sorted(scorer.cuts)
    what = what | {"ranks": world.size} | ({"cuts": cuts} if cuts else {})
    keeper = None if keep is None else Keeper(keep, what, world.rank)
    read_to_end(scorer, keeper, world.first)
    return scorer


def speed(scorer: Scorer[Any], world: dist.World) -> dict[str, Any] | None:
    """How fast all ranks have read together, as far as it was taken, and on what."""
    if scorer.rate is None:
        return None
    device = scorer.predictor.device
    found: dict[str, Any] = {"tokens_per_second": scorer.rate * world.size, "device": device.type}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    if device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    return found
