"""The Compressive Transformer written as loops over lanes, heads, queries and keys.

Memory is a Python list of the vectors that are live, so there are no masks, no shifts and no fixed
shapes to get wrong. Slow and float64; every fast path is compared with it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.model import CompressiveTransformer, MemoryState
from tests.lm.model.naive_compression import NAIVE, Leaving, Slots


@dataclass
class LaneMemory:
    """Per layer, the live vectors of memory and of compressed memory, oldest first."""

    memory: list[Slots]
    compressed: list[Slots]


@dataclass
class LaneResult:
    logits_TV: Tensor
    memory: LaneMemory
    reconstruction: Tensor
    reconstruction_count: int


def empty_lane(layers: int) -> LaneMemory:
    return LaneMemory([[] for _ in range(layers)], [[] for _ in range(layers)])


def sinusoid(distance: int, width: int) -> Tensor:
    angles = [distance / 10000 ** (2 * i / width) for i in range(width // 2)]
    values = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values, dtype=torch.float64)


def layer_norm(x_D: Tensor, gain_D: Tensor, bias_D: Tensor) -> Tensor:
    mean = x_D.mean()
    variance = ((x_D - mean) ** 2).mean()
    return (x_D - mean) / torch.sqrt(variance + 1e-5) * gain_D + bias_D


def softmax(scores: list[Tensor]) -> list[Tensor]:
    highest = max(float(s.detach()) for s in scores)
    weights = [torch.exp(s - highest) for s in scores]
    total = sum(weights[1:], weights[0])
    return [w / total for w in weights]


def weighted_sum(weights: list[Tensor], values: list[Tensor]) -> Tensor:
    terms = [w * v for w, v in zip(weights, values, strict=True)]
    return sum(terms[1:], terms[0])


def softmax_read(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    return weighted_sum(softmax(scores), values)


class Oracle:
    """Naive forward pass with the parameters of a model (gradients reach them)."""

    def __init__(self, model: CompressiveTransformer) -> None:
        self.config = model.config
        self.parameters = dict(model.named_parameters())
        if model.config.tied:
            self.parameters["head.weight"] = model.embedding.weight

    def get(self, layer: int, name: str) -> Tensor:
        return self.parameters[f"blocks.{layer}.{name}"]

    def head(self, matrix_DD: Tensor, h: int) -> Tensor:
        """Rows of a projection that make head h."""
        d = self.config.head_width
        return matrix_DD[h * d : (h + 1) * d]

    def attention(
        self, layer: int, inputs: Slots, memory: Slots, compressed: Slots
    ) -> tuple[Slots, list[Slots], list[float]]:
        """Outputs per token, the scaled queries per head and token, and the average attention that
        each slot of memory and each token received over heads and the queries that see it.
        """
        config, d = self.config, self.config.head_width
        width = config.width
        w_q, w_k, w_v = self.get(layer, "attention.query_key_value.weight").split(width)
        outputs_per_head, queries_per_head = [], []
        received = [0.0] * (len(memory) + len(inputs))
        for h in range(config.heads):
            u = self.get(layer, "attention.content_bias")[h]
            near = self.head(self.get(layer, "attention.position_key.weight"), h)
            near_bias = self.get(layer, "attention.position_bias")[h]
            if config.compressed:
                far = self.head(self.get(layer, "attention.compressed_position_key.weight"), h)
                far_bias = self.get(layer, "attention.compressed_position_bias")[h]
            k_rows, v_rows, q_rows = self.head(w_k, h), self.head(w_v, h), self.head(w_q, h)
            reads, queries = [], []
            for i, x in enumerate(inputs):
                query = (q_rows @ x) / math.sqrt(d)
                scores, values = [], []
                for j, slot in enumerate(compressed):
                    encoded = far @ sinusoid(i + len(compressed) - j, width)
                    score = (query + u) @ (k_rows @ slot) + (query + far_bias) @ encoded
                    scores.append(score)
                    values.append(v_rows @ slot)
                recent = memory + inputs[: i + 1]
                for j, slot in enumerate(recent):
                    encoded = near @ sinusoid(len(recent) - 1 - j, width)
                    score = (query + u) @ (k_rows @ slot) + (query + near_bias) @ encoded
                    scores.append(score)
                    values.append(v_rows @ slot)
                weights = softmax(scores)
                reads.append(weighted_sum(weights, values))
                for j in range(len(recent)):
                    viewers = len(inputs) - max(0, j - len(memory))
                    share = float(weights[len(compressed) + j].detach())
                    received[j] += share / (viewers * config.heads)
                queries.append(query)
            outputs_per_head.append(reads)
            queries_per_head.append(queries)
        output = self.get(layer, "attention.output.weight")
        mixed = [
            output @ torch.cat([outputs_per_head[h][i] for h in range(config.heads)])
            for i in range(len(inputs))
        ]
        return mixed, queries_per_head, received

    def compress(
        self, layer: int, joined: Slots, overflow: int, compressed: Slots, received: list[float]
    ) -> Slots:
        leaving = Leaving(
            self.config,
            joined[:overflow],
            joined[overflow : overflow + self.config.overlap],
            received[:overflow],
            compressed[-1] if compressed else None,
            lambda name: self.get(layer, f"compression.{name}"),
        )
        return NAIVE[self.config.compression](leaving)

    def auxiliary(
        self, layer: int, queries: list[Slots], old: Slots, new: Slots
    ) -> tuple[Tensor, int]:
        if self.config.reconstruction == "attention":
            return self.reconstruction(layer, queries, old, new)
        if self.config.reconstruction == "none":
            return torch.zeros((), dtype=torch.float64), 0
        weight = self.get(layer, "decoder.projection.weight")
        decoded = torch.cat([weight @ slot for slot in new]).unflatten(0, (-1, self.config.width))
        decoded = decoded[len(decoded) - len(old) :]
        total = sum(((a - b) ** 2).sum() for a, b in zip(old, decoded, strict=True))
        return total, len(old) * self.config.width

    def reconstruction(
        self, layer: int, queries: list[Slots], old: Slots, new: Slots
    ) -> tuple[Tensor, int]:
        _, w_k, w_v = (
            self.get(layer, "attention.query_key_value.weight").detach().split(self.config.width)
        )
        total, count = torch.zeros((), dtype=torch.float64), 0
        for h in range(self.config.heads):
            k_rows, v_rows = self.head(w_k, h), self.head(w_v, h)
            for query in queries[h]:
                fixed = query.detach()
                target = softmax_read(
                    [fixed @ (k_rows @ slot) for slot in old], [v_rows @ slot for slot in old]
                ).detach()
                read = softmax_read(
                    [fixed @ (k_rows @ slot) for slot in new], [v_rows @ slot for slot in new]
                )
                total = total + ((target - read) ** 2).sum()
                count += target.numel()
        return total, count

    def segment(self, tokens: list[int], before: LaneMemory) -> LaneResult:
        """One lane, one segment."""
        config = self.config
        embedding = self.parameters["embedding.weight"]
        hidden = [embedding[token] * math.sqrt(config.width) for token in tokens]
        after = empty_lane(config.layers)
        loss, count = torch.zeros((), dtype=torch.float64), 0
        for layer in range(config.layers):
            gain = self.get(layer, "attention_norm.weight")
            bias = self.get(layer, "attention_norm.bias")
            inputs = [layer_norm(x, gain, bias) for x in hidden]
            memory, compressed = before.memory[layer], before.compressed[layer]
            mixed, queries, received = self.attention(layer, inputs, memory, compressed)
            hidden = [self.feedforward(layer, x + y) for x, y in zip(hidden, mixed, strict=True)]
            joined = memory + [x.detach() for x in inputs]
            overflow = max(0, len(joined) - config.memory)
            evicted, after.memory[layer] = joined[:overflow], joined[overflow:]
            after.compressed[layer] = compressed
            if evicted and config.compressed:
                new = self.compress(layer, joined, overflow, compressed, received)
                after.compressed[layer] = (compressed + new)[-config.compressed :]
                part, elements = self.auxiliary(layer, queries, evicted, new)
                loss, count = loss + part, count + elements
        gain, bias = self.parameters["norm.weight"], self.parameters["norm.bias"]
        weight, offset = self.parameters["head.weight"], self.parameters["head.bias"]
        logits = torch.stack([weight @ layer_norm(x, gain, bias) + offset for x in hidden])
        return LaneResult(logits, after, loss, count)

    def feedforward(self, layer: int, x_D: Tensor) -> Tensor:
        gain = self.get(layer, "feedforward_norm.weight")
        bias = self.get(layer, "feedforward_norm.bias")
        inner = self.get(layer, "feedforward.inner.weight") @ layer_norm(x_D, gain, bias)
        inner = inner + self.get(layer, "feedforward.inner.bias")
        if self.config.activation == "relu":
            active = torch.clamp(inner, min=0)
        else:
            active = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        outer = self.get(layer, "feedforward.outer.weight") @ active
        return x_D + outer + self.get(layer, "feedforward.outer.bias")


def live_slots(state: MemoryState, lane: int) -> LaneMemory:
    """The live vectors of one lane of a MemoryState, as the oracle keeps them."""
    m, c = int(state.memory_count[lane]), int(state.compressed_count[lane])
    return LaneMemory(
        [list(layer[lane, layer.shape[1] - m :]) for layer in state.memory],
        [list(layer[lane, layer.shape[1] - c :]) for layer in state.compressed],
    )
