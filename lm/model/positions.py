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


def distances(slots: int, segment: int, device: torch.device) -> Tensor:
    """Distances from far to near between the tokens of a segment and slots that lie directly before
    it or in it: slots + segment - 1 down to 0, [slots + segment].

    Compressed slots count one each and lie directly before the segment too, as in the authors'
    code. Their nearest distance is 1; with a row for 0, which nothing reads, usual tables have an
    even size, and products of odd size are slow.
    """
    return torch.arange(slots + segment - 1, -1, -1, device=device)
