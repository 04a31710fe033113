"""What is looked at in gradients: what is not finite, and how strongly compression is taught."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from data.common.say import warn
from lm.model.transformer import CompressiveTransformer
from lm.training.dist import World
from lm.training.engine import Engine


class NonFiniteError(ValueError):
    """A loss or gradient is infinite or not a number; the weights have not moved."""


def judge_skipped(skipped: int, steps: int, speaking: bool) -> None:
    """Say at the end of a run how many of its steps were left out.

    Args:
        skipped: steps that were left out.
        steps: all of them.
        speaking: whether this rank shows what there is to say.

    Raises:
        ValueError: more than half.
    """
    if not skipped:
        return
    line = (
        f"{skipped:,} of {steps:,} steps were left out, because a loss or gradient was not finite"
    )
    if 2 * skipped > steps:
        raise ValueError(
            f"{line}: lower optim.lr or lengthen optim.warmup, in another --run folder"
        )
    if speaking:
        warn(line)


def first_bad(model: nn.Module, world: World, gradients: Callable[[], object]) -> str:
    """Name the first parameter with a gradient that is not finite on some rank, or the loss.

    Args:
        model: whose gradients are watched.
        world: all ranks take part.
        gradients: computes the gradients again as they were.
    """
    found: list[int] = []

    def watch(index: int, gradient: Tensor) -> None:
        if not gradient.isfinite().all():
            found.append(index)

    handles = [
        parameter.register_hook(partial(watch, index))
        for index, parameter in enumerate(model.parameters())
        if parameter.requires_grad
    ]
    gradients()
    for handle in handles:
        handle.remove()
    bad = [index for rank in world.gather(found) for index in rank]
    names = [name for name, _ in model.named_parameters()]
    return f"the gradient of {names[min(bad)]}" if bad else "the loss"


def compression_norms(engine: Engine, model: CompressiveTransformer) -> dict[str, float]:
    """Gradient norm of each compression function that learns, as `compression_grad_norm/LAYER`.

    Where back-propagation spans one segment, this is the gradient of the reconstruction loss and of
    nothing else. Collective; to be called between the last back-propagation and the update.
    """
    norms: dict[str, Tensor] = {}
    for layer, block in enumerate(model.layers):
        function = getattr(block, "compression", None)
        parameters = [] if function is None else list(function.parameters())
        gradients = [engine.gradient(parameter) for parameter in parameters]
        known = [gradient for gradient in gradients if gradient is not None]
        if known:
            norms[f"compression_grad_norm/{layer}"] = nn.utils.get_total_norm(known)
    if not norms:
        return {}
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
