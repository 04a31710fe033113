"""The DeepSpeed engine: its configuration is derived here and nowhere else."""

from typing import TYPE_CHECKING, Any

import torch

from lm.model import CompressiveTransformer

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def deepspeed_config(lanes_per_rank: int) -> dict[str, Any]:
    """DeepSpeed's JSON for a run.

    Stage 0 in float32: weights, gradients and optimiser are ordinary tensors on every rank, and
    DeepSpeed sums the gradients. Clipping is left to the trainer, which needs the norm before the
    weights move. An update reads one segment of every lane.
    """
    return {
        "train_micro_batch_size_per_gpu": lanes_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 40,
        "wall_clock_breakdown": False,
    }


def build_engine(
    model: CompressiveTransformer, optimizer: torch.optim.Optimizer, lanes_per_rank: int
) -> "DeepSpeedEngine":
    """Hand model and optimiser to DeepSpeed; every rank starts from the first one's weights.

    lm.training.dist.join must have been called.
    """
    # Imported here because importing it takes seconds and looks for an accelerator.
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(lanes_per_rank),
        dist_init_required=False,
    )
    return engine
