"""Training step: trained tokens per second and share of the matrix rate, beside others'.

The step is forward, backward, clipping and AdamW in plain torch, without the engine around it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.common.outputs import check_output
from data.common.schema import Size
from lm.model.flops import training_flops
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import segment_loss
from tools import others
from tools.timing import core_clock, machine, pick_device, report, take_turns

BYTES = 256
SQUARE = 1024
"""Size of the matrices whose product stands for the machine's matrix rate."""
SMALL = ModelConfig(
    layers=4,
    width=256,
    heads=4,
    feedforward=1024,
    segment=128,
    memory=128,
    compressed=32,
    rate=4,
)


def main(
    model: ModelConfig = SMALL,
    lanes: Size = 8,
    vocabulary: Size = BYTES,
    rounds: Size = 20,
    device: str = "auto",
    beside: list[others.Name] | None = None,
    json: Path | None = None,
) -> None:
    """Time the training step of a model on random tokens, with full memory.

    Args:
        model: shape of the model.
        lanes: segments read side by side.
        vocabulary: number of different tokens.
        rounds: steps that are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        beside: other implementations, which are timed at the same sizes and take turns with it;
            they are installed into build/others first.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    steps = {"this model": own_step(model, vocabulary, lanes, place)}
    if beside:
        others.use()
        for name in beside:
            steps[name] = other_step(name, model, vocabulary, lanes, place)
    full = -(-model.memory // model.segment) + model.compressed // model.windows + 2
    for step in steps.values():
        for _ in range(full):
            step()
    # The matrix rate is measured between the steps, so that both see the same machine.
    actions = {**steps, "matmul": matmul(place)}
    taken = take_turns(actions, place, rounds, clock=core_clock(place))
    tokens = lanes * model.segment
    work = training_flops(model, vocabulary, lanes)
    rate = 2 * SQUARE**3 / taken["matmul"]
    speed = {name: tokens / taken[name] for name in steps}
    own = speed["this model"]
    result = {
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "ratio": {name: round(own / value, 2) for name, value in speed.items()},
        "step_milliseconds": round(taken["this model"] * 1e3, 2),
        "mflop_per_token": round(work.total / 1e6, 1),
        "mflop_by_part": {name: round(flops / 1e6, 2) for name, flops in work.flops.items()},
        "matmul_gflops": round(rate / 1e9, 1),
        "mfu": round(own * work.total / rate, 3),
    }
    report(result | machine(place), json)


def matmul(device: torch.device) -> Callable[[], Tensor]:
    """A function that multiplies two square matrices in float32."""
    left, right = (torch.randn(SQUARE, SQUARE, device=device) for _ in range(2))
    product = left @ right
    return lambda: torch.mm(left, right, out=product)


def own_step(
    config: ModelConfig, vocabulary: int, lanes: int, device: torch.device
) -> Callable[[], None]:
    """A function that trains a new model by one segment of random tokens; memory moves on."""
    torch.manual_seed(0)
    model = CompressiveTransformer(config, vocabulary).to(device)

    def losses(inputs: Tensor, targets: Tensor, memory: Any) -> tuple[Tensor, Any]:
        output = model(inputs, memory or model.empty_memory(lanes), targets)
        loss = segment_loss(output)
        return loss, output.memory.detach()

    return _step(model.parameters(), losses, _tokens(config, vocabulary, lanes, device))


def other_step(
    name: others.Name, config: ModelConfig, vocabulary: int, lanes: int, device: torch.device
) -> Callable[[], None]:
    """The same of another implementation."""
    model, read = others.build(name, config, vocabulary, device)

    def losses(inputs: Tensor, targets: Tensor, memory: Any) -> tuple[Tensor, Any]:
        logits, after, auxiliary = read(inputs, memory)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return (loss if auxiliary is None else loss + auxiliary), after

    return _step(model.parameters(), losses, _tokens(config, vocabulary, lanes, device))


def _tokens(
    config: ModelConfig, vocabulary: int, lanes: int, device: torch.device
) -> Callable[[], Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (lanes, config.segment + 1)
    return lambda: torch.randint(vocabulary, shape, device=device, generator=generator)


def _step(
    parameters: Iterable[nn.Parameter],
    losses: Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]],
    tokens: Callable[[], Tensor],
) -> Callable[[], None]:
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    memory: Any = None

    def step() -> None:
        nonlocal memory
        segment = tokens()
        loss, memory = losses(segment[:, :-1], segment[:, 1:], memory)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step
