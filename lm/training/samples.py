"""Text that a model writes while it is being trained."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.shards import Split
from lm.inference.predictor import evaluating
from lm.model import CompressiveTransformer
from lm.model.incremental import Reader
from lm.sampling import Sampler, SamplingConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SAMPLING = SamplingConfig(top_p=0.95)
PROMPT_SEGMENTS = 2
"""The prompt's second segment reads the first through memory."""


@torch.no_grad()
def continuation(
    model: CompressiveTransformer, split: Split, tokens: int, seed: int, between: Callable[[], None]
) -> tuple[bytes, bytes]:
    """The first words of a split, and how the model goes on.

    Draws from a generator of its own, so that the training is the same with samples and without.

    Args:
        model: all its weights are at hand (see `whole_weights`).
        split: text to begin with.
        tokens: length of the continuation.
        seed: of the draws.
        between: called before each token; what it raises ends the writing.
    """
    vocabulary, device = split.vocabulary, model.embedding.weight.device
    prompt = split.tokens[: PROMPT_SEGMENTS * model.config.segment].astype(np.int64)
    pieces = torch.from_numpy(np.concatenate([[vocabulary.start], prompt]))[None]
    sampler = Sampler(SAMPLING, [seed], torch.zeros(1, vocabulary.size, dtype=torch.bool))
    with evaluating(model):
        reader = Reader(model, model.empty_memory(1))
        written = []
        for _ in range(tokens):
            between()
            # Never a whole segment at once: at stage 3 a layer that is called as in training gives
            # its weights back.
            for part in pieces.split(max(1, model.config.segment - 1), dim=1):
                reader.read(part.to(device))
            token = sampler(reader.logits().cpu())
            written.append(token.item())
            pieces = token[:, None]
    return vocabulary.decode(prompt), vocabulary.decode(np.array(written))


def whole_weights(
    engine: "DeepSpeedEngine", model: CompressiveTransformer
) -> AbstractContextManager[None]:
    """Context in which every rank has all weights, which stage 3 divides otherwise; collective."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    context: AbstractContextManager[None] = GatheredParameters(list(model.parameters()))
    return context
