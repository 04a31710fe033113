"""What an exported folder holds: weights, configuration, tokenizer, code and a model card.

The folder carries the source code of its model, so that it runs without this repository.
transformers copies the files of a folder that import each other by `from .name import`. So every
module that is needed goes there flat, `lm.model.layer` as `lm_model_layer.py`, with its imports
of others of ours rewritten.
"""

import importlib.util
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data.common.files import read_json, write_json
from data.common.integrity import read_sealed
from data.common.tensors import save_tensors
from data.tokenizers.hub_files import NAMED, SETTINGS
from data.tokenizers.registry import HuggingFaceTokenizer, Tokenizer
from lm.hub.byte_tokenizer import HubByteTokenizer
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM, CompressiveTransformerModel
from lm.hub.subword_tokenizer import HubSentencePieceTokenizer
from lm.hub.tokenization import HubTokenizer
from lm.hub.word_tokenizer import HubWordTokenizer
from lm.inference.loading import LoadedRun
from lm.runs.adopted_config import BASE, GENERATION, AdoptedConfig, copy_base

TOKENIZERS: dict[str, type[HubTokenizer]] = {
    "bytes": HubByteTokenizer,
    "words": HubWordTokenizer,
    "sentencepiece": HubSentencePieceTokenizer,
}
"""By kind of vocabulary; levels of sound are no text and have none."""
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p")
PENALTIES = ("repetition_penalty", "no_repeat_ngram_size")
"""Settings of generation that an export takes over from its base, the first where it samples."""
OURS = re.compile(r"^(\s*)from ((?:lm|data)(?:\.\w+)*) import", re.MULTILINE)
"""An import that an exported folder has to find in itself."""


def check_shard_size(text: str) -> None:
    """ValueError for what transformers would not take as a size of files, or misunderstand."""
    found = re.fullmatch(r"([0-9]+)(TB|GB|MB|KB|TIB|GIB|MIB|KIB)", text.upper())
    if not found or not int(found[1]):
        raise ValueError(f"max-shard-size must be a size such as 500MB or 5GB, not {text}")


def quiet_deepspeed() -> None:
    """Let DeepSpeed, which transformers asks when it saves and loads, not warn of a missing GPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def write_folder(loaded: LoadedRun, folder: Path, max_shard_size: str) -> None:
    """Weights, configuration, tokenizer and code into an existing folder."""
    vocabulary = loaded.vocabulary
    config = CompressiveTransformerConfig.of(
        loaded.model.config, vocabulary.size, run=origin(loaded)
    )
    model = CompressiveTransformerForCausalLM(config)
    # transformers' own `to` is typed as if it were a function.
    torch.nn.Module.to(model, loaded.model.embedding.weight.dtype)
    classes = {
        "AutoConfig": type(config),
        "AutoModel": CompressiveTransformerModel,
        "AutoModelForCausalLM": type(model),
    }
    config.auto_map = {name: _reference(kind) for name, kind in classes.items()}
    model.model.load_state_dict(loaded.model.state_dict())
    model.generation_config.update(**sampling_of(loaded.folder))
    model.generation_config.bos_token_id = vocabulary.start
    if isinstance(vocabulary, HuggingFaceTokenizer) and vocabulary.ends:
        model.generation_config.eos_token_id = list(vocabulary.ends)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for path in folder.glob("*.safetensors"):
        # The same, with the hash of each weight.
        save_tensors(load_file(path), path, {"format": "pt"})
    vocabulary.save(folder)
    copy_base(loaded.folder, folder)
    needed = [kind.__module__ for kind in classes.values()]
    if vocabulary.kind in TOKENIZERS:
        tokenizer = tokenizer_of(vocabulary, folder)
        tokenizer.save_pretrained(folder)
        kind = type(tokenizer)
        settings = read_json(folder / "tokenizer_config.json")
        settings["auto_map"] = {"AutoTokenizer": [_reference(kind), None]}
        write_json(folder / "tokenizer_config.json", settings)
        needed.append(kind.__module__)
    elif isinstance(vocabulary, HuggingFaceTokenizer):
        keep_tokenizer(vocabulary, folder)
    for name, text in code_files(needed).items():
        (folder / name).write_text(text, encoding="utf-8")


def sampling_of(folder: Path) -> dict[str, Any]:
    """How the model that a run was adopted from says that it is sampled; nothing of others.

    Raises:
        ValueError: the file has changed.
    """
    path = folder / BASE / GENERATION
    stated = read_sealed(path, "adopt the model again") if path.is_file() else {}
    # What it says of a distribution that it does not draw from, transformers does not save.
    drawn = SAMPLING if stated.get("do_sample") else ()
    return {name: stated[name] for name in (*drawn, *PENALTIES) if stated.get(name) is not None}


def has_tokenizer(vocabulary: Tokenizer) -> bool:
    """Whether an exported folder has a tokenizer; levels of sound are no text."""
    return vocabulary.kind in TOKENIZERS or isinstance(vocabulary, HuggingFaceTokenizer)


def keep_tokenizer(vocabulary: HuggingFaceTokenizer, folder: Path) -> None:
    """Settings with which transformers reads the tokenizer's own tokenizer.json as it is.

    It pads with eos where it had no token for that, on the left, where generation wants it.
    """
    path = folder / SETTINGS
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    named = {number: name for name, number in vocabulary.special.items() if name not in NAMED}
    for name in NAMED:
        settings[f"{name}_token"] = named.get(vocabulary.special.get(name, -1))
    for name in ("pad_token", "bos_token"):
        settings[name] = settings[name] or settings["eos_token"]
    settings.pop("auto_map", None)
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    write_json(path, {name: value for name, value in settings.items() if value} | fixed)
    # Its hash is another one now.
    vocabulary.describe(folder)


def _flat(module: str) -> str:
    """Name of a module in an exported folder."""
    return module.replace(".", "_")


def _reference(kind: type) -> str:
    """How auto_map names a class."""
    return f"{_flat(kind.__module__)}.{kind.__name__}"


def code_files(modules: list[str]) -> dict[str, str]:
    """Text of the modules, and of all of ours that they import, by file name."""
    files: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if f"{_flat(module)}.py" in files:
            continue
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        waiting += [found[2] for found in OURS.finditer(source)]
        files[f"{_flat(module)}.py"] = OURS.sub(
            lambda found: f"{found[1]}from .{_flat(found[2])} import", source
        )
    return files


def tokenizer_of(vocabulary: Tokenizer, folder: Path) -> HubTokenizer:
    """The tokenizer of a vocabulary that was saved to `folder`."""
    kind = TOKENIZERS[vocabulary.kind]
    files = {name: str(folder / file) for name, file in kind.vocab_files_names.items()}
    make: Any = kind
    tokenizer: HubTokenizer = make(**files)
    return tokenizer


def origin(loaded: LoadedRun) -> dict[str, Any]:
    """What the run's config says besides the model, without paths of this machine, as JSON."""
    config = loaded.config
    if isinstance(config, AdoptedConfig):
        return {"base": asdict(config.base)}
    shards = Path(config.data.shards.name)
    kind = None if config.data.vocabulary is None else config.data.kind
    gone: dict[str, Any] = dict.fromkeys(("source", "vocabulary_from", "checksums"))
    data = replace(config.data, shards=shards, vocabulary=kind, **gone)
    parts: dict[str, Any] = {"data": data, "optim": config.optim, "training": config.training}
    values = {name: asdict(part) for name, part in parts.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
