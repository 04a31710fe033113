"""Pretrained models of transformers on disk, on the hub or in a GGUF file, opened to be adopted.

No code of a model's own is run, and no pickle is read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from data.common.files import write_json
from data.common.requirements import extra
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.registry import Tokenizer, load_tokenizer
from data.tokenizers.tokenizer import DESCRIPTION
from lm.hub.importing import INDEX, ONE, weight_files
from lm.hub.shapes import read_base, require_shape

MEND = "take all files of the model"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Source:
    """A model that may be adopted."""

    name: str
    """As it is told to people: of the hub, or of its folder or file."""
    config: PreTrainedConfig
    weights: Mapping[str, Tensor]
    """Its tensors by their names; reads what is asked for."""
    folder: Path
    """Where its other files are."""
    gguf: Path | None = None
    """The file that all comes from, if it is a GGUF."""


class Shards(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files, read as they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Open all files.

        Raises:
            ValueError: one is missing or cannot be read, or weights are in another format.
        """
        self.folder = folder
        self.places: dict[str, Any] = {}
        for name in sorted(weight_files_of(folder)):
            path = folder / name
            if not path.is_file():
                raise ValueError(f"{path} is missing: {folder / INDEX} names it; {MEND}")
            try:
                file: Any = safe_open(path, framework="pt")
                self.places |= dict.fromkeys(file.keys(), file)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error}); {MEND}") from None

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by name; ValueError where no file has it, or it cannot be read."""
        if name not in self.places:
            raise ValueError(f"{self.folder} lacks the weight {name}; {MEND}")
        try:
            tensor: Tensor = self.places[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.folder} cannot be read ({name}: {error}); {MEND}") from None
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that a file has, without reading it."""
        return tuple(self.places[name].get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def weight_files_of(folder: Path) -> set[str]:
    """Names of the files of a model's weights; ValueError where there are none, or pickles only."""
    there = [name for name in PICKLED if (folder / name).is_file()]
    if there and not any((folder / name).is_file() for name in (ONE, INDEX)):
        raise ValueError(
            f"{folder} has its weights in {there[0]}, which may hold code and is not read: save "
            "them as safetensors (model.save_pretrained of transformers does)"
        )
    return weight_files(folder)


def open_source(model: str, gguf: str | None) -> Source:
    """A model by its folder or its name on the hub.

    Args:
        model: the folder, or OWNER/NAME.
        gguf: file in it, or path of a file, that holds the model in GGUF.

    Raises:
        ValueError: it is not there, cannot be read, or is of another shape.
    """
    folder = folder_of(model, gguf, "--model")
    name = told(model, folder)
    if gguf is None:
        return Source(name, read_base(folder), Shards(folder), folder)
    path = gguf_in(folder, gguf)
    loaded = read_gguf(path)
    require_shape(loaded.config.model_type, path)
    return Source(path.stem, loaded.config, loaded.state_dict(), path.parent, path)


def folder_of(model: str, gguf: str | None, option: str) -> Path:
    """The folder of a model, which is downloaded where it is a name of the hub; ValueError for a
    file, which says what to give as `option`, and where there is neither.
    """
    place = Path(model)
    if place.is_file():
        hint = ""
        if place.suffix == ".gguf":
            hint = f": {option} {place.parent or '.'} --gguf {place.name}"
        raise ValueError(f"{model} is a file; give its folder{hint}")
    return place if place.is_dir() else from_hub(model, gguf)


def told(model: str, folder: Path) -> str:
    """What a model is called: as on the hub, or as its folder."""
    return model if folder != Path(model) else folder.resolve().name


def gguf_in(folder: Path, gguf: str) -> Path:
    """A GGUF file by its name in a folder, or its path; ValueError where there is none."""
    path = folder / gguf if (folder / gguf).is_file() else Path(gguf)
    if not path.is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise ValueError(f"{folder} has no file {gguf}; there are: {there}")
    return path


def from_hub(model: str, gguf: str | None) -> Path:
    """Download a model from the hub, or find it where an earlier download put it.

    Raises:
        ValueError: there is no such folder, and no such model or no way to the hub.
    """
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.model", "*.jinja", "*.safetensors" if gguf is None else gguf]
    try:
        return Path(snapshot_download(model, allow_patterns=kinds))
    except Exception as error:
        # Of the hub, of the network and of names that are none.
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{model} is no folder, and the hub did not give a model of this name ({reason})"
        ) from None


def read_gguf(path: Path) -> Any:
    """The model of a GGUF file, of any kind that transformers reads, in float32.

    Raises:
        ValueError: the package gguf is missing, or transformers does not read the file.
    """
    with extra("gguf", "--gguf"):
        # By transformers, which says less of how to get it.
        import_module("gguf")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no model that transformers reads ({reason})") from None
    # Says how numbers were stored, and they are so no longer.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    return loaded


def open_vocabulary(source: Source, folder: Path | None) -> Tokenizer:
    """The vocabulary of a model.

    Args:
        source: the model.
        folder: of a tokenizer, or of a vocabulary as a run has it; none: the model's own.

    Raises:
        ValueError: there is none, or it has more tokens than the model.
    """
    place, size = folder or source.folder, int(source.config.vocab_size)
    if (place / DESCRIPTION).is_file():
        return load_tokenizer(place)
    if source.gguf is None or folder is not None:
        return HuggingFaceTokenizer.read(place, size)
    with TemporaryDirectory() as aside:
        try:
            theirs: Any = AutoTokenizer.from_pretrained(
                source.gguf.parent, gguf_file=source.gguf.name
            )
            theirs.save_pretrained(aside)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the tokenizer in {source.gguf} cannot be read ({reason}); give the folder of its "
                "own as --vocabulary"
            ) from None
        # It says at which tokens a text ends.
        write_json(Path(aside) / "config.json", source.config.to_dict())
        return HuggingFaceTokenizer.read(aside, size)
