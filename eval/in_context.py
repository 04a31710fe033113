"""What a model learns of a document while it reads it: the gain of each place over the beginning.

A document is an episode in the sense of Ortega et al. (arXiv 1905.03030): a model that carries what
it has read predicts later places better, and what earlier places cost beyond that is its regret.
Later places are reached by long documents alone, so a place is compared with the beginning of the
same documents.

Shapes: D documents, P stretches of a document (eval.parts.place_edges).
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from data.shards import Split
from eval.parts import place_edges, place_sums
from eval.results import bits_of
from lm.inference.inference_config import BITS


def in_context(split: Split, token_nats: np.ndarray, segment: int) -> list[dict[str, Any]]:
    """Of each stretch, with the documents that reach it: what it costs them in bits per byte (of
    text that tokens do not give back, per token), `gain`, how much more their first segment does,
    and `regret`, the bits a document by which all before it cost more than at its rate.

    Args:
        split: what was scored.
        token_nats: cost of each of its tokens.
        segment: tokens of the first stretch.
    """
    edges = place_edges(split, segment)
    sums_DP2 = place_sums(split, token_nats, edges)
    tokens_D = split.documents["tokens"]
    tokens_D = tokens_D[tokens_D > 0]
    found = []
    for number, (low, high) in enumerate(pairwise(edges)):
        reach_D = tokens_D > low
        bits_P, size_P = sums_DP2[reach_D].sum(axis=0).T
        bits_P = bits_P / math.log(2)
        if not size_P[number] or not size_P[0]:
            continue
        here = bits_P[number] / size_P[number]
        before = slice(number)
        found.append(
            {
                "from": low,
                "to": high,
                BITS[not split.exact]: here,
                "gain": bits_P[0] / size_P[0] - here,
                "regret": (bits_P[before] - here * size_P[before]).sum() / reach_D.sum(),
                "documents": int(reach_D.sum()),
            }
        )
    return found


def context_lines(found: list[dict[str, Any]]) -> list[str]:
    """The same in lines."""
    head = "what reading on is worth: place in tokens, cost, gain over the same documents' first"
    lines = [f"{head} segment, regret before it in bits a document"]
    lines += [
        f"  {p['from']:>9,} to {p['to']:<9,}{bits_of(p):10.4f}{p['gain']:+10.4f}"
        f"{p['regret']:12,.1f}"
        for p in found
    ]
    return lines
