"""The Compressive Transformer written as loops over lanes, heads, queries and keys.

Memory is a Python list of the vectors that are live, so there are no masks, no shifts and no fixed
shapes to get wrong. Slow and float64; every fast path is compared with it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.model import CompressiveTransformer, MemoryState

Slots = list[Tensor]


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


def softmax_read(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    highest = max(float(s.detach()) for s in scores)
    weights = [torch.exp(s - highest) for s in scores]
    total = sum(weights[1:], weights[0])
    terms = [w / total * v for w, v in zip(weights, values, strict=True)]
    return sum(terms[1:], terms[0])


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
    ) -> tuple[Slots, list[Slots]]:
        """Outputs per token, and the scaled queries per head and token."""
        config, d = self.config, self.config.head_width
        width = config.width
        w_q, w_k, w_v = self.get(layer, "attention.query_key_value.weight").split(width)
        outputs_per_head, queries_per_head = [], []
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
                reads.append(softmax_read(scores, values))
                queries.append(query)
            outputs_per_head.append(reads)
            queries_per_head.append(queries)
        output = self.get(layer, "attention.output.weight")
        mixed = [
            output @ torch.cat([outputs_per_head[h][i] for h in range(config.heads)])
            for i in range(len(inputs))
        ]
        return mixed, queries_per_head

    def compress(self, layer: int, evicted: Slots) -> Slots:
        rate = self.config.rate
        missing = -len(evicted) % rate
        padded = [torch.zeros(self.config.width, dtype=torch.float64)] * missing + evicted
        weight = self.get(layer, "compression.projection.weight")
        return [
            weight @ torch.cat(padded[start : start + rate])
            for start in range(0, len(padded), rate)
        ]

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
            mixed, queries = self.attention(layer, inputs, memory, compressed)
            hidden = [self.feedforward(layer, x + y) for x, y in zip(hidden, mixed, strict=True)]
            joined = memory + [x.detach() for x in inputs]
            overflow = max(0, len(joined) - config.memory)
            evicted, after.memory[layer] = joined[:overflow], joined[overflow:]
            after.compressed[layer] = compressed
            if evicted and config.compressed:
                new = self.compress(layer, evicted)
                after.compressed[layer] = (compressed + new)[-config.compressed :]
                part, elements = self.reconstruction(layer, queries, evicted, new)
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
