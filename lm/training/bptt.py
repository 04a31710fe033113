"""What one back-propagation spans (the BPTT window): consecutive segments of some lanes.

Shapes: K segments, B lanes, T tokens of a segment.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from data.common.say import warn
from data.lanes import Batch
from lm.feeding import Segment, tensors
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Objective, SegmentRead, Term, add_terms, terms_of


class Unroll(nn.Module):
    """The model over K segments: the terms of its loss, and memory after the last.

    The gradient passes from segment to segment through compressed memory and ends at the first; the
    memory returned is cut off. DeepSpeed sees this module, because from stage 1 on it needs plain
    tensors to come out.
    """

    def __init__(self, model: CompressiveTransformer, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.model, self.objectives = model, objectives
        self.logits = any(objective.logits for objective in objectives)

    def forward(
        self, segments: list[Segment], memory: MemoryState
    ) -> tuple[dict[str, Term], dict[str, Term], MemoryState]:
        """Read segments in order.

        Args:
            segments: of the B lanes.
            memory: of the lanes, before the first segment and its resets.

        Returns:
            The terms by name, the likelihood in nats first; losses that are known by layer, [l]
            each, to be looked at only; and memory.
        """
        terms: dict[str, Term] = {}
        by_layer: dict[str, Term] = {}
        for segment in segments:
            states = self.model.read_segment(segment.inputs_BT, memory.reset(segment.reset_B))
            memory = states.memory
            read = SegmentRead(
                self.model, states, segment.targets_BT, segment.scored_BT, self.logits
            )
            add_terms(terms, terms_of(self.objectives, read))
            add_terms(by_layer, {name: Term(*loss) for name, loss in states.by_layer.items()})
        return terms, by_layer, memory.detach()


def on_device(batches: list[Batch], lanes: slice, device: torch.device) -> list[Segment]:
    """Some lanes of consecutive batches as Unroll reads them."""
    return [tensors(batch, lanes, device) for batch in batches]


def scored_tokens(batches: list[Batch]) -> int:
    """Tokens of these batches that count."""
    return int(sum(np.count_nonzero(batch.scored_BT) for batch in batches))


def checkpoint_activations(model: CompressiveTransformer) -> None:
    """Make each layer keep its inputs alone and compute the rest again in the backward pass.

    A layer is a pure function of its inputs and memory, so the second time gives the same values;
    torch restores the random state for dropout.
    """
    for block in model.layers:
        again = partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = again  # type: ignore[method-assign]


BACKEND = "inductor"
GRAPHS = 32
"""Graphs that a layer may be compiled to: training, scoring and samples differ in shapes and modes,
and layers in whether they have memory. torch's usual 8 are soon used up."""


def compile_layers(model: CompressiveTransformer, device: torch.device) -> None:
    """Compile each layer; layers that are alike share one graph. Says so if it cannot be done."""
    reason = missing(device)
    if reason is not None:
        warn(f"training.compile has no effect, because nothing can be compiled here ({reason})")
        return
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, GRAPHS)
    for block in model.layers:
        block.compile(backend=BACKEND, dynamic=False)


def missing(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device, found by trying; None if it can."""
    try:
        torch.compile(torch.exp, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:
        # Compilers fail in many ways: none installed, one that does not run, Triton missing.
        return str(error).strip().splitlines()[0]
    return None
