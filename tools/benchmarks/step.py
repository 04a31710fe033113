"""Training step: trained tokens per second, and what share of the machine's matrix rate they use.

The step is forward, backward, clipping and AdamW in plain torch, without the engine around it.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from lm.model import CompressiveTransformer, ModelConfig
from lm.model.flops import training_flops
from lm.training.throughput import matmul_rate
from tools.timing import machine, pick_device, report, take_turns

BYTES = 256
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
    lanes: int = 8,
    vocabulary: int = BYTES,
    rounds: int = 20,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Time the training step of a model on random tokens, with full memory.

    Args:
        model: shape of the model.
        lanes: segments read side by side.
        vocabulary: number of different tokens.
        rounds: steps that are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the result.
    """
    place = pick_device(device)
    flops = training_flops(model, vocabulary, lanes).total
    # The matrix rate is measured between the steps, so that both see the same machine.
    rates: list[float] = []
    taken = take_turns(
        {
            "step": training_step(model, vocabulary, lanes, place),
            "matmul": lambda: rates.append(matmul_rate(place)),
        },
        place,
        rounds,
    )
    speed = lanes * model.segment / taken["step"]
    rate = sorted(rates)[len(rates) // 2]
    result = {
        "tokens_per_second": round(speed),
        "step_milliseconds": round(taken["step"] * 1e3, 2),
        "mflop_per_token": round(flops / 1e6, 1),
        "matmul_gflops": round(rate / 1e9, 1),
        "mfu": round(speed * flops / rate, 3),
    }
    report(result | machine(place), json)


def training_step(
    config: ModelConfig, vocabulary: int, lanes: int, device: torch.device
) -> Callable[[], None]:
    """A function that trains a new model by one segment of random tokens; memory moves on."""
    generator = torch.Generator(device).manual_seed(0)
    torch.manual_seed(0)
    model = CompressiveTransformer(config, vocabulary).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    memory = model.empty_memory(lanes)
    shape = (lanes, config.segment + 1)

    def step() -> None:
        nonlocal memory
        tokens = torch.randint(vocabulary, shape, device=device, generator=generator)
        output = model(tokens[:, :-1], memory, tokens[:, 1:])
        memory = output.memory.detach()
        loss = output.predictions.mean()
        for total, elements in output.auxiliary.values():
            loss = loss + total / elements.clamp(min=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step
