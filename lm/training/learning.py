"""What of a model learns: all of it, its compression functions, or these and adapters (LoRA).

What does not learn has no gradient and no state of the optimiser, and moves by no bit.
"""

import importlib.util
from typing import Any

from torch import Tensor, nn

from lm.model.components import Linear, LinearMap
from lm.model.transformer import CompressiveTransformer
from lm.runs.adapters import ALL, TARGETS, LoraConfig, rows_left
from lm.runs.run_config import RunConfig, TrainingConfig


def require_peft(training: TrainingConfig) -> None:
    """ValueError where adapters are asked for and peft is not there."""
    if training.learn == "lora" and importlib.util.find_spec("peft") is None:
        raise ValueError(
            "training.learn lora needs peft, which is not installed: "
            "pip install 'peft>=0.21,<0.22', or pip install '.[lora]' in a checkout"
        )


def choose_learning(model: CompressiveTransformer, config: RunConfig) -> None:
    """Add adapters if they are asked for, and freeze what does not learn.

    Args:
        model: with its weights, but without those of adapters.
        config: the run's.

    Raises:
        ValueError: peft is needed and not there.
    """
    learn = config.training.learn
    if learn == "all":
        return
    require_peft(config.training)
    if learn == "lora":
        adapt(model, config.training.lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for block in model.layers:
        for part in (getattr(block, "compression", None), getattr(block, "decoder", None)):
            if part is not None:
                part.requires_grad_()


def adapt(model: CompressiveTransformer, lora: LoraConfig) -> None:
    """Give maps of a model adapters that add nothing yet, with peft.

    Every place that reads the matrix of a map sees the adapted one, also where it is read as a
    tensor: projections of memory, encoded distances.
    """
    import peft

    # peft divides it by the rank, whatever number it is.
    alpha: Any = lora.alpha
    adapters = peft.LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=maps_of(model, lora))
    adapters._register_custom_module({Linear: _adapted_kind()})
    peft.inject_adapter_in_model(adapters, model)
    for block in model.layers:
        attention = block.attention
        queries = attention.query_width
        stored = (attention.query_key_value.out_features - queries) // 2
        left = rows_left(lora.targets, (queries, stored, stored))
        made: Any = attention.query_key_value
        if left and hasattr(made, "lora_B"):
            # They begin at zero and stay there.
            made.lora_B["default"].weight.register_hook(_without(left))


def maps_of(model: CompressiveTransformer, lora: LoraConfig) -> list[str]:
    """Names of the maps that get an adapter."""
    wanted = {name for target in lora.targets for name in TARGETS.get(target, ())}
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if isinstance(module, Linear) and not {"compression", "decoder"} & {*parts}:
            sublayer = parts[2] in ("attention", "feedforward")
            if lora.targets == (ALL,) or (sublayer and parts[-1] in wanted):
                found.append(name)
    return found


def adapter_sizes(model: CompressiveTransformer, lora: LoraConfig) -> dict[str, int]:
    """How many values the adapter of each map would have."""
    maps = {name: model.get_submodule(name) for name in maps_of(model, lora)}
    return {
        f"{name}.lora_": lora.rank * (linear.in_features + linear.out_features)
        for name, linear in maps.items()
        if isinstance(linear, Linear)
    }


def _adapted_kind() -> type[nn.Module]:
    """The class of a linear map with an adapter; made when peft is at hand."""
    from peft.tuners.lora.layer import Linear as PeftLinear

    class Adapted(PeftLinear, LinearMap):  # type: ignore[misc]
        """peft's layer, which also is a map of this model."""

        def matrix(self) -> Tensor:
            """W + s B A."""
            base: Any = self.get_base_layer()
            weight: Tensor = base.matrix()
            return weight + self.get_delta_weight("default")

    return Adapted


def _without(rows: list[tuple[int, int]]) -> Any:
    """A hook that takes rows out of a gradient."""

    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        for first, stop in rows:
            gradient[first:stop] = 0
        return gradient

    return hook
