"""Float32 masters of bf16 weights at ZeRO stage 0.

DeepSpeed's own take a step with zero gradients when they start, so that Adam counts one ahead.
"""

import copy

import torch

from lm.model import CompressiveTransformer


class Masters:
    """A float32 copy of a model that the optimiser moves, while the model itself becomes bf16.

    The arithmetic is that of DeepSpeed's bf16 from stage 1 on, so a run may change its stage.
    """

    def __init__(self, model: CompressiveTransformer) -> None:
        self.module = copy.deepcopy(model)
        for part in self.module.modules():
            # Which weights a sparse matrix has is the model's affair; a copy would go stale.
            part._buffers.clear()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        self.pairs = list(zip(self.module.parameters(), model.parameters(), strict=True))

    def take_gradients(self) -> None:
        """Give the masters the model's gradients, in float32."""
        for master, parameter in self.pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the model's weights; their gradients are done with."""
        for master, parameter in self.pairs:
            parameter.copy_(master)
            master.grad = None
