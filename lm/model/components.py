"""What models are made of: linear maps, norms, the feed-forward sub-layer, and the token
embedding and output projection over the whole vocabulary (adaptive.py has those of large ones).

The model calls its matrices through `LinearMap` alone, so that one whose weights are kept in
another form, such as sparsely, may take a dense one's place after the model has been built.

Shapes: B lanes, T tokens, n tokens of any lanes, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lm.model.model_config import GATED, Activation, ModelConfig

OPTIONS = getattr(nn, "LinearCrossEntropyOptions", None)
"""Of torch's chunked cross-entropy, from torch 2.13 on."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or the type itself where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: the device itself, or the CPU for one without."""
    return torch.device("cpu") if device.type == "mps" else device


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the width of the model, [..., D] -> [..., D]."""
    if config.norm_kind == "rms":
        return nn.RMSNorm(config.width, config.norm_epsilon)
    return nn.LayerNorm(config.width, config.norm_epsilon)


class LinearMap(nn.Module):
    """y = W x + b with a matrix W [out, in] that a subclass knows how to make."""

    in_features: int
    out_features: int

    def matrix(self) -> Tensor:
        """W [out, in], through which a gradient reaches the parameters."""
        raise NotImplementedError

    def rows(self, inputs: Sequence[Tensor], first: int, constant: bool = False) -> list[Tensor]:
        """Several inputs times the rows of W from `first` on: each [..., in] -> [..., out - first],
        no bias.

        Args:
            inputs: one or more.
            first: the first row.
            constant: let no gradient reach W.
        """
        weight = self.matrix()[first:]
        weight = weight.detach() if constant else weight
        return [F.linear(x, weight) for x in inputs]

    def penalty(self) -> Tensor | None:
        """What is added to the loss for these weights, once an update; None for nothing."""
        return None


class Linear(nn.Linear, LinearMap):
    """A linear map with a dense matrix as its parameter."""

    def matrix(self) -> Tensor:
        """The parameter itself."""
        return self.weight


def rows_of(
    linear: nn.Module, inputs: Sequence[Tensor], first: int, constant: bool = False
) -> list[Tensor]:
    """What a linear map makes of several inputs, its outputs from `first` on: each [..., in] ->
    [..., out - first].

    Args:
        linear: a LinearMap, or one that another library has wrapped (an adapter of peft), which is
            called as it is and computes the other outputs for nothing.
        inputs: one or more.
        first: the first output.
        constant: let no gradient reach the weights.
    """
    if isinstance(linear, LinearMap):
        rows = linear.rows(inputs, first, constant)
        bias: Tensor | None = linear.bias  # type: ignore[assignment]
        if bias is None:
            return rows
        added = bias[first:].detach() if constant else bias[first:]
        return [row + added for row in rows]
    fixed = {name: weight.detach() for name, weight in linear.named_parameters() if constant}
    return [functional_call(linear, fixed, (x,))[..., first:] for x in inputs]


def matrix_of(linear: nn.Module) -> Tensor:
    """The matrix [out, in] of a linear map without a bias, also of one that has been wrapped."""
    if isinstance(linear, LinearMap):
        return linear.matrix()
    like, inputs = next(linear.parameters()), cast(int, linear.in_features)
    unit = torch.eye(inputs, dtype=like.dtype, device=like.device)
    matrix: Tensor = linear(unit).mT
    return matrix


def total_penalty(module: nn.Module) -> Tensor | None:
    """The penalties of all linear maps inside a module together; None if there are none."""
    penalties = []
    for part in module.modules():
        penalty = part.penalty() if isinstance(part, LinearMap) else None
        if penalty is not None:
            penalties.append(penalty)
    return torch.stack(penalties).sum() if penalties else None


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    # In place: nothing else reads the largest tensor of a layer.
    "relu": F.relu_,
    "gelu": F.gelu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity f between them.

    Gated, the first map makes two halves a and b and the second reads f(a) b (GLU variants,
    Shazeer, arXiv 2002.05202).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.activation in GATED
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.activation]
        inner, bias = config.feedforward * (2 if self.gated else 1), config.feedforward_bias
        self.inner = Linear(config.width, inner, bias=bias)
        self.outer = Linear(config.feedforward, config.width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        # As a matrix, because a map of [B, T, D] returns a view; if that is changed in place,
        # autograd copies the whole of it several times on the way back.
        inner = self.inner(x_BTD.flatten(0, -2))
        if self.gated:
            opening, value = inner.chunk(2, dim=-1)
            active = self.activation(opening) * value
        else:
            active = self.activation(inner)
        hidden: Tensor = self.outer(active)
        return hidden.view(x_BTD.shape)


class Residual(nn.Module):
    """What joins a sub-layer to the residual stream: x + y, no gate.

    x is the stream and y the sub-layer's output, [B, T, D] each; gates.py has others.
    """

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        return x_BTD + y_BTD


def embedding_scale(config: ModelConfig) -> float:
    """What token embeddings are multiplied by."""
    scale = config.embedding_scale
    return config.width**0.5 if scale is None else scale


class Embedding(nn.Module):
    """Tokens to vectors, scaled (by sqrt(D), so that a tied matrix suits both its uses)."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.scale = embedding_scale(config)
        self.weight = nn.Parameter(torch.empty(vocabulary, config.width))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] ids -> [B, T, D]."""
        return F.embedding(tokens_BT, self.weight) * self.scale


class VocabularyHead(nn.Module):
    """Hidden states to log-probabilities of the next token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chunk = config.head_chunk

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        raise NotImplementedError

    def nats(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [n]."""
        raise NotImplementedError

    def forward(
        self,
        hidden_BTD: Tensor,
        targets_BT: Tensor | None = None,
        within: Callable[["VocabularyHead", Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits [B, T, V], or, with targets, their negative log-likelihoods in nats [B, T].

        With config.head_chunk the logits of that many tokens are held at once, and made a second
        time in the backward pass.

        Args:
            hidden_BTD: final hidden states.
            targets_BT: the tokens to predict.
            within: given, what it makes of the head and the states is returned instead. A head is
                to be called once in a back-propagation, since at ZeRO stage 3 its weights are at
                hand within a call only.
        """
        if within is not None:
            return within(self, hidden_BTD)
        if targets_BT is None:
            return self.logits(hidden_BTD)
        hidden, targets = hidden_BTD.flatten(0, -2), targets_BT.flatten()
        make = self.nats if self.chunk is None else self.nats_by_chunks
        return make(hidden, targets).view(targets_BT.shape)

    def nats_by_chunks(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """The same as `nats`, with the logits of self.chunk tokens held at once."""
        assert self.chunk is not None
        parts = zip(hidden_nD.split(self.chunk), targets_n.split(self.chunk), strict=True)
        return torch.cat([checkpoint(self.nats, *part, use_reentrant=False) for part in parts])


class Head(VocabularyHead):
    """One matrix over the whole vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary: int, tied: nn.Parameter | None) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(vocabulary, config.width)) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if config.head_bias else None

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        return F.linear(hidden_BTD, self.weight, self.bias)

    def nats(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [n]."""
        return cross_entropy(self.logits(hidden_nD), targets_n)

    def nats_by_chunks(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """By torch's own function where there is one, which needs less memory for the gradient of
        the matrix. It gives half-precision numbers for half-precision inputs, too coarse for nats.
        """
        if OPTIONS is None or hidden_nD.dtype not in (torch.float32, torch.float64):
            return super().nats_by_chunks(hidden_nD, targets_n)
        return F.linear_cross_entropy(
            hidden_nD,
            self.weight,
            targets_n,
            linear_bias=self.bias,
            reduction="none",
            options=OPTIONS(batch_chunk_size=min(self.chunk or 1, len(hidden_nD))),
        )


def cross_entropy(logits_nV: Tensor, targets_n: Tensor) -> Tensor:
    """Negative log-likelihoods [n], in float32 at least."""
    if logits_nV.dtype != torch.float64:
        logits_nV = logits_nV.float()
    return F.cross_entropy(logits_nV, targets_n, reduction="none")


SLOWEST, FASTEST = 1.0, -4.0
"""Logits of the shares that the channels begin with, in even steps: 0.73 down to 0.02."""


class LeakyAverage(nn.Module):
    """Inputs of attention that remember.

    Of normed inputs x attention reads, and memory stores,

        y_t = sqrt(1 - a^2) x_t + a y_{t-1}

    with a learnt share a between 0 and 1 for each channel. A query, a key and a value then know of
    the tokens directly before their own. The root keeps the variance of what norms make. What the
    next segment goes on from is the newest slot of memory, so the average is carried through
    segments, resets and decoding with no state of its own, and no cut of the stream changes it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.linspace(FASTEST, SLOWEST, width))
        """Logits of the shares a, [D]."""

    def forward(self, x_BTD: Tensor, before_BD: Tensor) -> Tensor:
        """Average on, [B, T, D].

        Args:
            x_BTD: normed inputs.
            before_BD: the average at the token before them; zero where nothing was read.
        """
        share_D = torch.sigmoid(self.leak)
        scaled = x_BTD * torch.sqrt(1 - share_D * share_D)
        averaged: Tensor = Recurrence.apply(scaled, share_D, before_BD)
        return averaged


class Recurrence(torch.autograd.Function):
    """y_t = x_t + a y_{t-1}, called as .apply(x_BTD, a_D, before_BD); no gradient reaches the last,
    as none reaches memory.
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, share_D: Tensor, before_BD: Tensor) -> Tensor:
        """All y, [B, T, D]."""
        y_BTD = x_BTD.clone()
        y_BTD[:, 0] += share_D * before_BD
        powers, step = share_D, 1
        # After each round every y holds the last 2 step terms of its sum.
        while step < y_BTD.shape[1]:
            y_BTD[:, step:] += powers * y_BTD[:, :-step]
            powers, step = powers * powers, 2 * step
        ctx.save_for_backward(y_BTD, share_D, before_BD)
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """The same recurrence from the last token to the first."""
        y_BTD, share_D, before_BD = ctx.saved_tensors
        total_BTD, powers, step = grad_BTD.clone(), share_D, 1
        while step < y_BTD.shape[1]:
            total_BTD[:, :-step] += powers * total_BTD[:, step:]
            powers, step = powers * powers, 2 * step
        if not ctx.needs_input_grad[1]:
            return total_BTD, None, None
        grad_D = (total_BTD[:, 1:] * y_BTD[:, :-1]).sum((0, 1))
        return total_BTD, grad_D + (total_BTD[:, 0] * before_BD).sum(0), None
