"""A run out of a model of transformers: its weights as they are, and a memory beside them.

Weights are read one by one, so that no more is held at once than the model and its largest matrix.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.common.files import read_json
from data.common.integrity import write_sealed
from data.common.tensors import save_tensors, spoken
from data.tokenizers.registry import Tokenizer
from lm.hub.importing import NAME
from lm.hub.pretrained import MEND, Source
from lm.hub.shapes import model_config, parts_of
from lm.model.model_config import LEARNED, ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs.adopted_config import BASE, GENERATION, AdoptedConfig, BaseConfig, MemoryShape
from lm.runs.checkpoints import LATEST, STATE, WEIGHTS, CheckpointState, VocabularyState
from lm.runs.run_config import write_config

BASE_WEIGHTS = "weights.json"
"""File in a run's `base/` with the type of each tensor of the model by its name."""
PASSED_OVER = (".rotary_emb.inv_freq", ".masked_bias")
"""Ends of names of tensors that follow from the configuration."""

Precision = Literal["float32", "bfloat16"]


def adopt(
    source: Source,
    memory: MemoryShape,
    vocabulary: Tokenizer,
    run: Path,
    precision: Precision | None = None,
) -> AdoptedConfig:
    """Write a run of a model into an existing folder.

    Args:
        source: the model.
        memory: what it gets.
        vocabulary: of its tokens.
        run: the folder.
        precision: how weights are stored; none: as they are, in float32 where neither that nor
            bfloat16.

    Raises:
        ValueError: the model is of another shape, or lacks a weight, or has one too many; or its
            tokens are not those of the vocabulary.
    """
    base = source.config
    config = model_config(base, memory, source.name)
    if vocabulary.size != base.vocab_size:
        raise ValueError(
            f"{source.name} knows {base.vocab_size:,} tokens, and the vocabulary "
            f"{vocabulary.name} has {vocabulary.size:,}; give its own --vocabulary"
        )
    types = check_names(source, config)
    written = AdoptedConfig(
        config,
        BaseConfig(source.name, (base.architectures or ["?"])[0], base.max_position_embeddings),
    )
    target = run / "checkpoints" / NAME
    target.mkdir(parents=True)
    (run / "vocabulary").mkdir()
    vocabulary.save(run / "vocabulary")
    save_tensors(read_weights(source, config, precision), target / WEIGHTS)
    known = VocabularyState(hash=vocabulary.hash, size=vocabulary.size)
    state = CheckpointState(step=0, ranks=0, shards="adopted", vocabulary=known)
    write_sealed(target / STATE, state.model_dump(exclude_unset=True))
    (run / "checkpoints" / LATEST).write_text(NAME + "\n")
    write_base(source, types, precision, run)
    write_config(run / "config.yaml", written)
    return written


def check_names(source: Source, config: ModelConfig) -> dict[str, torch.dtype]:
    """Names of the model's tensors; ValueError where it lacks one or has one of another model."""
    wanted = [name for parts in parts_of(config).values() for name in parts]
    there = [name for name in source.weights if not name.endswith(PASSED_OVER)]
    if config.tied:
        # Some models store the words' vectors twice.
        there = [name for name in there if name != "lm_head.weight"]
    if missing := sorted(set(wanted) - set(there)):
        raise ValueError(f"{source.folder} lacks the weight {missing[0]}; {MEND}")
    if strange := sorted(set(there) - set(wanted)):
        raise ValueError(
            f"{source.name} has the weight {strange[0]}, which this model lacks: it is no plain "
            f"{source.config.model_type}"
        )
    return {name: source.weights[name].dtype for name in wanted}


def read_weights(
    source: Source, config: ModelConfig, precision: Precision | None
) -> dict[str, Tensor]:
    """All weights of our model by our names: those of theirs, and those of compression as they
    begin.
    """
    weights = {}
    for name, parts in parts_of(config).items():
        first = source.weights[parts[0]]
        dtype = stored_type(first.dtype, precision)
        rows = [source.weights[part] for part in parts]
        weights[name] = torch.cat(rows).to(dtype) if len(rows) > 1 else first.to(dtype, copy=True)
    check_shapes(source, config, weights)
    return weights | begun(config)


def stored_type(dtype: torch.dtype, precision: Precision | None) -> torch.dtype:
    """What a weight is stored as."""
    if precision is not None:
        return torch.float32 if precision == "float32" else torch.bfloat16
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def begun(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of the compression functions as they begin, by their names; the same each time."""
    weights: dict[str, Tensor] = {}
    # A model that is small in all that has no part in them.
    small: dict[str, Any] = {
        "layers": 1,
        "heads": 1,
        "key_value_heads": None,
        "head_size": 2,
        "feedforward": 1,
    }
    alone = replace(config, **small, memory_layers=None, rotary_share=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in range(config.layers):
            if config.at(layer).compressed and config.compression in LEARNED:
                block = CompressiveTransformer(alone, 1).layers[0]
                weights |= block.compression.state_dict(prefix=f"blocks.{layer}.compression.")
    return weights


def check_shapes(source: Source, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """ValueError where a weight has not the shape that the configuration gives it."""
    with torch.device("meta"):
        outline = dict(CompressiveTransformer(config, source.config.vocab_size).named_parameters())
    for name, weight in weights.items():
        if weight.shape != outline[name].shape:
            theirs = ", ".join(parts_of(config)[name])
            raise ValueError(
                f"{source.folder} has {theirs} as {spoken(weight.dtype, weight.shape)}, where its "
                f"config.json asks for {[*outline[name].shape]}; {MEND}"
            )


def write_base(
    source: Source, types: Mapping[str, torch.dtype], precision: Precision | None, run: Path
) -> None:
    """Write what is to be known for making the model again out of the run."""
    folder = run / BASE
    folder.mkdir()
    if source.gguf is None:
        values = read_json(source.folder / "config.json")
    else:
        values = source.config.to_dict()
    held = {name: back_type(dtype, precision) for name, dtype in types.items()}
    if precision is not None:
        values = {key: value for key, value in values.items() if key != "torch_dtype"}
        values["dtype"] = held["model.embed_tokens.weight"]
    write_sealed(folder / "config.json", values)
    write_sealed(folder / BASE_WEIGHTS, held)
    generation = source.folder / GENERATION
    if source.gguf is None and generation.is_file():
        write_sealed(folder / generation.name, read_json(generation))


def back_type(dtype: torch.dtype, precision: Precision | None) -> str:
    """What a tensor of the model is written as when the model is made again."""
    if precision == "bfloat16":
        return "bfloat16"
    # Nothing is lost on the way through float32.
    return str(dtype).removeprefix("torch.")
