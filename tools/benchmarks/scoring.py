"""Scoring: tokens per second with memory's keys and values kept and projected anew; memory used.

Keeping them is exact (tests/lm/test_scoring.py). The second part scores a whole split of the size
of Enwik8's test split with a tiny model and reports by how much the process has grown.
"""

import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.common.outputs import check_output
from data.common.schema import Positive, Size
from data.shards import DOCUMENT_DTYPE, Split, split_files
from data.tokenizers.registry import ByteTokenizer
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer, ScoringConfig
from tools.benchmarks.step import SMALL
from tools.timing import core_clock, machine, pick_device, report, take_turns

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
        megabytes: size of the large split.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    torch.manual_seed(0)
    timed = CompressiveTransformer(model, 256).to(place).eval()
    with tempfile.TemporaryDirectory() as folder:
        part = random_split(Path(folder), lanes * model.segment * (rounds + 3))
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


def filled(config: ModelConfig, memory: MemoryState) -> MemoryState:
    """Memory whose every slot counts as live, whatever it holds."""
    return memory.with_counts(
        memory=torch.full_like(memory.memory_count, config.memory),
        compressed=torch.full_like(memory.compressed_count, config.compressed),
    )


def random_split(folder: Path, size: int) -> Split:
    """A split of so many random bytes, in files that are mapped into memory."""
    names = split_files("test")
    tokens = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
    np.save(folder / names[0], tokens)
    documents = np.zeros(1, dtype=DOCUMENT_DTYPE)
    documents["tokens"] = documents["bytes"] = size
    np.save(folder / names[1], documents)
    return Split(folder, "test", size, 0, "bits_per_byte", None, "random", ByteTokenizer())


def large_split(size: int, device: torch.device) -> dict[str, float]:
    """Score a whole large split with a tiny model, after a tenth of it: growth in between."""
    model = CompressiveTransformer(TINY, 256).to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        split = random_split(Path(folder), size)
        scorer = Scorer(ModelPredictor(model, split.vocabulary), split, ScoringConfig(lanes=64))
        while scorer.step < len(scorer) // 10:
            scorer.advance()
        before = peak_mebibytes()
        for _ in scorer:
            pass
    assert scorer.tokens == size
    grown = peak_mebibytes() - before
    return {"megabytes": size / 1e6, "mebibytes_grown_after_a_tenth": round(grown, 1)}


def peak_mebibytes() -> float:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
