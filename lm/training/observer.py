"""What is looked at between two steps: validation, where attention goes, and samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data.common.files import atomic_path
from data.shards import Split
from lm.inference.attention_mass import AttentionMass
from lm.inference.inference_config import SamplingConfig, ScoringConfig
from lm.inference.predictor import ModelPredictor, evaluating
from lm.inference.sampling import Sampler
from lm.model.incremental import Reader
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Segment
from lm.scoring import Score, score
from lm.training.dist import World
from lm.training.trainer import Trainer

SAMPLING = SamplingConfig(top_p=0.95)
PROMPT_SEGMENTS = 2
"""The prompt's second segment reads the first through memory."""


class Observer:
    """Looks at a trainer and leaves it as it was, its random numbers included.

    All methods are collective.
    """

    def __init__(self, trainer: Trainer, between: Callable[[], None] = lambda: None) -> None:
        """An observer of `trainer`.

        Args:
            trainer: what is looked at.
            between: called on all ranks after each segment that is scored and before each token
                that is drawn; what it raises, on all ranks, ends that.
        """
        self.trainer, self.world, self.between = trainer, trainer.world, between
        self.split = trainer.shards.split("validation")
        self.seen: tuple[Segment, MemoryState] | None = None

    def see(self, segment: Segment, memory: MemoryState) -> None:
        """Keep the first segment of a step and memory before it; see Trainer.train_step."""
        self.seen = segment, memory

    def validate(self) -> Score:
        """The validation split, or its first segments, by the one scorer; documents begin with
        empty memory if they do in training.
        """
        lanes, training = max(8, self.world.size), self.trainer.config.training
        share = lanes // self.world.size
        model = self.trainer.model
        return score(
            ModelPredictor(model, self.split.vocabulary),
            self.split,
            ScoringConfig(share * self.world.size, reset_documents=training.reset_documents),
            rows=slice(self.world.rank * share, (self.world.rank + 1) * share),
            limit=training.validation_segments,
            reduce=self.world.sum,
            between=self.between,
        )

    def attention(self) -> dict[str, float]:
        """Where attention went in the step that was seen last; see attention_shares.

        Looks at the first micro-batch, and forgets the step.
        """
        assert self.seen is not None
        (segment, memory), self.seen = self.seen, None
        rows = slice(0, memory.lanes // self.trainer.config.training.micro_batches)
        mine, before = segment.lanes(rows), memory.lane_slice(rows)
        return attention_shares(self.trainer.model, mine, before, self.world)

    def write_sample(self, path: Path) -> None:
        """Write the beginning of the validation split and how the model goes on."""
        trainer, length = self.trainer, self.trainer.config.report.sample_tokens
        with trainer.engine.gathered():
            if self.world.first or trainer.config.training.zero == 3:
                text = continuation(trainer.model, self.split, length, trainer.step, self.between)
            else:
                for _ in range(length):
                    self.between()
        if self.world.first:
            path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(b"\n\n--- continued:\n\n".join(text))


@torch.no_grad()
def attention_shares(
    model: CompressiveTransformer, segment: Segment, memory: MemoryState, world: World
) -> dict[str, float]:
    """Share of each layer's attention that falls on each store, as `attention/STORE/LAYER`.

    Without dropout, so no random number is drawn. Collective.

    Args:
        model: read in evaluation mode; its mode is restored afterwards.
        segment: of this rank's lanes.
        memory: of these lanes before the segment.
        world: all ranks' lanes count.

    Returns:
        Nothing as long as no lane has both memories full.
    """
    with evaluating(model), AttentionMass(model) as mass:
        memory = memory.reset(segment.reset_B)
        model(segment.inputs_BT, memory)
        mass.add(mass.full_lanes(memory))
    mass.reduce(world.sum)
    if not mass.lanes:
        return {}
    return {
        f"attention/{store}/{layer}": share
        for store, shares_L in mass.by_store().items()
        for layer, share in enumerate(shares_L.tolist())
    }


@torch.no_grad()
def continuation(
    model: CompressiveTransformer, split: Split, tokens: int, seed: int, between: Callable[[], None]
) -> tuple[bytes, bytes]:
    """The first words of a split, and how the model goes on.

    Draws from a generator of its own, so that the training is the same with samples and without.

    Args:
        model: all its weights are at hand (see Engine.gathered).
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
