"""A frozen run that reads the same text as the one that is trained, with a memory of its own.

It is no part of the trained module: nothing of it is divided among ranks, learnt or written to a
checkpoint but what it remembers of this rank's lanes.

Shapes: B lanes of this rank, T tokens of a segment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data.common.tensors import TensorFile
from data.shards import Shards
from lm.inference.inference_config import Placement
from lm.inference.loading import load_run
from lm.inference.predictor import ModelState
from lm.objectives.objective import Segment
from lm.objectives.teacher_config import SECTION
from lm.runs.checkpoints import MEND, CheckpointState
from lm.runs.run_config import RunConfig
from lm.training.dist import World

PREFIX = "teacher."
"""Of the names that its memory has in a rank's file."""


class Teacher:
    """A run that is read in evaluation mode, and what it remembers."""

    def __init__(self, config: RunConfig, shards: Shards, world: World, lanes: int) -> None:
        """A teacher that has read nothing.

        Raises:
            ValueError: there is no such run, or it cannot read what the student reads.
        """
        wanted = config.training.teacher
        assert wanted.run is not None
        precision: Literal["float32", "bfloat16"]
        precision = "bfloat16" if config.training.precision == "bf16" else "float32"
        placement = Placement("cuda" if world.device.type == "cuda" else "cpu", precision)
        loaded = load_run(wanted.run, wanted.checkpoint, None, placement)
        if loaded.vocabulary.hash != shards.vocabulary.hash:
            raise ValueError(
                f"{SECTION}.run {wanted.run} has another vocabulary ({loaded.vocabulary.name}) "
                f"than {shards.path} ({shards.vocabulary.name}); give a run of this one"
            )
        own, student = loaded.model.config.segment, config.model.segment
        if student % own:
            raise ValueError(
                f"{SECTION}.run {wanted.run} reads segments of {own} tokens, of which "
                f"model.segment must be a multiple, not {student}"
            )
        self.predictor, self.weights = loaded.predictor, loaded.weights
        self.predictor.model.to(world.device)
        self.world, self.lanes = world, lanes
        self.state: ModelState = self.predictor.begin(lanes)

    def tell(
        self, segments: Sequence[Segment], state: ModelState
    ) -> tuple[list[Tensor], ModelState]:
        """What it makes of segments of all lanes, for `logits`, and its state afterwards."""
        told = []
        for segment in segments:
            hidden, state = self.predictor.read(segment.inputs_BT, state.reset(segment.reset_B))
            told.append(hidden)
        return told, state

    def logits(self, told: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        return self.predictor.logits(told)

    def tensors(self) -> dict[str, Tensor]:
        """What it remembers, by the names in a rank's file."""
        kept = self.state.tensors().items()
        return {PREFIX + name: tensor.cpu().contiguous() for name, tensor in kept}

    def restore(self, folder: Path, state: CheckpointState) -> None:
        """Take over what it remembered at a checkpoint; errors as of lm.training.resume.

        Raises:
            ValueError: another run taught then, or none, or a file is damaged.
        """
        if state.teacher != self.weights:
            then = "no run taught" if state.teacher is None else "other weights taught"
            raise ValueError(
                f"{then} when {folder} was written, so this teacher has not read what the student "
                f"has: give {SECTION}.run as it was, or begin another --run with --from"
            )
        files = [
            TensorFile(folder / f"rank-{rank}.safetensors", MEND) for rank in range(state.ranks)
        ]
        like, whole = self.state.tensors(), self.world.size == state.ranks
        first = 0 if whole else self.world.rank * self.lanes
        chosen = [files[self.world.rank]] if whole else files
        found = {}
        for name, part in like.items():
            dtype = None if part.is_floating_point() else part.dtype
            shape = (None, *part.shape[1:])
            stored = torch.cat([file.take(PREFIX + name, dtype, shape) for file in chosen])
            found[name] = stored[first : first + self.lanes].to(part.dtype)
        self.state = self.predictor.restore(found)
