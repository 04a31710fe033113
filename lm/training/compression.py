"""How strongly the compression functions are being taught."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lm.model import CompressiveTransformer

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def compression_norms(engine: "DeepSpeedEngine", model: CompressiveTransformer) -> dict[str, float]:
    """Gradient norm of each compression function that learns, as `compression_grad_norm/LAYER`.

    Where back-propagation spans one segment, this is the gradient of the reconstruction loss and of
    nothing else. Collective; to be called between the last back-propagation and the update.
    """
    norms: dict[str, Tensor] = {}
    for layer, block in enumerate(model.layers):
        function = getattr(block, "compression", None)
        parameters = [] if function is None else list(function.parameters())
        gradients = [_gradient(engine, parameter) for parameter in parameters]
        known = [gradient for gradient in gradients if gradient is not None]
        if known:
            norms[f"compression_grad_norm/{layer}"] = nn.utils.get_total_norm(known)
    if not norms:
        return {}
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))


def _gradient(engine: "DeepSpeedEngine", parameter: nn.Parameter) -> Tensor | None:
    """The whole gradient of an update, averaged over ranks."""
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter) if engine.zero_optimization() else parameter.grad
