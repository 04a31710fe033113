"""The files of a tokenizer of the Hugging Face hub: where they are, and what they say of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKENIZER, SETTINGS, MODEL_CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
GENERATION, TEMPLATE, SPECIAL = (
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
KEPT = (TOKENIZER, SETTINGS, SPECIAL, TEMPLATE)
"""What goes along with a vocabulary, where it is there."""
NAMED = ("bos", "eos", "pad", "unk")
SLOW = ("tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
"""Files of tokenizers that have no tokenizer.json."""


@dataclass(frozen=True)
class HubFiles:
    """What was read of a folder.

    files: texts of KEPT by name; special: ids by name; ends: ids at which the model ends a text;
    size: rows that the model beside them has, 0 where there is none.
    """

    files: dict[str, bytes]
    spec: dict[str, Any]
    special: dict[str, int] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    size: int = 0


def find_folder(name: str) -> Path:
    """The folder of a tokenizer: a path, or a name on the hub, whose files are fetched.

    Raises:
        ValueError: there is no such folder, and the hub has no such name or cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{name} is a file: give the folder that holds its {TOKENIZER}")
    if name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise ValueError(f"{name} does not exist: give a folder with a {TOKENIZER}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    found = None
    for file in (TOKENIZER, SETTINGS, SPECIAL, TEMPLATE, MODEL_CONFIG, GENERATION):
        try:
            found = Path(hf_hub_download(name, file)).parent
        except (OSError, ValueError, HfHubHTTPError) as error:
            # Without a network a file that is missing and one that was never fetched look alike.
            if file == TOKENIZER:
                gone = isinstance(error, EntryNotFoundError) and not isinstance(error, OSError)
                why = f"has no {TOKENIZER}" if gone else "cannot be fetched"
                raise ValueError(
                    f"there is no folder {name}, and {name} {why} from the Hugging Face hub: give "
                    f"the path of a folder with a {TOKENIZER}"
                ) from error
    assert found is not None
    return found


def read_files(folder: Path) -> HubFiles:
    """All that a folder says of its tokenizer.

    Raises:
        ValueError: it has no tokenizer.json, or one that is damaged.
    """
    if not (folder / TOKENIZER).is_file():
        slow = [name for name in SLOW if (folder / name).is_file()]
        if slow:
            raise ValueError(
                f"{folder} has a slow tokenizer alone ({slow[0]}): write its {TOKENIZER} with "
                f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            )
        raise ValueError(f"{folder} holds no tokenizer: {TOKENIZER} is missing")
    files = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).is_file()}
    spec = as_object(files[TOKENIZER], folder / TOKENIZER)
    settings: dict[str, Any] = {}
    for name in (SPECIAL, SETTINGS):
        if name in files:
            settings |= as_object(files[name], folder / name)
    model: dict[str, Any] = {}
    for name in (MODEL_CONFIG, GENERATION):
        if (folder / name).is_file():
            model |= as_object((folder / name).read_bytes(), folder / name)
    try:
        special = special_of(spec, settings, model)
        size = int(model.get("vocab_size") or 0)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / TOKENIZER} is damaged: copy it again ({error!r})") from error
    return HubFiles(files, spec, special, ends_of(special, model), size)


def as_object(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object; ValueError names the file that holds none."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: copy it again ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no JSON object: copy it again")  # noqa: TRY004
    return value


def special_of(
    spec: dict[str, Any], settings: dict[str, Any], model: dict[str, Any]
) -> dict[str, int]:
    """Ids of the special tokens, by what they say and as bos, eos, pad and unk where there are."""
    ids = {str(token["content"]): int(token["id"]) for token in spec.get("added_tokens") or ()}
    special = {
        str(token["content"]): int(token["id"])
        for token in spec.get("added_tokens") or ()
        if token.get("special")
    }
    for name in NAMED:
        token = settings.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        number = model.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if content in ids:
            special[name] = special[content] = ids[content]
        elif content is None and isinstance(number, int) and number >= 0:
            special[name] = number
    return special


def ends_of(special: dict[str, int], model: dict[str, Any]) -> tuple[int, ...]:
    """Ids at which a model ends what it writes: those of its configuration, and eos."""
    given = model.get("eos_token_id")
    ends = given if isinstance(given, list) else [given]
    ends = [*ends, special.get("eos")]
    return tuple(sorted({number for number in ends if isinstance(number, int) and number >= 0}))
