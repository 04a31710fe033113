"""Program: write a trained model as a folder for the Hugging Face ecosystem."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data.common import command
from data.common.files import hash_file, read_json, write_json
from data.common.integrity import write_sums
from data.common.locks import new_folder
from data.common.outputs import check_folder
from data.common.tensors import save_tensors
from data.tokenizers.registry import Tokenizer
from lm.hub.byte_tokenizer import HubByteTokenizer
from lm.hub.card import model_card, scores_of
from lm.hub.code import code_files, flat
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.hub.subword_tokenizer import HubSentencePieceTokenizer
from lm.hub.tokenization import HubTokenizer
from lm.hub.word_tokenizer import HubWordTokenizer
from lm.inference.loading import LoadedRun, load_run, pieces

TOKENIZERS: dict[str, type[HubTokenizer]] = {
    "bytes": HubByteTokenizer,
    "words": HubWordTokenizer,
    "sentencepiece": HubSentencePieceTokenizer,
}
"""By kind of vocabulary; levels of sound are no text and have none."""


def main(
    run: Path,
    out: Path,
    checkpoint: str | None = None,
    title: str | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a trained model as a folder that AutoModelForCausalLM loads with trust_remote_code.

    The folder has weights, configuration, tokenizer, the code of the model and a model card with
    the scores that were measured with these weights. Sparse matrices are written as dense ones
    that are zero outside the forward set.

    Args:
        run: folder of the run.
        out: folder to write; it must not exist.
        checkpoint: name of the checkpoint, by default the newest.
        title: of the model card, by default the run's name.
        max_shard_size: weights are split into files of this size at most, such as 500MB.
    """
    check_folder(out, *pieces(run))
    check_shard_size(max_shard_size)
    quiet_deepspeed()
    loaded = load_run(run, checkpoint)
    with new_folder(out, "--out") as place:
        write_folder(loaded, place, max_shard_size)
        card = card_of(loaded, run, title or run.resolve().name)
        (place / "README.md").write_text(card, encoding="utf-8")
        # Weights have theirs in their files, and the card may be edited.
        names = sorted(path.name for path in place.iterdir())
        write_sums(place, [n for n in names if not n.endswith((".safetensors", ".md"))])
    print(out)


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
    modules = {"AutoConfig": "lm.hub.configuration.CompressiveTransformerConfig"}
    modules["AutoModelForCausalLM"] = "lm.hub.modeling.CompressiveTransformerForCausalLM"
    config.auto_map = {name: _reference(path) for name, path in modules.items()}
    model = CompressiveTransformerForCausalLM(config)
    model.model.load_state_dict(loaded.model.state_dict())
    model.generation_config.bos_token_id = vocabulary.start
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for path in folder.glob("*.safetensors"):
        # The same, with the hash of each weight.
        save_tensors(load_file(path), path, {"format": "pt"})
    vocabulary.save(folder)
    needed = [path.rpartition(".")[0] for path in modules.values()]
    if vocabulary.kind in TOKENIZERS:
        tokenizer = tokenizer_of(vocabulary, folder)
        tokenizer.save_pretrained(folder)
        kind = type(tokenizer)
        settings = read_json(folder / "tokenizer_config.json")
        reference = _reference(f"{kind.__module__}.{kind.__name__}")
        settings["auto_map"] = {"AutoTokenizer": [reference, None]}
        write_json(folder / "tokenizer_config.json", settings)
        needed.append(kind.__module__)
    for name, text in code_files(needed).items():
        (folder / name).write_text(text, encoding="utf-8")


def _reference(path: str) -> str:
    """How auto_map names a class."""
    module, _, name = path.rpartition(".")
    return f"{flat(module)}.{name}"


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
    shards = Path(config.data.shards.name)
    data = replace(config.data, shards=shards, source=None, vocabulary_from=None, checksums=None)
    parts: dict[str, Any] = {"data": data, "optim": config.optim, "training": config.training}
    values = {name: asdict(part) for name, part in parts.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def card_of(loaded: LoadedRun, run: Path, title: str) -> str:
    """The model card of a run's checkpoint."""
    weights = hash_file(loaded.checkpoint / "model.safetensors")
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    data = loaded.config.data
    facts = {
        "trained on": f"{data.corpus}-prefix" if data.prefix else data.corpus,
        "vocabulary": loaded.vocabulary.name,
        "parameters": f"{parameters:,}",
        "checkpoint": f"{loaded.checkpoint.name}, SHA-256 {weights}",
    }
    scores, tokenizer = scores_of(run, weights), loaded.vocabulary.kind in TOKENIZERS
    return model_card(title, loaded.model.config, facts, scores, tokenizer)


if __name__ == "__main__":
    command.run(main)
