"""Sinusoidal encodings of distances (Transformer-XL, as in the authors' code)."""

import torch
from torch import Tensor


def sinusoids(distances_W: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Encode distances in tokens or slots: all sines, then all cosines, shape [W, width].

    Angles are formed in float64, so that long distances keep their phase in every dtype.
    """
    device = distances_W.device
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
    angles = distances_W.to(torch.float64)[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def memory_distances(memory: int, segment: int, device: torch.device) -> Tensor:
    """Distances from far to near between the tokens of a segment and those of the ordinary memory
    and the segment itself: memory + segment - 1 down to 0.
    """
    return torch.arange(memory + segment - 1, -1, -1, device=device)


def compressed_distances(compressed: int, segment: int, device: torch.device) -> Tensor:
    """Distances from far to near to compressed slots, which count one each and are laid out
    directly before the segment (authors' code): compressed + segment - 1 down to 1.
    """
    return torch.arange(compressed + segment - 1, 0, -1, device=device)
