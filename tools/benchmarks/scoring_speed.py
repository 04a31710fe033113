"""Scoring: tokens per second with memory's keys and values kept and projected anew; memory used.

Keeping them is exact (tests/lm/test_scoring.py). The second part scores a whole split of the size
of Enwik8's test split with a tiny model and reports by how much the process has grown.
"""

import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from data.common.outputs import check_output
from data.common.schema import Positive, Size
from lm.inference.inference_config import ScoringConfig
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.model_config import ModelConfig
from lm.scoring import Scorer
from tools.benchmarks.building import SMALL, filled, new_model, random_shards
from tools.benchmarks.timing import core_clock, machine, pick_device, report, take_turns

LONG = replace(SMALL, memory=512, compressed=1024)
"""Longer memory than training's, as in the paper's evaluations."""
TINY = ModelConfig(
    layers=1, width=16, heads=1, feedforward=16, segment=512, memory=64, compressed=16, rate=4
)


def main(
    model: ModelConfig = LONG,
    lanes: Size = 4,
    rounds: Size = 7,
    megabytes: Positive = 5.0,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Time a model's scoring of random bytes with full memory, and score a large split.

    Args:
        model: shape of the model that is timed.
        lanes: segments read side by side.
        rounds: segments of each lane that are timed.
        megabytes: size of the text whose training split, the large one, is nine tenths of it.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    timed = new_model(model, device=place).eval()
    with tempfile.TemporaryDirectory() as folder:
        # Nine tenths of it are the training split.
        size = 2 * lanes * model.segment * (rounds + 3)
        part = random_shards(Path(folder), size).split("train")
        config = ScoringConfig(lanes=lanes, warmup=0)
        scorers = {
            name: Scorer(ModelPredictor(timed, part.vocabulary, keep_keys=kept), part, config)
            for name, kept in (("kept", True), ("projected", False))
        }
        for scorer in scorers.values():
            scorer.advance()
            scorer.state = ModelState(filled(model, scorer.state.memory))
        actions = {name: scorer.advance for name, scorer in scorers.items()}
        taken = take_turns(actions, place, rounds, clock=core_clock(place))
    tokens = lanes * model.segment
    speeds = {name: round(tokens / seconds) for name, seconds in taken.items()}
    result = {
        "tokens_per_second": speeds,
        "kept_over_projected": round(taken["projected"] / taken["kept"], 2),
        "large_split": large_split(int(megabytes * 1e6), place),
    }
    report(result | machine(place), json)


def large_split(size: int, device: torch.device) -> dict[str, float]:
    """Score a whole large split with a tiny model, after a tenth of it: growth in between."""
    model = new_model(TINY, device=device).eval()
    with tempfile.TemporaryDirectory() as folder:
        split = random_shards(Path(folder), size).split("train")
        scorer = Scorer(ModelPredictor(model, split.vocabulary), split, ScoringConfig(lanes=64))
        while scorer.step < len(scorer) // 10:
            scorer.advance()
        before = peak_mebibytes()
        for _ in scorer:
            pass
    grown = peak_mebibytes() - before
    return {"megabytes": scorer.tokens / 1e6, "mebibytes_grown_after_a_tenth": round(grown, 1)}


def peak_mebibytes() -> float:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
