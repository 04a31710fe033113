"""The DeepSpeed engine: its configuration, and what is read from and written to its inside.

Nothing else knows DeepSpeed's private fields. Weights and optimiser state come as whole tensors by
parameter name (full state), whatever the ZeRO stage. All of it is collective.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lm.model.layer import Block
from lm.runs.run_config import RunConfig
from lm.training.bptt import Unroll

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
    before the weights move, and bf16 to lm/training/optim.py. From stage 1 on both are
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


STEP = "step"
"""State of AdamW that is one number; its other entries have the parameter's shape."""


def full_weights(engine: "DeepSpeedEngine", model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter in float32: the master copy where there is one."""
    for name, parameter in model.named_parameters():
        yield name, full_weight(engine, parameter)


def full_weight(engine: "DeepSpeedEngine", parameter: nn.Parameter) -> Tensor:
    """A parameter in float32: the master copy where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter) if engine.zero_optimization() else None
    return (parameter if whole is None else whole).detach()


def full_optimizer_state(
    engine: "DeepSpeedEngine",
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's state by `parameter/entry`; nothing before the first step."""
    if not engine.zero_optimization():
        for name, parameter in parameters.items():
            for entry, value in optimizer.state.get(parameter, {}).items():
                yield f"{name}/{entry}", torch.as_tensor(value)
        return
    from deepspeed.utils import safe_get_full_optimizer_state

    first = next(iter(_partitions(engine)))
    state = optimizer.state.get(first, {})
    _link(engine)
    for name, parameter in parameters.items():
        for entry, value in state.items():
            if entry == STEP:
                yield f"{name}/{entry}", value
            else:
                yield f"{name}/{entry}", safe_get_full_optimizer_state(parameter, entry)


def set_full_optimizer_state(
    engine: "DeepSpeedEngine",
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
) -> None:
    """Give the optimiser the state that `optimizer_state` read; an empty one leaves it new."""
    if not state:
        return
    if engine.zero_optimization():
        _set_partitions(engine, model, optimizer, state)
        return
    for name, parameter in model.named_parameters():
        entries = {key: state[key] for key in state if key.rpartition("/")[0] == name}
        optimizer.state[parameter] = {
            key.rpartition("/")[2]: value.clone() if value.ndim == 0 else value.to(parameter.device)
            for key, value in entries.items()
        }


def _partitions(engine: "DeepSpeedEngine") -> list[Tensor]:
    """This rank's flat float32 parts of the weights, one a parameter group."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _link(engine: "DeepSpeedEngine") -> None:
    """Tell each parameter its place in the flat optimiser state, at stages 1 and 2.

    DeepSpeed does it once, when the first of the parameter groups has made its first step and the
    others have no state yet.
    """
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_partitions(
    engine: "DeepSpeedEngine",
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
) -> None:
    steps = [state[key] for key in state if key.endswith("/" + STEP)]
    # At stage 0 a parameter without gradient has not counted; here all count together.
    step = torch.stack(steps).max()
    entries = {key.rpartition("/")[2] for key in state} - {STEP}
    for partition in _partitions(engine):
        optimizer.state[partition] = {
            STEP: step.clone(),
            **{entry: torch.zeros_like(partition) for entry in sorted(entries)},
        }
    _link(engine)
    for name, parameter in model.named_parameters():
        for entry in entries:
            if f"{name}/{entry}" in state:
                set_master(parameter, state[f"{name}/{entry}"], entry)


def set_full_weight(engine: "DeepSpeedEngine", parameter: nn.Parameter, value: Tensor) -> None:
    """Write a whole float32 weight: master and working copy."""
    if engine.zero_optimization():
        set_master(parameter, value)
    if hasattr(parameter, "ds_tensor"):
        part: Any = parameter.ds_tensor
        part.data.copy_(_part(value, part.numel()))
        if parameter.numel() != value.numel():
            return
        # A parameter so small that it is whole on every rank.
    parameter.data.copy_(value.view_as(parameter))


def set_master(parameter: nn.Parameter, value: Tensor, entry: str | None = None) -> None:
    """Write this rank's part of a whole float32 weight, or of an entry of its optimiser state."""
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(parameter, "ds_id"):
        if entry is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, entry)
        return
    # DeepSpeed's own function for whole tensors fails at stage 3 when the ranks' parts are padded.
    part: Any = safe_get_local_fp32_param(parameter)
    mine = _part(value, part.numel())
    if entry is None:
        safe_set_local_fp32_param(parameter, mine)
    else:
        safe_set_local_optimizer_state(parameter, mine, entry)


def _part(value: Tensor, size: int) -> Tensor:
    """This rank's part of a whole tensor at stage 3, padded with zeros."""
    rank = torch.distributed.get_rank()
    mine = torch.zeros(size, dtype=value.dtype)
    piece = value.flatten()[rank * size : (rank + 1) * size]
    mine[: piece.numel()] = piece
    return mine
