"""What a tokenizer.json does to a text: its steps, which of them lose something, and the bytes that
its tokens stand for.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

SPACE_MARK = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
LOSING = {
    "Lowercase": "it writes everything in lower case",
    "BertNormalizer": "it cleans text, and may write it in lower case",
    "NFD": "it takes accents apart",
    "NFKC": "it normalises characters",
    "NFKD": "it normalises characters",
    "Nmt": "it normalises characters",
    "Precompiled": "it normalises characters",
    "StripAccents": "it drops accents",
    "Strip": "it strips white space",
    "Prepend": "it puts text before every text",
    "Replace": "it replaces characters",
    "BertPreTokenizer": "it drops white space",
    "Whitespace": "it drops white space",
    "WhitespaceSplit": "it drops white space",
    "CharDelimiterSplit": "it drops what parts words",
}
"""Steps that no way back undoes."""


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes (GPT-2): those that can be printed
    stand for themselves, the others for what comes from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(value): value for value in printed}
    others = [value for value in range(256) if value not in set(printed)]
    return alphabet | {chr(256 + number): value for number, value in enumerate(others)}


ALPHABET = byte_alphabet()
IN_TEXT = {*range(0xC0)} | {*range(0xC2, 0xF5)}
"""Bytes that UTF-8 has."""


def flat(step: Any) -> Iterator[dict[str, Any]]:
    """A step and the steps that it is a sequence of, in order; they may be changed in place."""
    if not isinstance(step, dict):
        return
    if step.get("type") != "Sequence":
        yield step
    for name in ("normalizers", "pretokenizers", "decoders"):
        for inner in step.get(name) or ():
            yield from flat(inner)


def pipeline(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All steps before the model."""
    return [*flat(spec.get("normalizer")), *flat(spec.get("pre_tokenizer"))]


def is_byte_level(spec: dict[str, Any]) -> bool:
    """Whether tokens are spelt in the byte alphabet."""
    steps = [*pipeline(spec), *flat(spec.get("decoder"))]
    return any(step["type"] == "ByteLevel" for step in steps)


def has_mark(spec: dict[str, Any]) -> bool:
    """Whether tokens have a mark where a text has a space."""
    return any(step["type"] == "Metaspace" or replaces_space(step) for step in pipeline(spec))


def replaces_space(step: dict[str, Any]) -> bool:
    """Whether a step writes the mark for each space, and does no more."""
    return (
        step["type"] == "Replace"
        and step.get("pattern") == {"String": " "}
        and step.get("content") == SPACE_MARK
    )


def names_of(spec: dict[str, Any]) -> dict[int, str]:
    """What each id is called."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        names = {int(number): name for name, number in vocab.items()}
    else:
        names = {number: name for number, (name, _) in enumerate(vocab)}
    return names | {int(token["id"]): token["content"] for token in spec.get("added_tokens") or ()}


def piece_reader(spec: dict[str, Any]) -> Callable[[str], bytes]:
    """What makes bytes of a token of the model."""
    if is_byte_level(spec):
        return lambda name: (
            bytes(ALPHABET[character] for character in name)
            if all(character in ALPHABET for character in name)
            else name.encode()
        )
    model, mark = spec["model"], has_mark(spec)
    if model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix", "##")
        return lambda name: (
            name.removeprefix(prefix) if name.startswith(prefix) else f" {name}"
        ).encode()

    def read(name: str) -> bytes:
        byte = BYTE.fullmatch(name) if model.get("byte_fallback") else None
        if byte:
            return bytes([int(byte[1], 16)])
        return (name.replace(SPACE_MARK, " ") if mark else name).encode()

    return read


def plain_form(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without what can be left out: see huggingface.py."""
    plain = copy.copy(spec) | {"truncation": None, "padding": None, "post_processor": None}
    normalizers = [
        step
        for step in copy.deepcopy([*flat(spec.get("normalizer"))])
        if step["type"] != "NFC"
        and (step["type"] != "Prepend" or step.get("prepend") != SPACE_MARK)
    ]
    plain["normalizer"] = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    plain["pre_tokenizer"] = copy.deepcopy(spec.get("pre_tokenizer"))
    for step in flat(plain["pre_tokenizer"]):
        if "prepend_scheme" in step:
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    plain["added_tokens"] = [
        token | ({} if token.get("special") else {"lstrip": False, "rstrip": False})
        for token in spec.get("added_tokens") or ()
    ]
    return plain


def rust(spec: dict[str, Any]) -> RustTokenizer:
    """The Rust tokenizer of a description; names of special tokens in a text are text to it."""
    tokenizer = RustTokenizer.from_str(json.dumps(spec))
    tokenizer.encode_special_tokens = True
    return tokenizer


def reasons_of(plain: dict[str, Any], names: set[str]) -> list[str]:
    """Why the tokens of a plain form may not give a text back; empty where they always do."""
    reasons = [
        LOSING[step["type"]]
        for step in pipeline(plain)
        if step["type"] in LOSING and not replaces_space(step)
    ]
    if any(step.get("behavior") == "Removed" for step in pipeline(plain)):
        reasons.append("it drops what parts words")
    if plain["model"].get("dropout"):
        reasons.append("it leaves out merges at random")
    if is_byte_level(plain):
        missing = {name for name, byte in ALPHABET.items() if byte in IN_TEXT} - names
        if missing:
            reasons.append(f"it lacks {len(missing)} of the bytes that text may have")
    elif not plain["model"].get("byte_fallback"):
        reasons.append("it has no tokens for characters that it does not know")
    elif missing := {f"<0x{byte:02X}>" for byte in IN_TEXT} - names:
        reasons.append(f"it lacks {len(missing)} of the bytes that text may have")
    return list(dict.fromkeys(reasons))
