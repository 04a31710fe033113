"""Any causal model of transformers on disk, on the hub or in a GGUF file, opened as it is.

No code of a model's own is run, and no pickle is read.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from data.common.files import hash_file, hash_json, read_json
from data.common.requirements import require_memory
from data.tokenizers.registry import Tokenizer
from lm.hub.pretrained import (
    MEND,
    Shards,
    Source,
    folder_of,
    gguf_in,
    open_vocabulary,
    read_gguf,
    told,
    weight_files_of,
)
from lm.inference.inference_config import Placement
from lm.inference.loading import device_of


@dataclass(frozen=True)
class Opened:
    """A model and its tokenizer, ready to predict."""

    name: str
    """As it is told to people: of the hub, or of its folder or file."""
    model: Any
    """Of transformers, in evaluation mode, where it computes."""
    vocabulary: Tokenizer
    weights: str
    """SHA-256 of the file of the weights; of several, of their names and hashes."""


def open_causal(
    model: str, gguf: str | None, vocabulary: Path | None, placement: Placement
) -> Opened:
    """A causal model by its folder or its name on the hub.

    Args:
        model: the folder, or OWNER/NAME.
        gguf: file in it, or path of a file, that holds the model in GGUF.
        vocabulary: folder of its tokenizer, if it is not the model's.
        placement: where it computes, and in what numbers.

    Raises:
        ValueError: it is not there, cannot be read, lacks weights, is an export of ours, or its
            tokenizer is missing or does not fit.
    """
    folder = folder_of(model, gguf, "--hf")
    device, dtype = device_of(placement), getattr(torch, placement.precision)
    if gguf is None:
        name, file = told(model, folder), None
        loaded, weights = _loaded(folder, dtype)
    else:
        file = gguf_in(folder, gguf)
        name, loaded, weights = file.stem, read_gguf(file), hash_file(file)
    config = loaded.config.get_text_config()
    source = Source(name, config, {}, folder if file is None else file.parent, file)
    words = open_vocabulary(source, vocabulary)
    return Opened(name, loaded.eval().to(device, dtype), words, weights)


def _loaded(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """The model in a folder, and the hash of its weights."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no model of transformers: config.json is missing; a GGUF file wants "
            "--gguf"
        )
    values = read_json(path)
    if isinstance(values, dict) and values.get("model_type") == "compressive_transformer":
        raise ValueError(
            f"{folder} is an export of a run: longrange import --folder {folder} --run RUN makes a "
            "run of it, which longrange score --run RUN reads with its memory"
        )
    files = sorted(weight_files_of(folder))
    there = Shards(folder)
    numbers = sum(math.prod(there.shape(name)) for name in there)
    require_memory(numbers * dtype.itemsize, f"the model in {folder}")
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        # Of several libraries, each with errors of its own.
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} is no causal model that is read here ({reason})") from None
    model, about = found
    # transformers draws them at random and goes on.
    lacking = sorted(about["missing_keys"]) + [str(each[0]) for each in about["mismatched_keys"]]
    if lacking:
        raise ValueError(f"{folder} lacks the weight {lacking[0]}, or has it otherwise; {MEND}")
    hashes = {name: hash_file(folder / name) for name in files}
    return model, hashes[files[0]] if len(files) == 1 else hash_json(hashes)
