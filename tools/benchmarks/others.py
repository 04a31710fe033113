"""Other implementations to compare with, kept out of this project's environment.

They are pure Python on the same torch, so they are installed into a folder of their own, without
what they depend on and is here already, and imported from there.
"""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.model_config import ModelConfig
from lm.objectives.objective import Segment
from tools.benchmarks.building import Losses

REQUIREMENTS = (
    "compressive-transformer-pytorch==0.4.0",
    "mogrifier==0.0.5",
    "x-transformers==2.31.10",
    "torch-einops-utils==0.2.0",
    "einx==0.4.3",
    "frozendict==2.4.7",
    "loguru==0.7.3",
)
FOLDER = Path("build/others")

Read = Callable[[Tensor, Any], tuple[Tensor, Any, Tensor | None]]
"""(tokens [B, T], memory or None) -> logits [B, T, V], memory without gradient, auxiliary loss."""


def use(folder: Path = FOLDER) -> None:
    """Make the packages importable, installing them if they are not there yet.

    Raises:
        ValueError: they cannot be installed.
    """
    done = folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if not done.is_file() or done.read_text() != wanted:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command = [*pip, "--upgrade", "--target", str(folder), *REQUIREMENTS]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"{' '.join(REQUIREMENTS)} could not be installed into {folder}")
        done.write_text(wanted)
    if str(folder) not in sys.path:
        # Behind our own environment, which keeps its torch and einops.
        sys.path.append(str(folder))


def lucidrains(config: ModelConfig, vocabulary: int) -> tuple[nn.Module, Read]:
    """compressive-transformer-pytorch in the mode nearest to the paper: no GRU gates, and memory of
    a layer read by that layer. Its feed-forward is four times as wide as the model.
    """
    package = importlib.import_module("compressive_transformer_pytorch")
    model = package.CompressiveTransformer(
        num_tokens=vocabulary,
        dim=config.width,
        depth=config.layers,
        heads=config.heads,
        seq_len=config.segment,
        mem_len=config.memory,
        cmem_len=config.compressed,
        cmem_ratio=config.rate,
        gru_gated_residual=False,
        enhanced_recurrence=False,
    )

    def read(tokens: Tensor, memory: Any) -> tuple[Tensor, Any, Tensor | None]:
        logits, memory, auxiliary = model(tokens, memories=memory)
        return logits, memory, auxiliary.sum()

    return model, read


def x_transformers(config: ModelConfig, vocabulary: int) -> tuple[nn.Module, Read]:
    """x-transformers with rotary positions, fused attention and memory of the same length; it has
    no compressed memory.
    """
    package = importlib.import_module("x_transformers")
    model = package.TransformerWrapper(
        num_tokens=vocabulary,
        max_seq_len=config.segment,
        max_mem_len=config.memory,
        use_abs_pos_emb=False,
        attn_layers=package.Decoder(
            dim=config.width,
            depth=config.layers,
            heads=config.heads,
            attn_dim_head=config.head_width,
            ff_mult=config.feedforward / config.width,
            rotary_pos_emb=True,
            attn_flash=True,
        ),
    )

    def read(tokens: Tensor, memory: Any) -> tuple[Tensor, Any, Tensor | None]:
        logits, memory = model(tokens, mems=memory, return_mems=True)
        return logits, memory, None

    return model, read


def losses_of(read: Read) -> Losses:
    """What a step of another implementation minimises: the mean over the targets that count, and
    its auxiliary loss.
    """

    def losses(segment: Segment, memory: Any) -> tuple[Tensor, Any]:
        logits, after, auxiliary = read(segment.inputs_BT, memory)
        targets = segment.targets_BT.flatten()
        nats = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        scored = segment.scored_BT
        loss = (nats * scored.flatten()).sum() / scored.sum()
        return (loss if auxiliary is None else loss + auxiliary), after

    return losses


Name = Literal["lucidrains", "x_transformers"]
OTHERS: dict[Name, Callable[[ModelConfig, int], tuple[nn.Module, Read]]] = {
    "lucidrains": lucidrains,
    "x_transformers": x_transformers,
}


def build(
    name: Name, config: ModelConfig, vocabulary: int, device: torch.device
) -> tuple[nn.Module, Read]:
    """A new model of another implementation with the sizes of ours."""
    torch.manual_seed(0)
    model, read = OTHERS[name](config, vocabulary)
    return model.to(device), read
