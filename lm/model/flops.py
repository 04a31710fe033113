"""Floating-point operations, counted from the matrix products of each part.

A product of [n, k] and [k, m] is 2 n k m operations; so is the product that makes the gradient of
either operand. Tests compare these counts with those of torch's FlopCounterMode, in every variant;
that needs 100 ms a shape on the meta device and cannot follow an adaptive vocabulary there, these a
millisecond. Masked scores count: they are computed. What is computed a second time to save memory
does not, nor does what fused kernels add by widening queries. Scores of compressed memory's
distances count as Transformer-XL's shift needs them; CPUs compute fewer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lm.model.adaptive import cluster_bounds
from lm.model.model_config import DILATIONS, GATED, GateName, ModelConfig

GATE_MATRICES: dict[GateName, tuple[int, ...]] = {
    "none": (),
    "relu": (),
    "input": (1,),
    "output": (1,),
    "highway": (1,),
    "sigmoid_tanh": (2,),
    "gru": (3, 2, 1),
}
"""Rows of each matrix of a gate, in widths."""
Learning = Literal["all", "compression", "lora"]
"""Which weights training moves: all, those of compression, or small maps beside the others too."""
OWN = ("compression", "reconstruction")
"""Parts that train alike whatever else does."""
ACTIVATIONS_ONLY = ("content_scores", "values")
"""Parts whose factors both come from the segment."""


class Product(NamedTuple):
    """A product of [n, k] and [k, m], done for each of `batch` and, with gradients, `times`."""

    n: float
    k: int
    m: int
    times: int
    """1 forward, and 1 for each operand that gets a gradient in training."""
    batch: float = 1

    @property
    def flops(self) -> float:
        """Operations."""
        return 2.0 * self.batch * self.n * self.k * self.m


@dataclass(frozen=True)
class Work:
    """Operations per token, by part of the model.

    projections: queries, keys, values and output of the segment; memory_projections: keys and
    values of memory, projected anew each segment, to which no gradient goes; sinks: those of
    attention sinks, likewise; positions: projection of the encoded distances, shared by the lanes;
    content_scores, position_scores; values: their weighted sums; feedforward; filters: maps to and
    from them; gates; compression; reconstruction; embedding: projections of adaptive input; head.
    """

    flops: dict[str, float]
    """Operations."""

    @property
    def total(self) -> float:
        """Operations of all parts together."""
        return sum(self.flops.values())


def training_flops(
    config: ModelConfig,
    vocabulary: int,
    lanes: int,
    shares: Sequence[float] | None = None,
    learn: Learning = "all",
    readings: float = 1.0,
    gated: bool = False,
) -> Work:
    """Work to train on one token with both memories full, one segment a back-propagation.

    Args:
        config: the model.
        vocabulary: number of tokens.
        lanes: lanes that share one projection of the encoded distances.
        shares: share of the tokens in each cluster of an adaptive vocabulary; none: as Zipf's law
            has it.
        learn: which weights move; those that do not have no gradient. Without the small maps of
            lora themselves.
        readings: lanes that are read for each lane of text (lm.objectives.readings); above 1 the
            probabilities of all tokens are computed.
        gated: auxiliary losses have a backward pass of their own, through all but compression.
    """
    if readings > 1 and config.cutoffs is not None:
        shares = [1.0] * (len(config.cutoffs) + 1)
    parts = _parts(config, vocabulary, lanes * readings, shares)
    tokens = lanes * config.segment
    return Work(
        {
            name: sum(_times(name, p, learn, gated) * p.flops for p in parts[name]) / tokens
            for name in parts
        }
    )


def _times(part: str, product: Product, learn: Learning, gated: bool = False) -> int:
    """How often a product is made in training, with those of the same size for its gradients."""
    if gated and part not in OWN:
        return 2 * _times(part, product, learn) - 1
    if learn == "all" or part in OWN:
        return product.times
    if learn == "compression":
        return 1
    # Gradients of fixed weights fall away, and of what fixed weights make of constants.
    return product.times if part in ACTIVATIONS_ONLY else product.times - 1


def scoring_flops(config: ModelConfig, vocabulary: int, lanes: int, kept: bool) -> Work:
    """Work to score one token with fixed weights and both memories full.

    Args:
        config: the model.
        vocabulary: number of tokens.
        lanes: lanes that share one projection of the encoded distances.
        kept: keys and values of memory are kept, so that only new compressed slots are projected.
    """
    parts = _parts(config, vocabulary, lanes, None, kept)
    del parts["reconstruction"]
    tokens = lanes * config.segment
    return Work({name: sum(p.flops for p in parts[name]) / tokens for name in parts})


def _parts(
    config: ModelConfig,
    vocabulary: int,
    lanes: float,
    shares: Sequence[float] | None,
    kept: bool = False,
) -> dict[str, list[Product]]:
    """Products of all layers and of the two ends."""
    parts: dict[str, list[Product]] = {}
    for layer in range(config.layers):
        at = config.at(layer)
        products = _layer(at, lanes)
        if kept:
            new = Product(lanes * at.windows, at.width, 2 * at.stored_heads * at.head_width, 1)
            products["memory_projections"] = [new] if at.compressed else []
        for name, some in products.items():
            parts.setdefault(name, []).extend(some)
    return parts | _vocabulary(config, vocabulary, lanes * config.segment, shares)


def _layer(config: ModelConfig, lanes: float) -> dict[str, list[Product]]:
    """Products of one layer that reads a segment of every lane."""
    width, segment, head = config.width, config.segment, config.head_width
    queries, stored = config.heads * head, 2 * config.stored_heads * head
    rows, heads = lanes * segment, lanes * config.heads
    keys = config.sinks + config.slots + segment
    inner = config.feedforward * (2 if config.activation in GATED else 1)
    memories = (config.compressed, config.memory)[0 if config.compressed else 1 :]
    parts = {
        "projections": [
            Product(rows, width, queries + stored, 3),
            Product(rows, queries, width, 3),
        ],
        "memory_projections": [Product(lanes * n, width, stored, 2) for n in memories],
        "sinks": [],
        "positions": [],
        "content_scores": [Product(segment, head, keys, 3, heads)],
        "position_scores": [],
        "values": [Product(segment, keys, head, 3, heads)],
        "feedforward": [
            Product(rows, width, inner, 3),
            Product(rows, config.feedforward, width, 3),
        ],
        "filters": [
            Product(rows, width, config.filters, 3),
            Product(rows, config.filters, width, 3),
        ],
        "gates": [Product(rows, width, out * width, 3) for out in 2 * GATE_MATRICES[config.gate]],
        "compression": _compression(config, lanes) if config.compressed else [],
        "reconstruction": _reconstruction(config, lanes) if config.compressed else [],
    }
    if config.sinks:
        # Learnt sinks have a gradient of their own; first tokens are constants.
        times = 3 if config.sink == "learnt" else 2
        parts["sinks"].append(Product(lanes * config.sinks, width, stored, times))
    if config.positions == "relative":
        near = config.memory + segment
        far = [config.compressed + segment] if config.compressed else []
        for distances in [near, *far]:
            # Encoded distances are constants, so their projection has one gradient.
            parts["positions"].append(Product(distances, config.encoded, queries, 2))
            parts["position_scores"].append(Product(segment, head, distances, 3, heads))
    return parts


def _compression(config: ModelConfig, lanes: float) -> list[Product]:
    """Products of the compression function; old memory is a constant to it."""
    width, trained = config.width, config.reconstruction != "none"
    products = []
    if config.compression == "most_used" and config.positions != "relative":
        # Which attention it received is found by scoring the block that leaves once more.
        block = (config.segment, config.head_width, config.segment)
        products.append(Product(*block, 1, lanes * config.heads))
    if config.compression == "dilated":
        slots, times = config.windows * config.rate + config.overlap, 2
        for dilation in DILATIONS:
            slots -= dilation
            products.append(Product(lanes * slots, 2 * width, width, times if trained else 1))
            times = 3
    if config.compression in ("conv", "dilated"):
        kernel, times = config.rate + config.extra_kernel, 3 if products else 2
        rows, rank = lanes * config.windows, config.compression_rank
        out = width if rank is None else rank
        if out:
            products.append(Product(rows, kernel * width, out, times if trained else 1))
        if rank:
            products.append(Product(rows, rank, width, 3 if trained else 1))
    return products


def _reconstruction(config: ModelConfig, lanes: float) -> list[Product]:
    """Products of the loss that trains the compression function."""
    width, head, heads = config.width, config.head_width, lanes * config.heads
    new, segment, queries = config.windows, config.segment, config.reconstructing
    if config.reconstruction == "auto_encoding":
        return [Product(lanes * new, width, config.rate * width, 3)]
    if config.reconstruction == "none":
        return []
    return [
        # The target is read without gradient; queries and projections are constants.
        Product(queries, head, segment, 1, heads),
        Product(queries, segment, head, 1, heads),
        Product(lanes * new, width, 2 * config.stored_heads * head, 2),
        Product(queries, head, new, 2, heads),
        Product(queries, new, head, 3, heads),
    ]


def _vocabulary(
    config: ModelConfig, vocabulary: int, rows: float, shares: Sequence[float] | None
) -> dict[str, list[Product]]:
    """Products of the two ends of the model."""
    width = config.width
    if config.cutoffs is None:
        return {"embedding": [], "head": [Product(rows, width, vocabulary, 3)]}
    bounds = cluster_bounds(config, vocabulary)
    if shares is None:
        shares = [
            math.log((high + 1) / (low + 1)) / math.log(vocabulary + 1) for low, high in bounds
        ]
    (_, words), *rare = bounds
    embedding, head = [], [Product(rows, width, words, 3)]
    if rare:
        head.append(Product(rows, width, len(rare), 3))
    for index, ((low, high), share) in enumerate(zip(rare, shares[1:], strict=True), start=1):
        narrow = config.cluster_width(index)
        # All tokens are looked up in every cluster; the head computes a cluster where it occurs.
        embedding.append(Product(rows, narrow, width, 3))
        head.append(Product(rows * share, width, narrow, 3))
        head.append(Product(rows * share, narrow, high - low, 3))
    return {"embedding": embedding, "head": head}
