"""The one scorer: what a model's predictions of a split cost.

Validation during training, evaluation and every other number go through `score`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from data.lanes import scoring_batches
from data.progress import Progress
from data.shards import Split
from lm.feeding import tensors
from lm.model import CompressiveTransformer


@dataclass(frozen=True)
class ScoringConfig:
    """How a split is read when it is scored."""

    lanes: int = 8
    """Parts of the split that are read side by side."""
    warmup: int | None = None
    """Tokens a lane reads unscored before its part; none: as many as both memories of a layer span.
    The score does not depend on the number of lanes once this covers the model's whole range."""
    reset_documents: bool = False
    """Begin each document with empty memory."""

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {self.lanes}")
        if self.warmup is not None and self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, not {self.warmup}")


@dataclass(frozen=True)
class Score:
    """Sums over the scored tokens; divide by what the unit asks for."""

    nats: float
    """Negative log-likelihood of all scored tokens."""
    tokens: int
    bytes: int
    """Raw bytes that the scored tokens stand for."""

    @property
    def bits_per_byte(self) -> float:
        """Bits of information per byte of text."""
        return self.nats / math.log(2) / self.bytes

    def value(self, unit: str, words: int) -> float:
        """The score of a whole split in the unit of its benchmark.

        Args:
            unit: bits_per_byte, bits_per_sample (audio: one token a sample) or word_perplexity.
            words: by which word perplexity divides, whatever the tokens are (paper, section 4.2).
        """
        if unit == "word_perplexity":
            return math.exp(self.nats / words)
        units = self.tokens if unit == "bits_per_sample" else self.bytes
        return self.nats / math.log(2) / units


def resolved_warmup(config: ScoringConfig, model: CompressiveTransformer) -> int:
    """Warm-up in tokens, as it is reported."""
    if config.warmup is not None:
        return config.warmup
    return model.config.memory + model.config.rate * model.config.compressed


@torch.no_grad()
def score(
    model: CompressiveTransformer,
    split: Split,
    config: ScoringConfig,
    *,
    rows: slice = slice(None),
    limit: int | None = None,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    progress: bool = False,
) -> Score:
    """Score every token of a split once.

    Args:
        model: read in evaluation mode; its mode is restored afterwards.
        split: tokens of the vocabulary that the model was trained on.
        config: lanes, warm-up and resets.
        rows: the lanes that this rank reads.
        limit: read only this many segments of each lane.
        reduce: sums a float64 tensor over ranks.
        progress: show progress.

    Raises:
        ValueError: the split has too few tokens for so many lanes.
    """
    batches = scoring_batches(
        split,
        lanes=config.lanes,
        segment=model.config.segment,
        warmup=resolved_warmup(config, model),
        reset_documents=config.reset_documents,
    )
    count = len(batches) if limit is None else min(limit, len(batches))
    device = model.embedding.weight.device
    token_bytes = torch.from_numpy(split.vocabulary.token_bytes).to(device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    memory = model.empty_memory(len(range(config.lanes)[rows]))
    try:
        with Progress(f"score {split.name}", count, "segment", enabled=progress) as bar:
            for batch in islice(batches, count):
                inputs, targets, scored, reset = tensors(batch, rows, device)
                output = model(inputs, memory.reset(reset), targets)
                memory = output.memory
                # Nothing here waits for a GPU, so batches are read and copied while it computes.
                sums[0] += torch.where(scored, output.predictions.double(), 0.0).sum()
                sums[1] += scored.sum()
                sums[2] += torch.where(scored, token_bytes[targets], 0).sum()
                bar.update()
    finally:
        model.train(training)
    nats, tokens, size = reduce(sums).tolist()
    return Score(nats, int(tokens), int(size))
