"""The Compressive Transformer (Rae et al., arXiv 1911.05507).

Shapes: B lanes, T tokens of a segment, M memory slots, C compressed slots, D width, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.common.requirements import require_memory
from lm.model.adaptive import AdaptiveEmbedding, AdaptiveHead
from lm.model.attention.base import joined
from lm.model.components import Embedding, Head, Linear, VocabularyHead, make_norm
from lm.model.compression import Compression, LossSum, stack_losses
from lm.model.filters import FilterBank
from lm.model.layer import Block
from lm.model.memory import MemoryState, View, advance_counts, live_mask
from lm.model.model_config import LEARNED, ModelConfig
from lm.model.pinned import LearntSinks

LARGEST = 1 << 60
"""Bytes beyond which not even shapes can be computed with."""
TRUNCATED = 0.87962566103423978
"""Deviation that is left of a standard normal variable within 2."""
LAYER = 30_000
"""Bytes of Python's own that a layer's modules take at least, beside the weights."""


@dataclass(frozen=True)
class SegmentOutput:
    """What the model makes of one segment."""

    predictions: Tensor
    """Logits [B, T, V], or, with targets, their negative log-likelihoods [B, T] in nats."""
    memory: MemoryState
    """Memory after the segment; still part of the graph: detach it where back-propagation ends."""
    auxiliary: dict[str, LossSum] = field(default_factory=dict)
    """Named losses to be minimised beside the likelihood, as sums and counts."""
    by_layer: dict[str, LossSum] = field(default_factory=dict)
    """What is known by layer, [l] each and without gradient, to be looked at: the same before the
    sum over layers, and relative errors, whose counts are sums of squares."""


class SegmentStates(NamedTuple):
    """What the model makes of one segment before its head."""

    hidden_BTD: Tensor
    """Final hidden states."""
    memory: MemoryState
    auxiliary: dict[str, LossSum]
    by_layer: dict[str, LossSum]


class CompressiveTransformer(nn.Module):
    """A Transformer with memory and compressed memory in every layer."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        require_weights(config, vocabulary)
        self.config = config
        self.vocabulary = vocabulary
        self.embedding, head = vocabulary_ends(config, vocabulary)
        self.blocks = nn.ModuleList(Block(config.at(layer)) for layer in range(config.layers))
        self.norm = make_norm(config) if config.norm == "pre" else nn.Identity()
        self.head = head
        self.initialise()

    def initialise(self) -> None:
        """Set every parameter.

        | parameter | value |
        |---|---|
        | linear weights | normal of variance 2 / (sqrt(layers) fan-in), truncated at 2 deviations |
        | embedding, head | truncated normal, variance 1 / D |
        | biases | 0; of gates, what keeps the layer close to the identity |
        | norms | gain 1, bias 0 (torch's default) |
        | convolutions that begin as the mean | 0 (of low rank: the outer factor) |
        | maps that read filters | 0 |
        | learnt sinks | truncated normal, variance 1, as what norms make |

        With initial authors, as in their code, what truncation takes is made up for, so that linear
        weights keep that variance; but those of attention's output and of compression have the
        default of its library, variance 1 / fan-in before truncation whatever the depth, and the
        biases of content and positions are uniform (Glorot's, of a tensor [1, H, 1, d]).
        """
        authors = self.config.initial == "authors"
        scale = 2.0 / math.sqrt(self.config.layers) / (TRUNCATED**2 if authors else 1.0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _truncated_normal(module.weight, math.sqrt(scale / module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Embedding | Head):
                _truncated_normal(module.weight, self.config.width**-0.5)
            elif isinstance(module, LearntSinks):
                _truncated_normal(module.weight, 1.0)
            elif isinstance(module, nn.ParameterList):
                for words in module:
                    _truncated_normal(words, self.config.width**-0.5)
        if authors:
            for block in self.layers:
                _begin_as_authors(block)
        for module in self.modules():
            if isinstance(module, Compression):
                module.begin()
            elif isinstance(module, FilterBank):
                nn.init.zeros_(module.read.weight)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def empty_memory(self, lanes: int) -> MemoryState:
        """Memory of `lanes` lanes that have read nothing."""
        weight = self.embedding.weight
        both = MemoryState.empty(self.config, lanes, weight.device, weight.dtype)
        pairs = zip(self.layers, both.layers, strict=True)
        memory = MemoryState(tuple(block.empty(layer) for block, layer in pairs), both.counts)
        if any(block.counts_read for block in self.layers):
            return memory.with_counts(read=torch.zeros_like(memory.memory_count))
        return memory

    def forward(
        self,
        tokens_BT: Tensor,
        memory: MemoryState,
        targets_BT: Tensor | None = None,
        losses: bool | None = None,
    ) -> SegmentOutput:
        """Read one whole segment after `memory` and move it into memory.

        Args:
            tokens_BT: the segment.
            memory: what was read before.
            targets_BT: the tokens to predict; none: logits are returned.
            losses: whether auxiliary losses are computed; none: in training only.

        Raises:
            ValueError: the segment is not config.segment tokens long, or memory keeps keys and
                values, which belong to fixed weights, in training.
        """
        states = self.read_segment(tokens_BT, memory, losses)
        return SegmentOutput(self.head(states.hidden_BTD, targets_BT), *states[1:])

    def read_segment(
        self,
        tokens_BT: Tensor,
        memory: MemoryState,
        losses: bool | None = None,
        view: View | None = None,
    ) -> SegmentStates:
        """`forward` without the head; `view`: what lanes may see, none: everything."""
        config = self.config
        if tokens_BT.shape[1] != config.segment:
            raise ValueError(
                f"a segment has model.segment = {config.segment} tokens, not {tokens_BT.shape[1]}"
            )
        if memory.kept and self.training:
            raise ValueError("memory with kept keys and values is for model.eval() only")
        hidden = F.dropout(self.embedding(tokens_BT), config.dropout, self.training)
        seen = memory
        if view is not None:
            hidden = hidden.masked_fill(view.blank_B[:, None, None], 0.0)
            seen = memory.seen(view)
        if config.empty == "attended":
            # What is not seen is a zero slot, as what is empty.
            memory = seen = self.readable(seen)
        counts = advance_counts(config, memory, tokens_BT.shape[1])
        if view is not None:
            counts = counts.viewed(view)
        live = self.live(seen)
        losses = self.training if losses is None else losses
        layers, reconstructions, penalties = [], [], []
        for index, block in enumerate(self.layers):
            step = block(hidden, memory.layers[index], live, counts, losses)
            hidden = step.hidden_BTD
            layers.append(step.memory)
            reconstructions.append(step.reconstruction)
            if step.penalty is not None:
                penalties.append(step.penalty)
        after = MemoryState(tuple(layers), counts.after)
        auxiliary, by_layer = {}, {}
        every = stack_losses([part and part.loss for part in reconstructions])
        relative = stack_losses([part and part.relative for part in reconstructions])
        if every is not None and relative is not None:
            if config.reconstruction != "none":
                auxiliary["reconstruction"] = LossSum(every.total.sum(), every.elements.sum())
            by_layer["reconstruction"] = LossSum(every.total.detach(), every.elements)
            by_layer["reconstruction_relative"] = relative
        if penalties:
            # One a forward pass, so that its mean over passes and ranks is the penalty itself.
            total = torch.stack(penalties).sum()
            auxiliary["penalty"] = LossSum(total, torch.ones_like(total))
        return SegmentStates(self.norm(hidden), after, auxiliary, by_layer)

    def keep_keys(self, memory: MemoryState) -> MemoryState:
        """The same memory with the keys and values that the present weights give it, which all
        memory that follows from it keeps too. Reading is faster then: slots are projected once.
        """
        if memory.kept:
            return memory
        memory = self.readable(memory)
        pairs = zip(self.layers, memory.layers, strict=True)
        kept = [joined(block.stored_slots(layer)) for block, layer in pairs]
        return memory.with_named(
            keys=tuple(key.contiguous() for key, _ in kept),
            values=tuple(value.contiguous() for _, value in kept),
        )

    def readable(self, memory: MemoryState) -> MemoryState:
        """Memory as the layers read it."""
        if self.config.empty != "attended":
            return memory
        if not memory.kept or self.config.attention_bias == "none":
            return memory.zero_filled(self.config)
        # The maps' biases are what they make of a slot of zeros.
        slot_11D = self.embedding.weight.new_zeros(1, 1, self.config.width)
        projected = (block.attention.project(slot_11D)[0] for block in self.layers)
        kept = [{"keys": slots.key_BKnd, "values": slots.value_BKnd} for slots in projected]
        return memory.zero_filled(self.config, kept)

    def live(self, memory: MemoryState) -> Tensor:
        """[B, k + C + M] bool: the slots of [pinned ; compressed ; memory] that hold something, of
        layers with memory.
        """
        pinned = next((block.pinned_memories for block in self.layers if block.pinned), [])
        return torch.cat(
            [
                *(part.live(memory.counts) for part in pinned),
                live_mask(memory.compressed_count, self.config.compressed),
                live_mask(memory.memory_count, self.config.memory),
            ],
            dim=1,
        )


def vocabulary_ends(
    config: ModelConfig, vocabulary: int
) -> tuple[Embedding | AdaptiveEmbedding, VocabularyHead]:
    """The token embedding and the head, which may share their words' vectors."""
    if config.cutoffs is None:
        plain = Embedding(config, vocabulary)
        return plain, Head(config, vocabulary, plain.weight if config.tied else None)
    adaptive = AdaptiveEmbedding(config, vocabulary)
    return adaptive, AdaptiveHead(config, vocabulary, adaptive.clusters if config.tied else None)


def require_weights(config: ModelConfig, vocabulary: int) -> None:
    """Refuse a model that no machine holds, before a part of it is made.

    Raises:
        ValueError: the weights of its largest matrices alone do not fit into memory, or where only
            shapes are made (device meta) into a number.
    """
    stored = 2 * (config.heads + config.stored_heads) * config.head_width
    layer = config.width * (stored + 2 * config.feedforward)
    layer += 2 * config.width * config.filters
    if config.compressed and config.compression in LEARNED:
        out = config.width if config.compression_rank is None else config.compression_rank + 1
        layer += (config.rate + config.extra_kernel) * config.width * out
    words = vocabulary * config.width if config.cutoffs is None else vocabulary
    numbers = config.layers * layer + words
    needed = 4 * numbers + config.layers * LAYER
    what = f"a model of {config.layers:,} layers of width {config.width:,} (model.layers, width, "
    what += "feedforward, heads, filters, rate and the vocabulary's size)"
    if torch.get_default_device().type != "meta":
        require_memory(needed, what)
    require_memory(config.layers * LAYER, what)
    if needed >= LARGEST:
        raise ValueError(f"{what} is larger than any machine")


def _begin_as_authors(block: Block) -> None:
    """What differs in a layer with initial authors, beside the scale of its linear weights."""
    default = [block.attention.output]
    if block.config.compressed:
        default += [part for part in block.compression.modules() if isinstance(part, Linear)]
    for linear in default:
        _truncated_normal(linear.weight, linear.in_features**-0.5)
    heads, width = block.config.heads, block.config.head_width
    limit = math.sqrt(6.0 / (heads + heads * width))
    for name, parameter in block.attention.named_parameters(recurse=False):
        assert name.endswith("_bias")
        nn.init.uniform_(parameter, -limit, limit)


def _truncated_normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
