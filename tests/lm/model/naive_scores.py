"""Attention scores of one query and one key."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    query_d: Tensor
    """Scaled."""
    key_d: Tensor
    place: int
    """Of the query in its segment."""
    age: int
    """Number of newer slots of the key's own kind that the query sees: compressed ones, or those
    of memory and segment.
    """
    kind: str
    """sink, compressed, or own: of memory and segment."""


def sinusoid(distance: int, width: int) -> Tensor:
    angles = [distance / 10000 ** (2 * i / width) for i in range(width // 2)]
    values = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values, dtype=torch.float64)


def relative_score(oracle: Any, layer: int, h: int, pair: Pair) -> Tensor:
    """Transformer-XL's four terms; compressed slots directly before the segment; sinks nowhere."""
    if pair.kind == "sink":
        return (pair.query_d + oracle.get(layer, "attention.content_bias")[h]) @ pair.key_d
    compressed = pair.kind == "compressed"
    prefix = "attention.compressed_position" if compressed else "attention.position"
    distance = pair.place + 1 + pair.age if compressed else pair.age
    projection = oracle.head(oracle.get(layer, f"{prefix}_key.weight"), h)
    encoded = projection @ sinusoid(distance, projection.shape[1])
    content = oracle.get(layer, "attention.content_bias")[h]
    bias = oracle.get(layer, f"{prefix}_bias")[h]
    return (pair.query_d + content) @ pair.key_d + (pair.query_d + bias) @ encoded


def rotary_score(oracle: Any, layer: int, h: int, pair: Pair) -> Tensor:
    """Complex numbers turned by the difference of the places."""
    config = oracle.config
    distance: float = pair.age
    span = config.segment / -(-config.segment // config.rate)
    if config.positions == "rotary_slots":
        span = 1
    if pair.kind == "compressed":
        # The newest compressed slot ends directly before the oldest slot of memory.
        distance = pair.place + config.memory + pair.age * span + (span + 1) / 2
    if pair.kind == "sink":
        # The last sink stands directly before what compressed memory can reach.
        distance = pair.place + config.memory + config.compressed * span + pair.age + 1
    turned = int(config.head_width * config.rotary_share)
    half = turned // 2
    total = torch.zeros((), dtype=torch.float64)
    for index in range(turned, config.head_width):
        total = total + pair.query_d[index] * pair.key_d[index]
    for index in range(half):
        angle = distance / config.rotary_base ** (index / half)
        if config.rotary_scaling == "linear":
            angle /= config.rotary_factor
        if config.rotary_scaling == "llama3":
            wavelength = 2 * math.pi * config.rotary_base ** (index / half)
            low, high = config.rotary_bounds
            if wavelength > config.rotary_trained / low:
                angle /= config.rotary_factor
            elif wavelength >= config.rotary_trained / high:
                smooth = (config.rotary_trained / wavelength - low) / (high - low)
                angle *= (1 - smooth) / config.rotary_factor + smooth
        q_re, q_im = pair.query_d[index], pair.query_d[index + half]
        k_re, k_im = pair.key_d[index], pair.key_d[index + half]
        # Re(q conj(k) e^(i angle)): the query stands `distance` later than the key.
        total = total + (q_re * k_re + q_im * k_im) * math.cos(angle)
        total = total - (q_im * k_re - q_re * k_im) * math.sin(angle)
    return total
