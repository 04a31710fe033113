"""Compression functions f_c, by which a block of old memory becomes a shorter one (paper, section
3.2), and the losses that train them (section 3.2.1).

A compression function is a `Compression`, whose forward maps an Evicted block of n slots to n / c
new ones, [B, n / c, D]. To add one, write it and enter it in COMPRESSIONS.

Shapes: B lanes, n evicted slots, o slots of overlap, c rate, w = n / c windows, D width, H heads,
T queries, d dimensions of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.components import Linear, exact_device
from lm.model.model_config import DILATIONS, CompressionName, ModelConfig

LONGEST_TIME = 1e5
"""Longest time constant of the low-pass bank, in slots (Stepleton et al., arXiv 1805.04955)."""

WHOLE = 4 * 1024**2
"""Weights of a convolution of a trained model, a layer, above which it is made of low rank."""


class Evicted(NamedTuple):
    """What a compression function may look at when a block leaves memory.

    The last o slots stay in memory: windows that are longer than their stride reach into them. So
    windows overlap towards newer slots and no evicted slot is left out, where the authors' windows
    stop at the end of the block and drop its last slots.
    """

    slots_BnD: Tensor
    """[B, n + o, D], oldest first; empty slots are zero."""
    live_Bn: Tensor
    """[B, n + o] bool; empty slots come first."""
    used_Bn: Tensor | None
    """[B, n] average attention that each slot received; only for functions in USES_ATTENTION."""
    newest_BD: Tensor
    """The newest slot of compressed memory."""
    begun_B: Tensor
    """bool; whether that slot is live."""


class Compression(nn.Module):
    """What compresses, of one layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rate, self.kernel = config.rate, config.rate + config.extra_kernel

    def begin(self) -> None:
        """Set what initialising its maps does not."""


def window_means(block: Evicted, kernel: int, rate: int) -> Tensor:
    """Mean of each window's live slots, [B, w, D]; zero where none is live."""
    sums = block.slots_BnD.unfold(1, kernel, rate).sum(-1)
    counts = block.live_Bn.unfold(1, kernel, rate).sum(-1)
    return sums / counts.clamp(min=1)[:, :, None]


class ThinConvolution(nn.Module):
    """A convolution of few weights: each channel by itself, and a map of low rank r across all.

    y = sum_t g_t * x_t + B A [x_1 ; ...]: g [kernel D], A [r, kernel D], B [D, r]; with r = 0 the
    first alone. (r + 1) kernel D + r D weights where the matrix has kernel D^2.
    """

    def __init__(self, kernel: int, width: int, rank: int) -> None:
        super().__init__()
        self.channels = nn.Parameter(torch.zeros(kernel * width))
        self.kernel, self.rank = kernel, rank
        if rank:
            self.inner = Linear(kernel * width, rank, bias=False)
            self.outer = Linear(rank, width, bias=False)

    def forward(self, windows: Tensor) -> Tensor:
        """[..., kernel D] -> [..., D]."""
        own = (windows * self.channels).unflatten(-1, (self.kernel, -1)).sum(-2)
        return own + self.outer(self.inner(windows)) if self.rank else own


def adopted_rank(width: int, rate: int) -> int | None:
    """Rank of a convolution for a trained model of this width, as `compression_rank` has it.

    All weights up to WHOLE of them a layer (SmolLM2-135M at rate 4: 1.3 million, 40 in its 30
    layers). Above, the rank with a sixteenth of them: of Llama 3 8B at rate 4 a rank of 204, 134
    million in its 32 layers where all were 2.1 billion.
    """
    if rate * width**2 <= WHOLE:
        return None
    return max(1, rate * width // (16 * (rate + 1)))


class ConvCompression(Compression):
    """One-dimensional convolution with stride c, kernel c + extra_kernel and no bias.

    Written as one matrix product over windows. With `compression_initial` mean it is added to the
    mean of the window's live slots and begins at zero, so that a window that is not full gives no
    smaller slot, weight decay draws to the mean, and half precision loses nothing of small changes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.around_mean = config.compression_initial == "mean"
        self.projection: Linear | ThinConvolution
        if config.compression_rank is None:
            self.projection = Linear(self.kernel * config.width, config.width, bias=False)
        else:
            self.projection = ThinConvolution(self.kernel, config.width, config.compression_rank)

    def begin(self) -> None:
        """Begin as the mean, if that is asked for."""
        if not self.around_mean:
            return
        if isinstance(self.projection, Linear):
            nn.init.zeros_(self.projection.weight)
        elif self.projection.rank:
            # The inner factor stays, so that the outer one has a gradient.
            nn.init.zeros_(self.projection.outer.weight)

    def forward(self, block: Evicted) -> Tensor:
        """Compress [B, n + o, D] to [B, n / c, D]."""
        return self.convolve(block.slots_BnD, block)

    def convolve(self, slots_BnD: Tensor, block: Evicted) -> Tensor:
        """The convolution without padding, and the mean of the block's windows."""
        lanes, slots, width = slots_BnD.shape
        if self.kernel == self.rate:
            windows = slots_BnD.reshape(lanes, slots // self.rate, self.rate * width)
        else:
            windows = slots_BnD.unfold(1, self.kernel, self.rate).transpose(2, 3).flatten(2)
        compressed: Tensor = self.projection(windows)
        if self.around_mean:
            mean_BwD = window_means(block, self.kernel, self.rate)
            compressed = mean_BwD[:, : compressed.shape[1]] + compressed
        return compressed


class DilatedCompression(ConvCompression):
    """Convolutions of kernel 2 with growing dilation, each with a ReLU, then the strided one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.stack = nn.ModuleList(
            Linear(2 * config.width, config.width, bias=False) for _ in DILATIONS
        )

    def forward(self, block: Evicted) -> Tensor:
        """Compress [B, n + o, D] to [B, n / c, D]."""
        slots = block.slots_BnD
        for layer, dilation in zip(self.stack, DILATIONS, strict=True):
            pairs = torch.cat([slots[:, :-dilation], slots[:, dilation:]], dim=-1)
            slots = F.relu(layer(pairs))
        return self.convolve(slots, block)


class MeanCompression(Compression):
    """Mean of each window's live slots."""

    def forward(self, block: Evicted) -> Tensor:
        """Compress [B, n + o, D] to [B, n / c, D]."""
        return window_means(block, self.kernel, self.rate)


class MaxCompression(Compression):
    """Largest value of each channel among a window's live slots; zero where none is live."""

    def forward(self, block: Evicted) -> Tensor:
        """Compress [B, n + o, D] to [B, n / c, D]."""
        dead = ~block.live_Bn[:, :, None]
        masked = block.slots_BnD.masked_fill(dead, float("-inf"))
        highest = masked.unfold(1, self.kernel, self.rate).amax(-1)
        live = block.live_Bn.unfold(1, self.kernel, self.rate).any(-1)
        return torch.where(live[:, :, None], highest, 0.0)


class MostUsedCompression(Compression):
    """Keep the n / c slots that the segment attended to most, in their order in time."""

    def forward(self, block: Evicted) -> Tensor:
        """Choose n / c of [B, n, D]; the older of two equally used slots goes first."""
        assert block.used_Bn is not None
        live = block.live_Bn
        used = block.used_Bn.masked_fill(~live, -1.0)
        # As many live slots are kept as a convolution would make; empty ones fill up in front.
        order = used.sort(dim=1, descending=True, stable=True).indices
        rank = torch.arange(order.shape[1], device=order.device)
        kept_count = (live.sum(1, keepdim=True) + self.rate - 1) // self.rate
        kept = torch.zeros_like(live).scatter(1, order, rank < kept_count)
        # Kept slots go last and stay in order; the sort is stable.
        last = kept.byte().sort(dim=1, stable=True).indices[:, -(order.shape[1] // self.rate) :]
        return block.slots_BnD.gather(1, last[:, :, None].expand(-1, -1, block.slots_BnD.shape[2]))


def needs_float32(config: ModelConfig) -> bool:
    """Whether a model compresses by low-pass filters."""
    return config.compressed > 0 and config.compression == "low_pass"


def require_float32(dtype: torch.dtype) -> None:
    """ValueError for numbers in which low-pass filters cannot be computed."""
    if torch.finfo(dtype).bits < 32:
        raise ValueError(
            f"compression low_pass needs float32: {str(dtype).removeprefix('torch.')} takes the "
            "decay of its slowest channels for 1"
        )


class LowPassCompression(Compression):
    """A bank of leaky integrators, one a channel, sampled at the end of each window.

    m_t = g m_{t-1} + (1 - g) x_t with g = exp(-1 / time constant), as in Low-pass Recurrent Neural
    Networks. Time constants are fixed and log-spaced over the channels from c to LONGEST_TIME
    slots. The integrators go on where the newest compressed slot left them, so they reach beyond
    compressed memory; in a lane without one they start at the first slot they read.
    """

    def forward(self, block: Evicted) -> Tensor:
        """Compress [B, n, D] to [B, n / c, D]."""
        slots, live = block.slots_BnD, block.live_Bn[:, :, None]
        require_float32(slots.dtype)
        # In float64, because the decay of the slowest channels is next to 1.
        device = exact_device(slots.device)
        exponents = torch.linspace(0, 1, slots.shape[2], dtype=torch.float64, device=device)
        time_D = self.rate * (LONGEST_TIME / self.rate) ** exponents
        later = torch.arange(self.rate - 1, -1, -1, device=device)[:, None]
        response_cD = -torch.expm1(-1 / time_D) * torch.exp(-later / time_D)
        response_cD = response_cD.to(slots.dtype).to(slots.device)
        # Empty slots come first in their window, so those behind them keep their response.
        arrived_BwD = ((slots * live).unflatten(1, (-1, self.rate)) * response_cD).sum(2)
        steps_Bw = block.live_Bn.unflatten(1, (-1, self.rate)).sum(2)
        first = block.live_Bn.byte().argmax(dim=1)[:, None, None].expand(-1, 1, slots.shape[2])
        start = slots.gather(1, first)[:, 0]
        level = torch.where(block.begun_B[:, None], block.newest_BD, start)
        kept_BwD = torch.exp(-steps_Bw.to(device)[:, :, None] / time_D)
        kept_BwD = kept_BwD.to(slots.dtype).to(slots.device)
        levels = []
        for window in range(arrived_BwD.shape[1]):
            level = kept_BwD[:, window] * level + arrived_BwD[:, window]
            levels.append(level)
        return torch.stack(levels, dim=1)


COMPRESSIONS: dict[CompressionName, type[Compression]] = {
    "conv": ConvCompression,
    "dilated": DilatedCompression,
    "mean": MeanCompression,
    "max": MaxCompression,
    "most_used": MostUsedCompression,
    "low_pass": LowPassCompression,
}
USES_ATTENTION: frozenset[CompressionName] = frozenset({"most_used"})


class LossSum(NamedTuple):
    """A named auxiliary loss as a sum and the number of elements in it; divide once, at the end."""

    total: Tensor
    """scalar"""
    elements: Tensor
    """scalar"""


class Reconstruction(NamedTuple):
    """How far a compression is from what it stands for, as sums."""

    total: Tensor
    """scalar; of the squared differences"""
    elements: Tensor
    """scalar; how many there are"""
    power: Tensor
    """scalar; of the squares of what it should be, without gradient"""

    @property
    def loss(self) -> LossSum:
        """Mean squared error, to be minimised."""
        return LossSum(self.total, self.elements)

    @property
    def relative(self) -> LossSum:
        """Mean squared error over mean square, to be looked at: 1 is what zeros would give."""
        return LossSum(self.total.detach(), self.power)


def stack_losses(layers: list[LossSum | None]) -> LossSum | None:
    """Losses of the layers side by side, [l] each; layers without one have 0 of 0 elements.

    None where no layer has one.
    """
    some = next((loss for loss in layers if loss is not None), None)
    if some is None:
        return None
    nothing = LossSum(torch.zeros_like(some.total), torch.zeros_like(some.elements))
    totals, elements = zip(*(nothing if loss is None else loss for loss in layers), strict=True)
    return LossSum(torch.stack(totals), torch.stack(elements))


def content_attention(
    query_BHTd: Tensor, key_BHnd: Tensor, value_BHnd: Tensor, live_Bn: Tensor
) -> Tensor:
    """softmax(q k^T) v without positions or causal mask; queries are scaled already.

    A lane with nothing live reads zero. Returns [B, H, T, d].
    """
    mask = None
    if not _known_full(live_Bn):
        any_live = live_Bn.any(dim=1)[:, None, None, None]
        mask = live_Bn[:, None, None, :] | ~any_live
    if torch.is_grad_enabled() and query_BHTd.device.type == "cpu":
        read = _by_products(query_BHTd, key_BHnd, value_BHnd, mask)
    else:
        read = F.scaled_dot_product_attention(
            query_BHTd, key_BHnd, value_BHnd, attn_mask=mask, scale=1.0
        )
    return read if mask is None else torch.where(any_live, read, 0.0)


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with a gradient, on a CPU, over the few slots that a block is compressed to.

    There the backward pass of torch's own kernel takes a little longer in float32, and four to
    eight times as long in bf16.
    """
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ value


def squares(x: Tensor) -> Tensor:
    """Squares to be summed: at least in float32, because a sum in bfloat16 has three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square()


def _known_full(live_Bn: Tensor) -> bool:
    """Whether all slots are live, where asking does not make a GPU wait or end a compiled graph."""
    if live_Bn.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(live_Bn.all())


def attention_reconstruction(
    query_BHTd: Tensor,
    old: tuple[Tensor, Tensor, Tensor],
    new: tuple[Tensor, Tensor, Tensor],
) -> Reconstruction:
    """Squared difference of what the segment reads from old memory and from its compression.

    Content attention only, per head and before the output projection, as in the authors' code
    (paper, Algorithm 2). Queries and the old block are constants here; the caller projects the new
    block with constant weights, so that the gradient reaches the compression function alone.

    Args:
        query_BHTd: scaled queries, those of the segment that come after the whole old block.
        old: keys, values [B, H, n, d] and live slots [B, n] of the block that leaves memory.
        new: the same of its compression, [B, H, n / c, d] and [B, n / c].

    Returns:
        Sums over the lanes in which something was compressed.
    """
    query = query_BHTd.detach()
    with torch.no_grad():
        target = content_attention(query, *old)
    read = content_attention(query, *new)
    live_lanes = old[2].any(dim=1).sum()
    elements_per_lane = query.shape[1] * query.shape[2] * query.shape[3]
    total, power = squares(target - read).sum(), squares(target).sum()
    return Reconstruction(total, live_lanes * elements_per_lane, power)


class Decoder(nn.Module):
    """g of the auto-encoding loss: each compressed slot back to the c slots it was made from, a
    transposed convolution with kernel = stride = c and no bias (authors' code).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rate = config.rate
        self.projection = Linear(config.width, config.rate * config.width, bias=False)

    def forward(self, new_BwD: Tensor) -> Tensor:
        """[B, w, D] -> [B, w c, D]."""
        return self.projection(new_BwD).unflatten(-1, (self.rate, -1)).flatten(1, 2)


def auto_encoding(old_BnD: Tensor, decoded_BnD: Tensor, live_Bn: Tensor) -> Reconstruction:
    """Squared difference of the block that leaves memory and its decoded compression (paper,
    section 3.2.1), over the live slots. The block is a constant, so the gradient reaches the
    compression function and its decoder alone.
    """
    old_BnD = old_BnD.detach()
    total, power = (
        torch.where(live_Bn, squares(x).sum(-1), 0.0).sum()
        for x in (old_BnD - decoded_BnD, old_BnD)
    )
    return Reconstruction(total, live_Bn.sum() * old_BnD.shape[2], power)
