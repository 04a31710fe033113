"""Whether a run computes what the model does that it was adopted from."""

import argparse
import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from data.common.tensors import TensorFile
from data.tokenizers.registry import Tokenizer
from lm.hub.pretrained import Source
from lm.inference.inference_config import Lengths, Placement
from lm.inference.loading import load_run
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs.checkpoints import MEND, WEIGHTS

MOST = 2048
"""Tokens of the text at most."""
SEGMENTS = 4
"""Segments of the text at least, where memory holds them."""
TOLERANCE = 1e-2
"""Of the largest logit: rounding of float32 stays far below it in models of every size."""


def check_run(source: Source, run: Path, config: ModelConfig) -> str:
    """Compare a run with the model that it was adopted from, by transformers, both in float32 and
    with the weights as the run has them: a sentence that says how far they differ.

    Raises:
        ValueError: they differ by more than rounding explains.
    """
    segment, count = lengths_of(config)
    loaded = load_run(run, None, Lengths(segment=segment), Placement(device="cpu"))
    ids = some_text(loaded.vocabulary, segment * count)
    halved = TensorFile(loaded.checkpoint / WEIGHTS, MEND).halved("embedding.weight")
    expected = logits_of(source, ids, torch.bfloat16 if halved else torch.float32)
    worst = largest_difference(loaded.model, ids, expected)
    largest = expected.abs().max().item()
    said = (
        f"the largest difference of logits from transformers on {segment * count:,} tokens in "
        f"{count} segments of {segment} is {worst:.2g}, where logits reach {largest:.3g}"
    )
    if not worst <= TOLERANCE * largest:
        raise ValueError(f"{said}: the run does not compute what {source.name} does")
    return said


def lengths_of(config: ModelConfig) -> tuple[int, int]:
    """Length of a segment, and how many of them memory covers; all layers must have it."""
    if config.memory_layers is not None or not config.memory:
        return config.segment, 1
    short = config.memory // (SEGMENTS - 1)
    segment = max(1, config.sinks, min(config.segment, short, MOST // SEGMENTS))
    return segment, min(1 + config.memory // segment, MOST // segment)


def some_text(vocabulary: Tokenizer, tokens: int) -> Tensor:
    """The beginning of a text that is on every machine, [1, tokens]."""
    text = Path(argparse.__file__).read_bytes()
    ids = torch.from_numpy(vocabulary.encode(text).astype("int64"))
    return torch.cat([torch.tensor([vocabulary.start]), ids])[None, :tokens]


def logits_of(source: Source, ids: Tensor, held: torch.dtype) -> Tensor:
    """What transformers makes of a text [1, T] with weights rounded to a type: [T, V] float32."""
    from_file = {"gguf_file": source.gguf.name} if source.gguf is not None else {}
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.float32, **from_file
    )
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(weight.to(held))
        logits: Tensor = theirs.eval()(ids, use_cache=False).logits[0]
    # Two models at once are more than reading the run takes.
    del theirs
    gc.collect()
    return logits


@torch.no_grad()
def largest_difference(model: CompressiveTransformer, ids: Tensor, expected: Tensor) -> float:
    """Between the logits [T, V] and those of a model that reads the text by segments."""
    memory, worst, segment = model.empty_memory(1), 0.0, model.config.segment
    parts = zip(ids.split(segment, dim=1), expected.split(segment), strict=True)
    for part, wanted in parts:
        output = model(part, memory)
        memory = output.memory
        worst = max(worst, (output.predictions[0] - wanted).abs().max().item())
    return worst
