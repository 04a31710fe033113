"""The Compressive Transformer written as loops over lanes, heads, queries and keys.

Memory is a Python list of the vectors that are live, so there are no masks, no shifts and no fixed
shapes to get wrong. Slow and float64; every fast path is compared with it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.model import CompressiveTransformer, MemoryState, ModelConfig
from tests.lm.model.naive_compression import NAIVE, Leaving, Slots
from tests.lm.model.naive_scores import Pair, relative_score, rotary_score


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


def empty_lane(config: ModelConfig) -> LaneMemory:
    """Memory at the start of a stream: nothing, or zero vectors at full size."""
    layers = [config.at(layer) for layer in range(config.layers)]
    attended = config.empty == "attended"
    zero = torch.zeros(config.width, dtype=torch.float64)
    return LaneMemory(
        [[zero] * layer.memory * attended for layer in layers],
        [[zero] * layer.compressed * attended for layer in layers],
    )


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
        config = self.config
        score = relative_score if config.positions == "relative" else rotary_score
        w_q, w_k, w_v = self.get(layer, "attention.query_key_value.weight").split(config.width)
        outputs_per_head, queries_per_head = [], []
        received = [0.0] * (len(memory) + len(inputs))
        for h in range(config.heads):
            q_rows, k_rows, v_rows = self.head(w_q, h), self.head(w_k, h), self.head(w_v, h)
            reads, queries = [], []
            for i, x in enumerate(inputs):
                query = (q_rows @ x) / math.sqrt(config.head_width)
                scores, values = [], []
                for j, slot in enumerate(compressed):
                    age = len(compressed) - 1 - j
                    scores.append(score(self, layer, h, Pair(query, k_rows @ slot, i, age, True)))
                    values.append(v_rows @ slot)
                recent = memory + inputs[: i + 1]
                for j, slot in enumerate(recent):
                    age = len(recent) - 1 - j
                    scores.append(score(self, layer, h, Pair(query, k_rows @ slot, i, age, False)))
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
        after = LaneMemory([], [])
        loss, count = torch.zeros((), dtype=torch.float64), 0
        for layer in range(config.layers):
            here = config.at(layer)
            memory, compressed = before.memory[layer], before.compressed[layer]
            inputs = [self.norm(layer, "attention_norm", x) for x in hidden]
            inputs = inputs if config.norm == "pre" else hidden
            mixed, queries, received = self.attention(layer, inputs, memory, compressed)
            hidden = [self.after_attention(layer, x, y) for x, y in zip(hidden, mixed, strict=True)]
            joined = memory + [x.detach() for x in inputs]
            overflow = max(0, len(joined) - here.memory)
            evicted = joined[:overflow]
            after.memory.append(joined[overflow:])
            if evicted and here.compressed:
                new = self.compress(layer, joined, overflow, compressed, received)
                compressed = (compressed + new)[-here.compressed :]
                part, elements = self.auxiliary(layer, queries, evicted, new)
                loss, count = loss + part, count + elements
            after.compressed.append(compressed)
        if config.norm == "pre":
            gain, bias = self.parameters["norm.weight"], self.parameters["norm.bias"]
            hidden = [layer_norm(x, gain, bias) for x in hidden]
        weight, offset = self.parameters["head.weight"], self.parameters["head.bias"]
        logits = torch.stack([weight @ x + offset for x in hidden])
        return LaneResult(logits, after, loss, count)

    def norm(self, layer: int, name: str, x_D: Tensor) -> Tensor:
        return layer_norm(x_D, self.get(layer, f"{name}.weight"), self.get(layer, f"{name}.bias"))

    def after_attention(self, layer: int, x_D: Tensor, y_D: Tensor) -> Tensor:
        if self.config.norm == "post":
            attended = self.norm(layer, "attention_norm", x_D + y_D)
            outer = self.feedforward(layer, attended)
            return self.norm(layer, "feedforward_norm", attended + outer)
        hidden = self.gate(layer, "attention_gate", x_D, y_D)
        outer = self.feedforward(layer, self.norm(layer, "feedforward_norm", hidden))
        return self.gate(layer, "feedforward_gate", hidden, outer)

    def gate(self, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
        """The formulas of GTrXL, with one matrix for each of their letters."""
        kind, width = self.config.gate, self.config.width

        def matrices(which: str) -> list[Tensor]:
            return list(self.get(layer, f"{name}.{which}.weight").split(width))

        if kind == "none":
            return x + y
        y = torch.clamp(y, min=0)
        if kind == "relu":
            return x + y
        if kind == "input":
            return torch.sigmoid(matrices("stream")[0] @ x) * x + y
        b = self.get(layer, f"{name}.bias")
        if kind == "output":
            return x + torch.sigmoid(matrices("stream")[0] @ x - b) * y
        if kind == "highway":
            z = torch.sigmoid(matrices("stream")[0] @ x + b)
            return z * x + (1 - z) * y
        if kind == "sigmoid_tanh":
            w, u = matrices("sublayer")
            return x + torch.sigmoid(w @ y - b) * torch.tanh(u @ y)
        w_r, w_z, w_h = matrices("sublayer")
        u_r, u_z = matrices("stream")
        r = torch.sigmoid(w_r @ y + u_r @ x)
        z = torch.sigmoid(w_z @ y + u_z @ x - b)
        h = torch.tanh(w_h @ y + matrices("reset_stream")[0] @ (r * x))
        return (1 - z) * x + z * h

    def feedforward(self, layer: int, x_D: Tensor) -> Tensor:
        kind = self.config.activation
        inner = self.get(layer, "feedforward.inner.weight") @ x_D
        inner = inner + self.get(layer, "feedforward.inner.bias")
        value = torch.ones((), dtype=torch.float64)
        if kind in ("swiglu", "geglu"):
            inner, value = inner[: len(inner) // 2], inner[len(inner) // 2 :]
        if kind == "relu":
            active = torch.clamp(inner, min=0)
        elif kind == "swiglu":
            active = inner * torch.sigmoid(inner)
        else:
            active = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        outer = self.get(layer, "feedforward.outer.weight") @ (active * value)
        return outer + self.get(layer, "feedforward.outer.bias")


def live_slots(state: MemoryState, lane: int) -> LaneMemory:
    """The live vectors of one lane of a MemoryState, as the oracle keeps them."""
    m, c = int(state.memory_count[lane]), int(state.compressed_count[lane])
    return LaneMemory(
        [list(layer[lane, layer.shape[1] - m :]) for layer in state.memory],
        [list(layer[lane, layer.shape[1] - c :]) for layer in state.compressed],
    )
