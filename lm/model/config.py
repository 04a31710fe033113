"""The shape of a Compressive Transformer."""

from dataclasses import dataclass, replace
from typing import Literal

CompressionName = Literal["conv", "dilated", "mean", "max", "most_used", "low_pass"]
ReconstructionName = Literal["attention", "auto_encoding", "none"]
Activation = Literal["relu", "gelu", "swiglu", "geglu"]
GateName = Literal["none", "relu", "input", "output", "highway", "sigmoid_tanh", "gru"]

DILATIONS = (1, 2, 4)
"""Of the kernel-2 convolutions before the strided one in dilated compression (authors' code)."""
GATED: frozenset[Activation] = frozenset({"swiglu", "geglu"})
"""Activations that multiply two halves of the hidden units."""
LEARNED: frozenset[CompressionName] = frozenset({"conv", "dilated"})
"""Compression functions with parameters."""
WINDOWED: frozenset[CompressionName] = frozenset({"conv", "dilated", "mean", "max"})
"""Compression functions with a kernel."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of the model; lengths are in tokens or slots, per layer."""

    layers: int = 12
    """Number of layers l."""
    width: int = 512
    """Width d of the residual stream."""
    heads: int = 8
    """Attention heads; each has width / heads dimensions."""
    feedforward: int = 2048
    """Hidden units of each feed-forward sub-layer."""
    activation: Activation = "relu"
    """Non-linearity of the feed-forward sub-layer; swiglu and geglu are gated and have a second
    input matrix."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm of each sub-layer's input (authors' code), or of the residual sum (paper,
    Algorithm 1). What enters memory is the input of attention, so post keeps it unnormed."""
    gate: GateName = "none"
    """What joins a sub-layer to the residual stream: a sum, or a gate of GTrXL."""
    positions: Literal["relative", "rotary", "rotary_slots"] = "relative"
    """What a query knows of distances. relative: Transformer-XL's scheme, with a second one for
    compressed slots (authors' code); rotary: places in time, compressed slots at the centre of the
    tokens they were made from; rotary_slots: the same, but each compressed slot counts as one
    token."""
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
    reconstruction: ReconstructionName = "attention"
    """Loss that trains the compression function. attention: what the segment would have read from
    the old block; auto_encoding: the old block itself, through a decoder; none: only the likelihood
    of later segments, where training unrolls several in one graph."""
    memory_layers: tuple[int, ...] | None = None
    """Layers, counted from 0, that have memory; the others read their segment only. None: all."""
    empty: Literal["masked", "attended"] = "masked"
    """What a query sees of slots that nothing has filled yet: nothing, or zero vectors (authors'
    code)."""
    tied: bool = True
    """Share the words' vectors between the token embedding and the output projection."""
    cutoffs: tuple[int, ...] | None = None
    """Adaptive input and softmax: ids at which a cluster of rarer words begins, for vocabularies
    ordered from frequent to rare. None: one matrix for all words."""
    cluster_divisor: int = 4
    """How many times smaller the words' vectors become from one cluster to the next."""
    head_chunk: int | None = None
    """Tokens whose logits are held at once in training, for large vocabularies; none: all."""
    dropout: float = 0.0
    """Share dropped in training of embeddings, position encodings and sub-layer outputs."""
    attention_dropout: float = 0.0
    """Share of the attention weights that is dropped in training."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "feedforward", "segment", "rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("memory", "compressed"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be at least 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"model.width must be a multiple of model.heads, not {self.width} over {self.heads}"
            )
        self._check_positions()
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"model.{name} must be at least 0 and below 1, not {getattr(self, name)}"
                )
        if self.norm == "post" and self.gate != "none":
            raise ValueError(
                "model.gate needs a residual stream that no norm interrupts; set model.norm to pre"
            )
        if not self.slots and self.empty == "attended":
            raise ValueError("model.empty has no effect without memory; set it to masked")
        if self.memory_layers is not None:
            self._check_memory_layers(self.memory_layers)
        if self.compressed:
            self._check_compression()
        self._check_vocabulary()

    def _check_vocabulary(self) -> None:
        if self.head_chunk is not None and self.head_chunk < 1:
            raise ValueError(f"model.head_chunk must be at least 1, not {self.head_chunk}")
        if self.cutoffs is None:
            if self.cluster_divisor != 4:
                raise ValueError("model.cluster_divisor has no effect without model.cutoffs")
            return
        if list(self.cutoffs) != sorted({*self.cutoffs}) or any(cut < 1 for cut in self.cutoffs):
            raise ValueError(f"model.cutoffs must rise from at least 1, not {list(self.cutoffs)}")
        if self.cluster_divisor < 1 or self.cluster_width(len(self.cutoffs)) < 1:
            raise ValueError(
                f"model.cluster_divisor must leave each cluster a dimension of the "
                f"{self.width}, not {self.cluster_divisor} with {len(self.cutoffs)} cut-offs"
            )

    def cluster_width(self, cluster: int) -> int:
        """Dimensions of the words' vectors in a cluster of the adaptive vocabulary."""
        return self.width // self.cluster_divisor**cluster

    def _check_positions(self) -> None:
        if self.positions == "relative":
            if self.encoded < 2 or self.encoded % 2:
                name = "width" if self.sinusoids is None else "sinusoids"
                raise ValueError(
                    f"model.{name} must be even (sines and cosines of distances), not "
                    f"{self.encoded}"
                )
            return
        if self.sinusoids is not None:
            raise ValueError(
                f"model.sinusoids has no effect with model.positions {self.positions}; set it to "
                "null"
            )
        if self.head_width % 2:
            raise ValueError(
                f"model.width / model.heads must be even for rotary positions, not "
                f"{self.head_width}"
            )

    def _check_memory_layers(self, layers: tuple[int, ...]) -> None:
        if not self.slots:
            raise ValueError("model.memory_layers has no effect without memory; set it to null")
        if list(layers) != sorted({*layers} & {*range(self.layers)}) or not layers:
            raise ValueError(
                f"model.memory_layers must name some of the layers 0 to {self.layers - 1}, in "
                f"order and once each, not {list(layers)}"
            )

    def at(self, layer: int) -> "ModelConfig":
        """The config as one layer sees it: with memory or without."""
        if self.memory_layers is None or layer in self.memory_layers:
            return self
        return replace(self, memory=0, compressed=0, memory_layers=None, empty="masked")

    def _check_compression(self) -> None:
        name = self.compression
        if name not in LEARNED and self.reconstruction != "none":
            raise ValueError(
                f"model.compression {name} has nothing to learn; set model.reconstruction to none"
            )
        if self.extra_kernel < 0:
            raise ValueError(f"model.extra_kernel must be at least 0, not {self.extra_kernel}")
        if self.extra_kernel and name not in WINDOWED:
            raise ValueError(f"model.compression {name} has no kernel; set model.extra_kernel to 0")
        if self.overlap > self.memory:
            raise ValueError(
                f"model.memory must hold the {self.overlap} slots that windows of compression "
                f"{name} reach beyond those that leave, not {self.memory}"
            )

    @property
    def head_width(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads

    @property
    def encoded(self) -> int:
        """Sinusoids P that encode a relative distance."""
        return self.width if self.sinusoids is None else self.sinusoids

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
        return self.extra_kernel + (sum(DILATIONS) if self.compression == "dilated" else 0)

    @property
    def range(self) -> int:
        """Tokens that can influence a prediction: n_s + l (n_m + c n_cm) (paper, section 3.1)."""
        compressed = self.compressed * self.segment // self.windows
        layers = self.layers if self.memory_layers is None else len(self.memory_layers)
        return layers * (self.memory + compressed) + self.segment
