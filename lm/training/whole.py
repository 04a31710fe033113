"""Weights and optimiser state as whole tensors by parameter name, whatever the ZeRO stage.

What `whole_tensors` reads on some ranks at one stage, `set_optimizer` puts back on any number of
ranks at any stage. All functions are collective: every rank calls them with the same parameters.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STEP = "step"
"""State of AdamW that is one number; its other entries have the parameter's shape."""


def weights(engine: "DeepSpeedEngine", model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter in float32: the master copy where there is one."""
    for name, parameter in model.named_parameters():
        yield name, weight(engine, parameter)


def weight(engine: "DeepSpeedEngine", parameter: nn.Parameter) -> Tensor:
    """A parameter in float32: the master copy where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter) if engine.zero_optimization() else None
    return (parameter if whole is None else whole).detach()


def optimizer_state(
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


def set_optimizer(
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


def set_weight(engine: "DeepSpeedEngine", parameter: nn.Parameter, value: Tensor) -> None:
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
