"""The DeepSpeed engine: its configuration is derived here and nowhere else."""

from typing import TYPE_CHECKING, Any

import torch

from lm.model.blocks import Block
from lm.training.config import RunConfig
from lm.training.unroll import Unroll

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

PERSISTENT = 10_000
"""At stage 3, parameters with fewer elements stay whole on every rank."""


def bucket_elements(parameters: int) -> int:
    """Elements of the buffers in which gradients and weights travel from ZeRO stage 1 on.

    DeepSpeed's own are of 500 million, which for models of the field's size would be most of the
    memory that the stages save.
    """
    return min(50_000_000, max(1_000_000, parameters // 16))


def deepspeed_config(config: RunConfig, lanes_per_rank: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's JSON for a run.

    At stage 0 DeepSpeed only sums gradients: clipping is left to the trainer, which knows the norm
    before the weights move, and bf16 to lm/training/masters.py. From stage 1 on both are
    DeepSpeed's, which leaves the weights alone when the norm is not finite.

    The trainer sets the accumulation boundary itself.

    Args:
        config: the run.
        lanes_per_rank: lanes that one rank reads.
        parameters: of the whole model.
    """
    training = config.training
    zero: dict[str, Any] = {"stage": training.zero}
    if training.zero:
        bucket = bucket_elements(parameters)
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if training.zero == 3:
        zero |= {
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": 2 * bucket,
            "stage3_max_reuse_distance": bucket,
        }
    if training.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings = {
        "train_micro_batch_size_per_gpu": lanes_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip if training.zero else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW runs on the host too; DeepSpeed's would be compiled on first use.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
        "wall_clock_breakdown": False,
    }
    if training.precision == "bf16" and training.zero:
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return settings


def build_engine(
    module: Unroll, optimizer: torch.optim.Optimizer, config: RunConfig, lanes_per_rank: int
) -> "DeepSpeedEngine":
    """Hand model and optimiser to DeepSpeed; every rank starts from the first one's weights.

    lm.training.dist.join must have been called.
    """
    # Imported here because importing it takes seconds and looks for an accelerator.
    import deepspeed

    if config.training.zero == 3:
        # A layer uses its parameters across its parts, so they are gathered together.
        deepspeed.utils.set_z3_leaf_modules(module, [Block])
    parameters = sum(parameter.numel() for parameter in module.parameters())
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        config=deepspeed_config(config, lanes_per_rank, parameters),
        dist_init_required=False,
    )
    if config.training.zero == 0 and torch.distributed.get_world_size() == 1:
        # It would copy all gradients into one piece and back, to sum what one rank has alone.
        engine.enable_backward_allreduce = False
    return engine


def clip_gradients(module: torch.nn.Module, limit: float) -> torch.Tensor:
    """Bound the global norm of the gradients at stage 0; returns the norm before.

    A norm that is not finite is returned with the gradients as they are.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.isfinite():
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
