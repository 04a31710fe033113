"""How layers are computed in training: precision, activations computed again, compiled graphs."""

from dataclasses import replace
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from data.common.say import warn
from lm.model.compression import needs_float32, require_float32
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import RunConfig
from lm.training.optim import multiplies_bfloat16


def settled(config: RunConfig) -> RunConfig:
    """The run with a precision that is settled for this machine; see TrainingConfig.precision.

    Raises:
        ValueError: bf16 is asked for, in which its compression cannot be computed.
    """
    precision = config.training.precision
    exact = needs_float32(config.model)
    if precision == "bf16" and exact:
        require_float32(torch.bfloat16)
    if precision != "auto":
        return config
    precision = "bf16" if has_fast_bf16() and not exact else "float32"
    return replace(config, training=replace(config.training, precision=precision))


def has_fast_bf16() -> bool:
    """Whether this machine has instructions for bf16, several times as fast as its float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies_bfloat16()


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
