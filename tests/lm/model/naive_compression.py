"""Compression functions written as loops over the slots that leave memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.model.compression import LONGEST_TIME
from lm.model.model_config import ModelConfig

Slots = list[Tensor]


@dataclass
class Leaving:
    """What leaves one layer's memory, and what a compression function may look at beside it."""

    config: ModelConfig
    evicted: Slots
    following: Slots
    used: list[float]
    newest: Tensor | None
    parameter: Callable[[str], Tensor]

    def windows(self) -> list[Slots]:
        """Windows of live slots; the first may have fewer."""
        rate, kernel = self.config.rate, self.config.rate + self.config.extra_kernel
        missing = -len(self.evicted) % rate
        padded = [None] * missing + self.evicted + self.following
        starts = range(0, missing + len(self.evicted), rate)
        return [[x for x in padded[s : s + kernel] if x is not None] for s in starts]


def convolution(leaving: Leaving, slots: Slots) -> Slots:
    rate, kernel = leaving.config.rate, leaving.config.rate + leaving.config.extra_kernel
    windows = range(-(-len(leaving.evicted) // rate))
    mapped = [mapping(leaving, slots[w * rate : w * rate + kernel]) for w in windows]
    if leaving.config.compression_initial == "random":
        return mapped
    return [a + b for a, b in zip(mean(leaving), mapped, strict=True)]


def mapping(leaving: Leaving, window: Slots) -> Tensor:
    rank = leaving.config.compression_rank
    if rank is None:
        return leaving.parameter("projection.weight") @ torch.cat(window)
    gains = leaving.parameter("projection.channels").split(leaving.config.width)
    own = sum(gain * slot for gain, slot in zip(gains, window, strict=True))
    if not rank:
        return own
    inner, outer = (leaving.parameter(f"projection.{name}.weight") for name in ("inner", "outer"))
    return own + outer @ (inner @ torch.cat(window))


def padded(leaving: Leaving) -> Slots:
    zero = torch.zeros_like(leaving.evicted[0])
    missing = -len(leaving.evicted) % leaving.config.rate
    return [zero] * missing + leaving.evicted + leaving.following


def conv(leaving: Leaving) -> Slots:
    return convolution(leaving, padded(leaving))


def dilated(leaving: Leaving) -> Slots:
    slots = padded(leaving)
    for index, dilation in enumerate((1, 2, 4)):
        weight = leaving.parameter(f"stack.{index}.weight")
        slots = [
            torch.clamp(weight @ torch.cat([slots[i], slots[i + dilation]]), min=0)
            for i in range(len(slots) - dilation)
        ]
    return convolution(leaving, slots)


def mean(leaving: Leaving) -> Slots:
    return [sum(window[1:], window[0]) / len(window) for window in leaving.windows()]


def maximum(leaving: Leaving) -> Slots:
    return [torch.stack(window).max(dim=0).values for window in leaving.windows()]


def most_used(leaving: Leaving) -> Slots:
    count = -(-len(leaving.evicted) // leaving.config.rate)
    by_use = sorted(range(len(leaving.evicted)), key=lambda i: -leaving.used[i])
    return [leaving.evicted[i] for i in sorted(by_use[:count])]


def low_pass(leaving: Leaving) -> Slots:
    rate, width = leaving.config.rate, leaving.config.width
    level = leaving.evicted[0] if leaving.newest is None else leaving.newest
    level, samples = list(level), []
    missing = -len(leaving.evicted) % rate
    for index, slot in enumerate(leaving.evicted):
        for channel in range(width):
            time = rate * (LONGEST_TIME / rate) ** (channel / (width - 1))
            decay = math.exp(-1 / time)
            level[channel] = decay * level[channel] + (1 - decay) * slot[channel]
        if (index + missing + 1) % rate == 0:
            samples.append(torch.stack(level))
    return samples


NAIVE: dict[str, Callable[[Leaving], Slots]] = {
    "conv": conv,
    "dilated": dilated,
    "mean": mean,
    "max": maximum,
    "most_used": most_used,
    "low_pass": low_pass,
}
