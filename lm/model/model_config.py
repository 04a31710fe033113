"""The shape of a Compressive Transformer."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lm.model.ranges import RANGES, rising

CompressionName = Literal["conv", "dilated", "mean", "max", "most_used", "low_pass"]
ReconstructionName = Literal["attention", "auto_encoding", "none"]
Activation = Literal["relu", "gelu", "silu", "swiglu", "geglu"]
Initial = Literal["ours", "authors"]
GateName = Literal["none", "relu", "input", "output", "highway", "sigmoid_tanh", "gru"]

Backend = Literal["auto", "shift", "blocked", "fused"]

DILATIONS = (1, 2, 4)
"""Of the kernel-2 convolutions before the strided one in dilated compression (authors' code)."""
FUSED_WIDTH = 256
"""Widest queries that fused attention kernels take."""
GATED: frozenset[Activation] = frozenset({"swiglu", "geglu"})
"""Activations that multiply two halves of the hidden units."""
LEARNED: frozenset[CompressionName] = frozenset({"conv", "dilated"})
"""Compression functions with parameters."""
WINDOWED: frozenset[CompressionName] = frozenset({"conv", "dilated", "mean", "max"})
"""Compression functions with a kernel."""

BESIDE_MEMORY = ("memory_layers", "empty", "sinks", "sink", "memories", "leaky_inputs")
"""Settings that need memory; layers without it have their defaults."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of the model; lengths are in tokens or slots, per layer."""

    layers: int = 12
    """Number of layers l."""
    width: int = 512
    """Width d of the residual stream."""
    heads: int = 8
    """Attention heads of queries."""
    key_value_heads: int | None = None
    """Heads of keys and values, each shared by as many heads of queries; none: as many as these."""
    head_size: int | None = None
    """Dimensions of one head; none: width / heads."""
    query_key_norm: bool = False
    """RMS norm of each head's queries and keys, before their positions."""
    attention_bias: Literal["none", "inputs", "all"] = "none"
    """Biases of the maps to queries, keys and values (inputs), and of the output map too (all)."""
    feedforward: int = 2048
    """Hidden units of each feed-forward sub-layer."""
    activation: Activation = "relu"
    """Non-linearity of the feed-forward sub-layer; swiglu and geglu are gated and have a second
    input matrix."""
    feedforward_bias: bool = True
    """Biases of the feed-forward maps."""
    norm_kind: Literal["layer", "rms"] = "layer"
    """layer: layer norm; rms: division by the root mean square alone, without a bias."""
    norm_epsilon: float = 1e-5
    """What norms add to the variance or mean square."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm of each sub-layer's input (authors' code), or of the residual sum (paper,
    Algorithm 1). What enters memory is the input of attention, so post keeps it unnormed."""
    leaky_inputs: bool = False
    """Inputs of attention that are leaky averages over time, with a learnt share of the token
    before for each channel; memory carries them on (lm/model/layer.py)."""
    filters: int = 0
    """Leaky integrators P beside attention in each layer, with fixed time constants, which carry on
    what they hold from segment to segment (lm/model/filters.py); 0: none."""
    filter_longest: float = 4096.0
    """Longest time constant of the filters in tokens: the slowest one loses all but 1/e of what it
    holds in that time. The others are log-spaced down to one token."""
    gate: GateName = "none"
    """What joins a sub-layer to the residual stream: a sum, or a gate of GTrXL."""
    positions: Literal["relative", "rotary", "rotary_slots"] = "relative"
    """What a query knows of distances. relative: Transformer-XL's scheme, with a second one for
    compressed slots (authors' code); rotary: places in time, compressed slots at the centre of the
    tokens they were made from; rotary_slots: the same, but each compressed slot counts as one
    token."""
    rotary_base: float = 10000.0
    """Base of the wavelengths of rotary positions."""
    rotary_share: float = 1.0
    """Share of each head's dimensions, the first ones, that rotary positions turn."""
    rotary_scaling: Literal["none", "linear", "llama3"] = "none"
    """How wavelengths are stretched by rotary_factor: all alike (linear), or those that are long
    beside the rotary_trained length, with a smooth passage (llama3)."""
    rotary_factor: float = 1.0
    """See rotary_scaling."""
    rotary_trained: int | None = None
    """Tokens of context that the wavelengths were trained on; only with llama3."""
    rotary_bounds: tuple[float, float] = (1.0, 4.0)
    """Turns within that length below which wavelengths are stretched whole, and above which not;
    only with llama3."""
    max_positions: int | None = None
    """Tokens of context that the weights were trained on, which positions of memory and segment
    must not exceed; only with rotary positions. None: no bound is known."""
    proportional_attention: bool = False
    """Whether a compressed slot weighs as many tokens as are merged into one on average, n_s over
    the slots that a segment becomes: the logarithm of their number is added to its scores
    (proportional attention, Bolya et al., arXiv 2210.09461). Only with rotary positions; relative
    ones learn such a bias."""
    backend: Backend = "auto"
    """How attention is computed, which changes no result beyond rounding. auto: the fastest way
    that there is on a device; with relative positions shift (plain, any device), blocked (for
    caches of CPUs) or fused (by few sinusoids), with rotary ones fused. Scores and generation of a
    run go by auto."""
    sinusoids: int | None = None
    """Sinusoids that encode a relative distance; none: as many as the width (authors' code). Few
    (head width + 2 sinusoids up to 256) let fused kernels compute relative attention on a GPU."""
    segment: int = 512
    """Tokens n_s that are read at once, and after which memory moves."""
    memory: int = 512
    """Slots n_m of ordinary memory in each layer."""
    compressed: int = 512
    """Slots n_cm of compressed memory in each layer; 0 gives a Transformer-XL, whatever the
    settings of compression below say."""
    rate: int = 4
    """Compression rate c: this many old memory slots become one compressed slot. Where it does not
    divide the segment, the oldest slots of each segment make up a shorter window."""
    compression: CompressionName = "conv"
    """Compression function f_c; each layer has its own. conv, dilated: convolutions that
    `reconstruction` trains; mean, max: pooling; most_used: the slots that were attended to most;
    low_pass: leaky integrators with fixed time constants."""
    extra_kernel: int = 0
    """Newer slots that each window of a convolution or pooling reads beyond its rate."""
    compression_initial: Literal["random", "mean"] = "random"
    """What a convolution begins as. random: small weights, like other maps; mean: the mean of its
    window's live slots, to which it adds a map that begins at zero (for trained models)."""
    compression_rank: int | None = None
    """Weights of compression conv that begins as the mean. None: all of them, rate x width^2 a
    layer; 0: one for each slot of a window and channel; more: these and a map of that rank, another
    (rate + 1) x width for each."""
    reconstruction: ReconstructionName = "attention"
    """Loss that trains the compression function. attention: what the segment would have read from
    the old block; auto_encoding: the old block itself, through a decoder; none: only the likelihood
    of later segments, where training unrolls several in one graph."""
    sinks: int = 0
    """Slots at the far end, before compressed memory, that stay visible for ever: many models rest
    their attention there (attention sinks, Xiao et al., arXiv 2309.17453)."""
    sink: Literal["first_tokens", "learnt"] = "first_tokens"
    """What they hold: the first tokens that a lane has read, from when they leave memory on; or
    learnt vectors."""
    memories: tuple[str, ...] = ()
    """Further kinds of memory by their names in lm/model/pinned.py."""
    memory_layers: tuple[int, ...] | None = None
    """Layers, counted from 0, that have memory; the others read their segment only. None: all."""
    empty: Literal["masked", "attended"] = "masked"
    """What a query sees of slots that nothing has filled yet: nothing, or zero vectors (authors'
    code)."""
    tied: bool = True
    """Share the words' vectors between the token embedding and the output projection."""
    embedding_scale: float | None = None
    """What token embeddings are multiplied by; none: the root of the width."""
    head_bias: bool = True
    """Biases of the output projection."""
    cutoffs: tuple[int, ...] | None = None
    """Adaptive input and softmax: ids at which a cluster of rarer words begins, for vocabularies
    ordered from frequent to rare. None: one matrix for all words."""
    cluster_divisor: int = 4
    """How many times smaller the words' vectors become from one cluster to the next."""
    head_chunk: int | None = None
    """Tokens whose logits are held at once in training, for large vocabularies; none: all."""
    initial: Initial = "ours"
    """What weights begin with; see CompressiveTransformer.initialise. authors: what the authors'
    code and the defaults of its libraries make of it."""
    dropout: float = 0.0
    """Share dropped in training of embeddings, position encodings and sub-layer outputs."""
    attention_dropout: float = 0.0
    """Share of the attention weights that is dropped in training."""

    def __post_init__(self) -> None:
        for name, (words, holds) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"model.{name} must be {words}, not {value}")
        positions = self._relative if self.positions == "relative" else self._rotary
        parts = (self._heads, positions, self._filters, self._memory, self._compression)
        for wrong in (*parts, self._vocabulary, self._backend):
            if why := wrong():
                raise ValueError(f"model.{why}")

    # What a setting must be beside others; each gives the first complaint, after "model.".

    def _heads(self) -> str | None:
        heads, stored = self.heads, self.stored_heads
        if self.head_size is None and self.width % heads:
            return f"width must be a multiple of model.heads, not {self.width} over {heads}"
        if stored < 1 or heads % stored:
            return f"heads must be a multiple of model.key_value_heads, not {heads} over {stored}"
        if self.norm == "post" and self.gate != "none":
            return "gate needs a residual stream that no norm interrupts; set model.norm to pre"
        return None

    def _relative(self) -> str | None:
        for name in (n for n in asdict(self) if n.startswith("rotary_") or n == "max_positions"):
            if getattr(self, name) != getattr(ModelConfig, name):
                return f"{name} has no effect with model.positions relative"
        if self.proportional_attention:
            return "proportional_attention needs rotary positions; relative ones learn such a bias"
        if self.encoded < 2 or self.encoded % 2:
            name = "width" if self.sinusoids is None else "sinusoids"
            return f"{name} must be even (sines and cosines of distances), not {self.encoded}"
        return None

    def _rotary(self) -> str | None:
        turned, factor, scaling = self.turned, self.rotary_factor, self.rotary_scaling
        if self.sinusoids is not None:
            return f"sinusoids has no effect with model.positions {self.positions}; set it to null"
        if turned % 2 or not 0 < turned <= self.head_width:
            why = "rotary_share of a head's dimensions must be even for rotary positions, not "
            why += f"{turned} of {self.head_width}"
            return f"{why}: change it, model.heads or model.head_size"
        if factor < 1 or (scaling == "none" and factor != 1):
            why = "rotary_factor must be at least 1 and needs a model.rotary_scaling, not "
            return f"{why}{factor} with {scaling}"
        if (self.rotary_trained is not None) != (scaling == "llama3"):
            return f"rotary_trained belongs to model.rotary_scaling llama3, not {scaling}"
        if not 0 < self.rotary_bounds[0] < self.rotary_bounds[1]:
            return f"rotary_bounds must rise from 0, not {self.rotary_bounds}"
        if self.max_positions is not None and self.span > self.max_positions:
            why = f"max_positions is {self.max_positions:,}, the context that the weights were "
            why += (
                f"trained on, but segment, memory, compressed x rate and sinks span {self.span:,}"
            )
            return f"{why}: lower one of these, or set model.max_positions to null to go beyond"
        return None

    def _filters(self) -> str | None:
        if not self.filters and self.filter_longest != ModelConfig.filter_longest:
            return "filter_longest has no effect with model.filters 0"
        return None

    def _memory(self) -> str | None:
        first, layers, last = self.sink == "first_tokens", self.memory_layers, self.layers - 1
        if not self.slots and self.empty == "attended":
            return "empty has no effect without memory; set it to masked"
        if not self.sinks and not first:
            return "sink has no effect with model.sinks 0"
        if self.sinks > self.segment and first:
            where = f"the first segment of {self.segment} tokens"
            return f"sinks must fit into {where}, not {self.sinks}"
        if not self.slots and (self.sinks or self.memories):
            return "sinks and model.memories stand before a memory; give it slots"
        if self.leaky_inputs and not self.memory:
            return "leaky_inputs go on from the newest slot of memory; set model.memory above 0"
        if layers is None:
            return None
        if not self.slots:
            return "memory_layers has no effect without memory; set it to null"
        if not layers or not rising(layers) or not 0 <= layers[0] <= layers[-1] <= last:
            why = f"memory_layers must name some of the layers 0 to {last}, in order and once each"
            return f"{why}, not {list(layers)}"
        return None

    def _compression(self) -> str | None:
        name, overlap = self.compression, self.overlap
        if not self.compressed:
            return None
        if name not in LEARNED and self.reconstruction != "none":
            return f"compression {name} has nothing to learn; set model.reconstruction to none"
        if self.extra_kernel and name not in WINDOWED:
            return f"compression {name} has no kernel; set model.extra_kernel to 0"
        if self.compression_initial != "random" and name not in LEARNED:
            return (
                f"compression_initial has no effect with model.compression {name}; set it to random"
            )
        if self.compression_rank is not None and (
            name != "conv" or self.compression_initial != "mean"
        ):
            return (
                "compression_rank needs model.compression conv and model.compression_initial mean"
            )
        if self.proportional_attention and name == "most_used":
            return (
                "proportional_attention is for slots that are merged; most_used keeps single ones, "
                "set it to false"
            )
        if overlap > self.memory:
            why = f"memory must hold the {overlap} slots that windows of compression {name} reach "
            return f"{why}beyond those that leave, not {self.memory}"
        return None

    def _vocabulary(self) -> str | None:
        cuts, divisor = self.cutoffs, self.cluster_divisor
        if cuts is None:
            unused = divisor != ModelConfig.cluster_divisor
            return "cluster_divisor has no effect without model.cutoffs" if unused else None
        if not self.head_bias:
            return "head_bias must be true with model.cutoffs"
        if not rising(cuts) or min(cuts, default=1) < 1:
            return f"cutoffs must rise from at least 1, not {list(cuts)}"
        if self.cluster_width(len(cuts)) < 1:
            why = f"cluster_divisor must leave each cluster a dimension of the {self.width}, not "
            return f"{why}{divisor} with {len(cuts)} cut-offs"
        return None

    def _backend(self) -> str | None:
        relative, fused, why = self.positions == "relative", self.backend == "fused", ""
        if not relative and self.backend not in ("auto", "fused"):
            why = f"is not for {self.positions} positions"
        elif fused and self.compressed and self.compression == "most_used":
            why = "forms no weights of attention, which model.compression most_used asks for"
        elif fused and relative and self.fused_width > FUSED_WIDTH:
            why = f"takes queries of at most {FUSED_WIDTH} dimensions, with those of "
            why += f"model.sinusoids, not {self.fused_width}"
        elif fused and relative and self.dropout:
            why = "cannot drop encoded distances, as model.dropout asks"
        return f"backend {self.backend} {why}; set it to auto" if why else None

    def cluster_width(self, cluster: int) -> int:
        """Dimensions of the words' vectors in a cluster of the adaptive vocabulary."""
        return self.width // self.cluster_divisor**cluster

    def shape(self) -> dict[str, Any]:
        """All settings that decide what the model computes: all but how it is computed."""
        return {name: value for name, value in asdict(self).items() if name != "backend"}

    def at(self, layer: int) -> "ModelConfig":
        """The config as one layer sees it: with memory or without."""
        if self.memory_layers is None or layer in self.memory_layers:
            return self
        others = {name: getattr(ModelConfig, name) for name in BESIDE_MEMORY}
        return replace(self, memory=0, compressed=0, **others)

    @property
    def head_width(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def stored_heads(self) -> int:
        """Heads K of keys and values."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def turned(self) -> int:
        """Dimensions of a head that rotary positions turn."""
        return round(self.head_width * self.rotary_share)

    @property
    def encoded(self) -> int:
        """Sinusoids P that encode a relative distance."""
        return self.width if self.sinusoids is None else self.sinusoids

    @property
    def fused_width(self) -> int:
        """Dimensions of the queries of fused relative attention."""
        return self.head_width + (2 if self.compressed else 1) * self.encoded

    @property
    def slots(self) -> int:
        """Slots of both memories together."""
        return self.compressed + self.memory

    @property
    def windows(self) -> int:
        """Slots that each segment adds to compressed memory: n_s / c, rounded up."""
        return -(-self.segment // self.rate)

    @property
    def overlap(self) -> int:
        """Slots that the last window of compression reads beyond those that leave memory."""
        if not self.compressed:
            return 0
        return self.extra_kernel + (sum(DILATIONS) if self.compression == "dilated" else 0)

    @property
    def reconstructing(self) -> int:
        """Queries at the end of a segment that the attention reconstruction is taken over.

        The last n_m come after every slot that is compressed (authors' code); without memory none
        does, and all are taken.
        """
        return min(self.memory, self.segment) or self.segment

    @property
    def span(self) -> int:
        """Tokens between the farthest slot with a position and the newest token, both included:
        n_s + n_m + c n_cm and the sinks, with rotary_slots n_cm alone.
        """
        far: float = self.compressed
        if self.positions != "rotary_slots":
            far *= self.segment / self.windows
        return self.segment + self.memory + math.ceil(far) + self.sinks

    @property
    def range(self) -> int:
        """Tokens that can influence a prediction: n_s + l (n_m + c n_cm) (paper, section 3.1); with
        filters at least the longest time constant, at which 1/e is left.
        """
        compressed = self.compressed * self.segment // self.windows
        layers = self.layers if self.memory_layers is None else len(self.memory_layers)
        attended = layers * (self.memory + compressed) + self.segment
        return max(attended, self.filtered)

    @property
    def filtered(self) -> int:
        """The longest time constant of the filters in tokens, rounded up; 0 without."""
        return math.ceil(self.filter_longest) if self.filters else 0
