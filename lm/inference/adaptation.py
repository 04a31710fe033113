"""Predictions changed by what was read before: neural cache, kNN-LM and Memory-based Parameter
Adaptation, as pure functions of logits, queries and a store.

Distances and products are divided by the width D of hidden states, whose norm makes them about
sqrt(D) long, so that one setting means much the same at every width.

Shapes: B lanes, T queries, R slots of the store, K neighbours, U entries that some query has among
its neighbours, D width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.inference.store import Found, Store

Kernel = Literal["inverse", "exponential"]


def cache(store: Store, queries_BTD: Tensor, count_BT: Tensor, sharpness: float) -> Tensor:
    """Weights of all entries of the store by the product of their key with the query, softmax of
    sharpness h·q / D (Grave et al., arXiv 1612.04426).

    Args:
        store: keys are hidden states, values the tokens that followed.
        queries_BTD: hidden states.
        count_BT: how many entries of its lane each may see.
        sharpness: theta.

    Returns:
        [B, T, R], of sum 1, and 0 where nothing may be seen.
    """
    seen_BTR = store.visible(count_BT)
    score_BTR = store.products(queries_BTD) * (sharpness / queries_BTD.shape[-1])
    return masked_softmax(score_BTR, seen_BTR)


def by_distance(
    squares_BTK: Tensor, live_BTK: Tensor, width: int, kernel: Kernel, softness: float
) -> Tensor:
    """Weights of neighbours by their distance, of sum 1.

    Args:
        squares_BTK: squared distances.
        live_BTK: bool, false where there is no neighbour.
        width: D.
        kernel: inverse: 1 / (softness + d² / D) (Sprechmann et al., arXiv 1802.10542);
            exponential: exp(-d² / D / softness) (Khandelwal et al., arXiv 1911.00172).
        softness: epsilon or the temperature.

    Returns:
        [B, T, K], 0 where there is no neighbour.
    """
    squares_BTK = squares_BTK / width
    if kernel == "exponential":
        return masked_softmax(-squares_BTK / softness, live_BTK)
    weights_BTK = live_BTK / (softness + squares_BTK)
    total = weights_BTK.sum(dim=-1, keepdim=True)
    return weights_BTK / torch.where(total > 0, total, 1.0)


def masked_softmax(score: Tensor, live: Tensor) -> Tensor:
    """Softmax over what is live of the last dimension; 0 everywhere where nothing is."""
    some = live.any(dim=-1, keepdim=True)
    return score.masked_fill(~live & some, -torch.inf).softmax(dim=-1) * some


def mixed(logits_BTV: Tensor, values: Tensor, weights: Tensor, share: float) -> Tensor:
    """Log-probabilities of (1 - share) p + share q, where q gives each value its weights.

    Args:
        logits_BTV: of p, unnormalised.
        values: tokens, [B, T, K].
        weights: of sum 1, [B, T, K]; where they are all 0, p stays as it is.
        share: lambda, between 0 and 1.
    """
    other_BTV = torch.zeros_like(logits_BTV).scatter_add_(-1, values, weights.to(logits_BTV.dtype))
    other_BTV *= share
    told_BTV = other_BTV > 0
    own_BTV = logits_BTV.log_softmax(dim=-1) + math.log1p(-share)
    # Logarithms of zero are slow, and most tokens are told by nobody.
    least = torch.finfo(other_BTV.dtype).tiny
    both_BTV = torch.logaddexp(own_BTV, other_BTV.clamp(min=least).log())
    mixed_BTV = torch.where(told_BTV, both_BTV, own_BTV)
    return torch.where(told_BTV.any(dim=-1, keepdim=True), mixed_BTV, logits_BTV)


def adapted(
    logits_BTV: Tensor,
    store: Store,
    found: Found,
    weights_BTK: Tensor,
    head: Callable[[Tensor], Tensor],
    bias: bool,
    steps: tuple[float, int, float],
) -> Tensor:
    """Logits after the output layer has learnt from the neighbours, T times, for this query alone
    (Sprechmann et al., arXiv 1802.10542).

    Every step is W ← W - rate / D grad_W Σ_k w_k L_k - decay (W - W_0), the bias alike. No copy of
    W is made: its change is a sum of outer products of the neighbours' states with vectors
    a_k [V], so that W h_j moves by Σ_k (h_k·h_j + 1) a_k; this is exact for any number of steps.

    Args:
        logits_BTV: of the queries, before.
        store: where the neighbours lie.
        found: the neighbours.
        weights_BTK: w, 0 where there is none.
        head: makes logits [U, V] of hidden states [U, D].
        bias: whether the output layer has one; it adapts too.
        steps: rate, number of steps T, and decay towards the trained weights.
    """
    rate, number, decay = steps
    slots, width = store.keys_BRD.shape[1:]
    lane_B11 = torch.arange(store.lanes, device=found.slots_BTK.device)[:, None, None]
    entry_U, place_BTK = (found.slots_BTK + lane_B11 * slots).unique(return_inverse=True)
    keys_UD, values_U = store.keys_BRD.view(-1, width)[entry_U], store.values_BR.view(-1)[entry_U]
    own_UV = head(keys_UD).to(logits_BTV.dtype)
    error_UV = own_UV.softmax(dim=-1)
    error_UV[torch.arange(len(values_U), device=values_U.device), values_U] -= 1
    step_BTK = weights_BTK.to(logits_BTV.dtype) * (rate / width)
    reach_BTK = found.products_BTK.to(logits_BTV.dtype) + float(bias)
    if number == 1:
        # The weighted sum of the neighbours' errors, no row of which is copied.
        share_nK = (step_BTK * reach_BTK).flatten(0, 1)
        places_nK = place_BTK.flatten(0, 1)
        sum_nV = F.embedding_bag(places_nK, error_UV, per_sample_weights=share_nK, mode="sum")
        return logits_BTV - sum_nV.view(logits_BTV.shape)
    keys_BTKD = keys_UD[place_BTK]
    gram_BTKK = (keys_BTKD @ keys_BTKD.transpose(-1, -2)).to(logits_BTV.dtype) + float(bias)
    change_BTKV = -step_BTK[..., None] * error_UV[place_BTK]
    for _ in range(number - 1):
        moved = (own_UV[place_BTK] + gram_BTKK @ change_BTKV).softmax(dim=-1)
        moved.scatter_add_(-1, values_U[place_BTK][..., None], -torch.ones_like(moved[..., :1]))
        change_BTKV = (1 - decay) * change_BTKV - step_BTK[..., None] * moved
    return logits_BTV + (reach_BTK[..., None, :] @ change_BTKV)[..., 0, :]
