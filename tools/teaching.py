"""What a teacher needs of a cluster beside the run that it teaches: every rank holds it whole and
reads its own lanes with it.
"""

import torch

from lm.model.flops import scoring_flops
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs.adopted_config import read_stored
from lm.runs.run_config import RunConfig


def teacher_shape(config: RunConfig) -> ModelConfig | None:
    """The teacher's shape, where there is a teacher.

    Raises:
        ValueError: its run is not there.
    """
    run = config.training.teacher.run
    if run is None:
        return None
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"training.teacher.run {run} holds no run; give the folder of one")
    return read_stored(path).model


def teacher_bytes(config: RunConfig, vocabulary: int, lanes: int) -> tuple[float, float]:
    """Bytes on one rank of a teacher's weights, and of its memory of some lanes before and after a
    step, keys and values included; sparse matrices come dense.
    """
    shape = teacher_shape(config)
    if shape is None:
        return 0.0, 0.0
    with torch.device("meta"):
        model = CompressiveTransformer(shape, vocabulary)
    width = 2 if config.training.precision == "bf16" else 4
    slots = sum(shape.at(layer).slots for layer in range(shape.layers))
    each = shape.width + 2 * shape.stored_heads * shape.head_width
    count = sum(parameter.numel() for parameter in model.parameters())
    return float(width * count), 2.0 * width * lanes * slots * each


def teacher_flops(config: RunConfig, vocabulary: int, lanes: int) -> float:
    """Operations a token of a teacher that reads."""
    shape = teacher_shape(config)
    if shape is None:
        return 0.0
    return scoring_flops(shape, vocabulary, lanes, kept=True).total
