"""The engine: DeepSpeed around a model and its optimiser, and all that is known of its inside.

No other file knows DeepSpeed's private fields.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lm.model.layer import Block
from lm.model.memory import MemoryState
from lm.objectives.objective import Segment, Term, Unroll
from lm.runs.run_config import RunConfig
from lm.training.optim import Masters, build_optimizer, clip_gradients

PERSISTENT = 10_000
"""At stage 3, parameters with fewer elements stay whole on every rank."""
STEP = "step"
"""State of AdamW that is one number; its other entries have the parameter's shape."""


def start_deepspeed() -> None:
    """Have DeepSpeed take over the ranks that torch has joined."""
    # Imported here because it takes seconds and writes to the log.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed would compile this shared-memory helper with c++, or fail where there is none; only
    # its inference engine uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    # torch warns at each call of two collectives by their former names.
    for attribute, name in (
        ("all_gather_function", "all_gather_single"),
        ("reduce_scatter_function", "reduce_scatter_single"),
    ):
        if hasattr(torch.distributed, name):
            setattr(deepspeed.comm.comm.cdb, attribute, getattr(torch.distributed, name))


def bucket_elements(parameters: int) -> int:
    """Elements of the buffers in which gradients and weights travel from ZeRO stage 1 on.

    DeepSpeed's own are of 500 million, which for models of the field's size would be most of the
    memory that the stages save.
    """
    return min(50_000_000, max(1_000_000, parameters // 16))


def deepspeed_config(config: RunConfig, lanes_per_rank: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's JSON for a run.

    At stage 0 DeepSpeed only sums gradients: clipping, which knows the norm before the weights
    move, and bf16 are in lm/training/optim.py. From stage 1 on both are DeepSpeed's, which leaves
    the weights alone when the norm is not finite.

    The engine sets the accumulation boundary itself.

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


class Engine:
    """A model, its optimiser and DeepSpeed, on one rank.

    Weights, gradients and optimiser state go in and out as whole tensors by parameter name (full
    state), whatever the ZeRO stage. All methods are collective.
    """

    def __init__(self, module: Unroll, config: RunConfig, lanes: int) -> None:
        """Every rank starts from the first one's weights.

        lm.training.dist.join must have been called.

        Args:
            module: on its device; from now on the engine's.
            config: the run's.
            lanes: that this rank reads.
        """
        training = config.training
        self.training, self.clip, self.module = training, config.optim.clip, module
        half = training.precision == "bf16"
        self.masters = Masters(module.model) if half and not training.zero else None
        self.stored = self.masters.module if self.masters else module.model
        """What the optimiser moves, and what checkpoints hold."""
        self.parameters = dict(self.stored.named_parameters())
        self.learning = {n: p for n, p in self.parameters.items() if p.requires_grad}
        """Those that the optimiser moves; the others stay what they are."""
        self.optimizer = build_optimizer(self.stored, config.optim)
        # DeepSpeed rounds the weights to bf16 first and makes the masters of what is left.
        rounded = self.parameters if half and training.zero else {}
        exact = {name: parameter.detach().clone() for name, parameter in rounded.items()}
        self.deepspeed = self._initialized(config, lanes)
        self.frozen = {n: weight.cpu() for n, weight in exact.items() if n not in self.learning}
        """What DeepSpeed has rounded and keeps no master of."""
        for name, parameter in self.learning.items() if exact else ():
            _set_master(parameter, exact[name])

    def _initialized(self, config: RunConfig, lanes: int) -> Any:
        # Imported here because importing it takes seconds and looks for an accelerator.
        import deepspeed

        if self.training.zero == 3:
            # A layer uses its parameters across its parts, so they are gathered together.
            deepspeed.utils.set_z3_leaf_modules(self.module, [Block])
            if len(self.learning) < len(self.parameters):
                self.module.model.embedding.register_forward_hook(_differentiable)
        count = sum(parameter.numel() for parameter in self.module.parameters())
        engine, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=self.optimizer,
            config=deepspeed_config(config, lanes, count),
            dist_init_required=False,
        )
        if self.training.zero == 0 and torch.distributed.get_world_size() == 1:
            # It would copy all gradients into one piece and back, to sum what one rank has alone.
            engine.enable_backward_allreduce = False
        return engine

    def forward(
        self,
        segments: list[Segment],
        memory: MemoryState,
        last: bool,
        told: list[Tensor] | None = None,
    ) -> tuple[dict[str, Term], dict[str, Term], MemoryState]:
        """Read segments as Unroll does; `last`: the next back-propagation ends the update."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        terms, by_layer, moved = self.deepspeed(segments, memory, told)
        return terms, by_layer, moved

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients of an update; they are averaged over ranks."""
        self.deepspeed.backward(loss)

    def auxiliary_gradients(
        self, loss: Tensor, parameters: Sequence[nn.Parameter]
    ) -> Sequence[Tensor | None]:
        """This rank's gradients of a part of the loss, apart from those that `backward` adds to; of
        parameters that it does not reach, none. At stage 0, before `backward`.
        """
        # DeepSpeed refuses a back-propagation that is not its own, for the sake of later stages.
        self.deepspeed._running_engine_backward = True
        try:
            return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        finally:
            self.deepspeed._running_engine_backward = False

    def update(self, finite: bool) -> float | None:
        """Move the weights.

        Args:
            finite: whether the losses are; the gradients are looked at here.

        Returns:
            The gradients' norm; None if something is not finite and the weights have not moved.
        """
        if self.training.zero == 0:
            if self.masters:
                self.masters.take_gradients()
            norm = clip_gradients(self.stored, self.clip).item()
            if not (finite and math.isfinite(norm)):
                self.deepspeed.zero_grad()
                return None
            self.deepspeed.step()
            if self.masters:
                self.masters.give_weights()
            return norm
        if not finite and self.training.non_finite == "stop":
            return None
        self.deepspeed.step()
        applied = self.deepspeed.was_step_applied()
        return float(self.deepspeed.get_global_grad_norm()) if applied else None

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The gradient of an update, between its last back-propagation and the update."""
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter) if self.training.zero else parameter.grad

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter by name in float32: the master copy where there is one."""
        for name in self.parameters:
            yield name, self.weight(name)

    def weight(self, name: str) -> Tensor:
        """A parameter in float32: the master copy where there is one."""
        parameter = self.parameters[name]
        if name in self.frozen:
            return self.frozen[name]
        if name in self.learning and self.training.zero:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
            return (parameter if whole is None else whole).detach()
        if self.training.zero < 3:
            return parameter.detach()
        with self.gathered(parameter):
            return parameter.detach().clone()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each parameter's shape by name; at stage 3 a parameter is whole on no rank."""
        return {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in self.parameters.items()}

    def gathered(self, *some: nn.Parameter) -> AbstractContextManager[None]:
        """Context in which every rank has all weights, or some, which stage 3 divides otherwise."""
        if self.training.zero < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        wanted = [*some] or [*self.module.parameters()]
        context: AbstractContextManager[None] = GatheredParameters(wanted)
        return context

    def state(self, *names: str) -> Iterator[tuple[str, Tensor]]:
        """The optimiser's state by `parameter/entry`, of all parameters that learn or those named;
        nothing before the first step.
        """
        parameters = {name: self.learning[name] for name in names or self.learning}
        if not self.training.zero:
            for name, parameter in parameters.items():
                for entry, value in self.optimizer.state.get(parameter, {}).items():
                    yield f"{name}/{entry}", torch.as_tensor(value)
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        state = self.optimizer.state.get(self._partitions()[0], {})
        self._link()
        for name, parameter in parameters.items():
            for entry, value in state.items():
                if entry == STEP:
                    yield f"{name}/{entry}", value
                else:
                    yield f"{name}/{entry}", safe_get_full_optimizer_state(parameter, entry)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Give the optimiser what `state` gave; an empty one leaves it new."""
        entries = {key.rpartition("/")[2] for key in state}
        if state and self.training.zero:
            self._new_partition_state(state, entries)
            entries -= {STEP}
        for name, parameter in self.learning.items() if state else ():
            found = {entry: state[key] for entry in entries if (key := f"{name}/{entry}") in state}
            if self.training.zero:
                for entry, value in found.items():
                    _set_master(parameter, value, entry)
            else:
                self.optimizer.state[parameter] = {
                    entry: value.clone() if value.ndim == 0 else value.to(parameter.device)
                    for entry, value in found.items()
                }

    def _new_partition_state(self, state: Mapping[str, Tensor], entries: set[str]) -> None:
        steps = [value for key, value in state.items() if key.endswith("/" + STEP)]
        # At stage 0 a parameter without gradient has not counted; here all count together.
        step = torch.stack(steps).max()
        for partition in self._partitions():
            self.optimizer.state[partition] = {
                STEP: step.clone(),
                **{entry: torch.zeros_like(partition) for entry in sorted(entries - {STEP})},
            }
        self._link()

    def _partitions(self) -> list[Tensor]:
        """This rank's flat float32 parts of the weights, one a parameter group."""
        optimizer = self.deepspeed.optimizer
        if self.training.zero == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)

    def _link(self) -> None:
        """Tell each parameter its place in the flat optimiser state, at stages 1 and 2.

        DeepSpeed does it once, when the first of the parameter groups has made its first step and
        the others have no state yet.
        """
        if self.training.zero < 3:
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def read(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """See lm.sparse.topkast.Store."""
        moments = {key.removeprefix(f"{name}/"): value for key, value in self.state(name)}
        moments.pop(STEP, None)
        return self.weight(name), moments

    def write(self, name: str, values: Tensor, moments: Mapping[str, Tensor]) -> None:
        """See lm.sparse.topkast.Store."""
        parameter = self.parameters[name]
        _set_weight(parameter, values, self.training.zero > 0)
        for entry, moment in moments.items():
            if self.training.zero:
                _set_master(parameter, moment, entry)
            else:
                self.optimizer.state[parameter][entry].copy_(moment)

    def give_weights(self) -> None:
        """Have the model compute with what `write`, or another, has changed in `stored`."""
        if self.masters:
            self.masters.give_weights()


def _differentiable(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """Have a gradient reach the first layer's inputs where the token embedding does not learn.

    DeepSpeed gives a layer's weights back when the gradients of its inputs are there, and where
    none is to come, before it has used them.
    """
    if torch.is_grad_enabled():
        output.requires_grad_()


def _set_weight(parameter: nn.Parameter, value: Tensor, master: bool) -> None:
    """Write a whole float32 weight: the working copy, and the master where there is one."""
    if master:
        _set_master(parameter, value)
    if hasattr(parameter, "ds_tensor"):
        part: Any = parameter.ds_tensor
        part.data.copy_(_part(value, part.numel()))
        if parameter.numel() != value.numel():
            return
        # A parameter so small that it is whole on every rank.
    parameter.data.copy_(value.view_as(parameter))


def _set_master(parameter: nn.Parameter, value: Tensor, entry: str | None = None) -> None:
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
