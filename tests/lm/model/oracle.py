"""The Compressive Transformer written as loops over lanes, heads, queries and keys.

Memory is a Python list of the vectors that are live, so there are no masks, no shifts and no fixed
shapes to get wrong. Slow and float64; every fast path is compared with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from tests.lm.model.naive_compression import NAIVE, Leaving, Slots
from tests.lm.model.naive_scores import Pair, relative_score, rotary_score


@dataclass
class LaneMemory:
    """Per layer, the live vectors of memory and of compressed memory, oldest first."""

    memory: list[Slots]
    compressed: list[Slots]
    first: list[Slots]
    """Per layer, the first vectors that were stored, which become sinks."""
    read: int = 0
    """Tokens read."""
    filters: list[Slots] = field(default_factory=list)
    """Per layer, what the filters hold, if there are any: one vector."""
    written: list[Slots] = field(default_factory=list)
    """Per layer, all that was ever written to the filters."""

    def detached(self) -> "LaneMemory":
        def cut(layers: list[Slots]) -> list[Slots]:
            return [[slot.detach() for slot in layer] for layer in layers]

        names = ("memory", "compressed", "first", "filters", "written")
        return replace(self, **{name: cut(getattr(self, name)) for name in names})


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
        [[] for _ in layers],
        written=[[] for _ in layers],
    )


def layer_norm(x_D: Tensor, gain_D: Tensor, bias_D: Tensor, epsilon: float) -> Tensor:
    mean = x_D.mean()
    variance = ((x_D - mean) ** 2).mean()
    return (x_D - mean) / torch.sqrt(variance + epsilon) * gain_D + bias_D


def rms_norm(x_D: Tensor, gain_D: Tensor, epsilon: float) -> Tensor:
    return x_D / torch.sqrt((x_D**2).mean() + epsilon) * gain_D


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


Map = Callable[[int, Tensor], Tensor]
"""Of a head's number and an input vector."""


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

    def maps(self, layer: int, constant: bool = False) -> tuple[Map, Map, Map]:
        """Queries, keys and values of a head of queries: functions of its number and an input."""
        config, d = self.config, self.config.head_width
        stored, shared = config.stored_heads, config.heads // config.stored_heads
        sizes = [config.heads * d, stored * d, stored * d]
        named = {name: self.get(layer, name) for name in self.of_attention(layer)}
        if constant:
            named = {name: weight.detach() for name, weight in named.items()}
        weights = named["attention.query_key_value.weight"].split(sizes)
        bias = named.get("attention.query_key_value.bias", torch.zeros(sum(sizes))).split(sizes)

        def apply(part: int, h: int, x_D: Tensor) -> Tensor:
            head = h if part == 0 else h // shared
            y = self.head(weights[part], head) @ x_D + bias[part][head * d : (head + 1) * d]
            if config.query_key_norm and part < 2:
                gain = named[f"attention.{('query', 'key')[part]}_norm.weight"]
                y = rms_norm(y, gain, config.norm_epsilon)
            return y / math.sqrt(d) if part == 0 else y

        return partial(apply, 0), partial(apply, 1), partial(apply, 2)

    def of_attention(self, layer: int) -> list[str]:
        prefix = f"blocks.{layer}."
        names = [name.removeprefix(prefix) for name in self.parameters if name.startswith(prefix)]
        return [name for name in names if name.startswith("attention.")]

    def sinks(self, layer: int, before: LaneMemory) -> Slots:
        """Slots at the far end: learnt, or the first tokens that memory has lost."""
        config = self.config.at(layer)
        if config.sinks and config.sink == "learnt":
            return list(self.get(layer, "pinned.0.weight"))
        return before.first[layer][: max(0, before.read - config.memory)]

    def attention(
        self, layer: int, inputs: Slots, memory: Slots, compressed: Slots, sinks: Slots
    ) -> tuple[Slots, list[Slots], list[float]]:
        """Outputs per token, the scaled queries per head and token, and the average attention that
        each slot of memory and each token received over heads and the queries that see it.
        """
        config = self.config
        score = relative_score if config.positions == "relative" else rotary_score
        make_query, make_key, make_value = self.maps(layer)
        outputs_per_head, queries_per_head = [], []
        received = [0.0] * (len(memory) + len(inputs))
        for h in range(config.heads):
            reads, queries = [], []
            for i, x in enumerate(inputs):
                query, recent = make_query(h, x), memory + inputs[: i + 1]
                scores, values = [], []
                for kind, slots in (("sink", sinks), ("compressed", compressed), ("own", recent)):
                    # Sinks are counted from the first, whichever are live.
                    count = config.sinks if kind == "sink" else len(slots)
                    for j, slot in enumerate(slots):
                        pair = Pair(query, make_key(h, slot), i, count - 1 - j, kind)
                        scores.append(score(self, layer, h, pair))
                        if config.proportional_attention and kind == "compressed":
                            windows = math.ceil(config.segment / config.rate)
                            scores[-1] = scores[-1] + math.log(config.segment / windows)
                        values.append(make_value(h, slot))
                weights = softmax(scores)
                reads.append(weighted_sum(weights, values))
                for j in range(len(recent)):
                    viewers = len(inputs) - max(0, j - len(memory))
                    share = float(weights[len(sinks) + len(compressed) + j].detach())
                    received[j] += share / (viewers * config.heads)
                queries.append(query)
            outputs_per_head.append(reads)
            queries_per_head.append(queries)
        output = self.get(layer, "attention.output.weight")
        bias = self.parameters.get(f"blocks.{layer}.attention.output.bias", 0.0)
        mixed = [
            output @ torch.cat([outputs_per_head[h][i] for h in range(config.heads)]) + bias
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
        _, make_key, make_value = self.maps(layer, constant=True)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for h in range(self.config.heads):
            for query in queries[h]:
                fixed = query.detach()
                target = softmax_read(
                    [fixed @ make_key(h, slot) for slot in old],
                    [make_value(h, slot) for slot in old],
                ).detach()
                read = softmax_read(
                    [fixed @ make_key(h, slot) for slot in new],
                    [make_value(h, slot) for slot in new],
                )
                total = total + ((target - read) ** 2).sum()
                count += target.numel()
        return total, count

    def segment(self, tokens: list[int], before: LaneMemory, blank: bool = False) -> LaneResult:
        """One lane, one segment; blank: whose tokens are not seen."""
        config = self.config
        embedding = self.parameters["embedding.weight"]
        scale = config.embedding_scale or math.sqrt(config.width)
        hidden = [embedding[token] * scale * (not blank) for token in tokens]
        after = LaneMemory([], [], [], before.read + len(tokens))
        loss, count = torch.zeros((), dtype=torch.float64), 0
        for layer in range(config.layers):
            here = config.at(layer)
            memory, compressed = before.memory[layer], before.compressed[layer]
            inputs = [self.norm(layer, "attention_norm", x) for x in hidden]
            inputs = inputs if config.norm == "pre" else hidden
            if here.leaky_inputs:
                inputs = self.leaky(layer, inputs, memory)
            sinks = self.sinks(layer, before)
            mixed, queries, received = self.attention(layer, inputs, memory, compressed, sinks)
            if here.filters:
                filtered, heard = self.filtered(layer, inputs, before.written[layer])
                mixed = [x + y for x, (y, _) in zip(mixed, filtered, strict=True)]
            after.filters.append([filtered[-1][1]] if here.filters else [])
            after.written.append(heard if here.filters else [])
            hidden = [self.after_attention(layer, x, y) for x, y in zip(hidden, mixed, strict=True)]
            stored = [x.detach() for x in inputs]
            joined = memory + stored
            after.first.append(before.first[layer] if before.read else stored[: here.sinks])
            overflow = max(0, len(joined) - here.memory)
            evicted = joined[:overflow]
            after.memory.append(joined[overflow:])
            if evicted and here.compressed:
                new = self.compress(layer, joined, overflow, compressed, received)
                compressed = (compressed + new)[-here.compressed :]
                # A query can only have lost what came before it; without memory none has all.
                inside = max(0, overflow - len(memory))
                later = [own[inside:] or own for own in queries]
                part, elements = self.auxiliary(layer, later, evicted, new)
                loss, count = loss + part, count + elements
            after.compressed.append(compressed)
        if config.norm == "pre":
            hidden = [self.normed("norm", x) for x in hidden]
        weight, offset = self.parameters["head.weight"], self.parameters.get("head.bias", 0.0)
        logits = torch.stack([weight @ x + offset for x in hidden])
        return LaneResult(logits, after, loss, count)

    def leaky(self, layer: int, inputs: Slots, memory: Slots) -> Slots:
        share = torch.sigmoid(self.get(layer, "leaky.leak"))
        last, averaged = memory[-1] if memory else torch.zeros_like(inputs[0]), []
        for x in inputs:
            last = torch.sqrt(1 - share**2) * x + share * last
            averaged.append(last)
        return averaged

    def filtered(
        self, layer: int, inputs: Slots, written: Slots
    ) -> tuple[list[tuple[Tensor, Tensor]], Slots]:
        """Of each token what is read of the filters and what they hold: a sum over all that was
        ever written; and that, the new of it behind.
        """
        number, longest = self.config.filters, self.config.filter_longest
        powers = [1 - i / (number - 1) if number > 1 else 1.0 for i in range(number)]
        g = torch.tensor([math.exp(-(longest**-p)) for p in powers], dtype=torch.float64)
        write, read = (self.get(layer, f"filters.{name}.weight") for name in ("write", "read"))
        results = []
        for x in inputs:
            written = [*written, (write @ x).clamp(min=0)]
            terms = [g**age * u for age, u in enumerate(reversed(written))]
            level = torch.sqrt(1 - g * g) * sum(terms[1:], terms[0])
            results.append((read @ level, level))
        return results, written

    def norm(self, layer: int, name: str, x_D: Tensor) -> Tensor:
        return self.normed(f"blocks.{layer}.{name}", x_D)

    def normed(self, name: str, x_D: Tensor) -> Tensor:
        gain, epsilon = self.parameters[f"{name}.weight"], self.config.norm_epsilon
        if self.config.norm_kind == "rms":
            return rms_norm(x_D, gain, epsilon)
        return layer_norm(x_D, gain, self.parameters[f"{name}.bias"], epsilon)

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
        biases = [f"blocks.{layer}.feedforward.{part}.bias" for part in ("inner", "outer")]
        inner_bias, outer_bias = (self.parameters.get(name, 0.0) for name in biases)
        inner = inner + inner_bias
        value = torch.ones((), dtype=torch.float64)
        if kind in ("swiglu", "geglu"):
            inner, value = inner[: len(inner) // 2], inner[len(inner) // 2 :]
        if kind == "relu":
            active = torch.clamp(inner, min=0)
        elif kind in ("swiglu", "silu"):
            active = inner * torch.sigmoid(inner)
        else:
            active = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        outer = self.get(layer, "feedforward.outer.weight") @ (active * value)
        return outer + outer_bias


def live_slots(state: MemoryState, lane: int) -> LaneMemory:
    """The live vectors of one lane of a MemoryState, as the oracle keeps them."""
    m, c = int(state.memory_count[lane]), int(state.compressed_count[lane])
    return LaneMemory(
        [list(layer[lane, layer.shape[1] - m :]) for layer in state.memory],
        [list(layer[lane, layer.shape[1] - c :]) for layer in state.compressed],
        [list(layer["sinks"][lane]) if "sinks" in layer else [] for layer in state.layers],
        int(state.counts["read"][lane]) if "read" in state.counts else 0,
        [[layer["filters"][lane]] if "filters" in layer else [] for layer in state.layers],
    )
