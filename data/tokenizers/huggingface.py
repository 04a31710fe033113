"""Any tokenizer of the Hugging Face hub that has a tokenizer.json, as a vocabulary.

A text is encoded by the Rust library `tokenizers`. What would keep tokens from giving it back and
can be left out without another id inside a text is left out: a space put before every text, special
tokens that a text spells, and NFC, which changes only text that is not NFC already. What remains
(lower-casing, stripping, white space thrown away) makes a vocabulary inexact; `reasons` says so.
"""

import itertools
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from data.common.files import atomic_path, hash_json
from data.tokenizers.hub_files import KEPT, TOKENIZER, HubFiles, find_folder, read_files
from data.tokenizers.rules import (
    BYTE,
    SPACE_MARK,
    has_mark,
    names_of,
    piece_reader,
    plain_form,
    reasons_of,
    rust,
)
from data.tokenizers.tokenizer import Tokenizer, read_description, write_description

GAP = re.compile(r"(?<=[A-Za-z])(?=[ \n])")
"""After a letter, before a space or line end: there nearly every tokenizer parts words."""
MOST_KNOWN, LONGEST_KNOWN = 1 << 18, 64
"""Stretches between gaps whose ids are kept, and characters of each."""
FAR = 1 << 16
"""Bytes that are searched for such a place from a block's end."""
PROBES = ("The cat's", "x", " naïve\n\n\tÀ", "e.g. 12\r\nWord", "a\n \nsaid", "!\n\nHe")
"""Texts whose ends are put together to see whether the gap is kept."""


class HuggingFaceTokenizer(Tokenizer):
    """The tokens of a tokenizer.json, and those of its special tokens' names.

    Context before the first token is the beginning of text, else the end of text, else token 0.
    Ids that stand for no text (special tokens, rows of the model that no token has) have no bytes.
    """

    kind = "hf"

    def __init__(self, source: HubFiles, size: int | None = None) -> None:
        """Read `source`; ValueError where `size`, the rows of a model, is less than its tokens."""
        self._source = source
        self.files, self.special, self.ends = source.files, source.special, source.ends
        try:
            self._names = names_of(source.spec)
            self._plain = plain_form(source.spec)
            self._rust = rust(self._plain)
        except Exception as error:  # the Rust library raises no other class
            raise ValueError(f"{TOKENIZER} cannot be used ({error})") from error
        most = max(self._names, default=-1) + 1
        if size is not None and size < most:
            raise ValueError(
                f"the tokenizer has {most:,} tokens and the model {size:,}: give the tokenizer "
                "that belongs to the model"
            )
        self.rows = size or max(most, source.size)
        self.start = self.special.get("bos", self.special.get("eos", 0))

    @classmethod
    def read(cls, folder: Path | str, size: int | None = None) -> "HuggingFaceTokenizer":
        """The tokenizer of somebody's folder, or of a name on the hub.

        size: rows of the model that it is for. ValueError where there is none, or it does not fit.
        """
        place = find_folder(str(folder))
        try:
            return cls(read_files(place), size)
        except ValueError as error:
            named = str(place) in str(error)
            raise ValueError(str(error) if named else f"{place}: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> "HuggingFaceTokenizer":
        """Read what `save` wrote."""
        about, there = read_description(folder), read_files(folder)
        special = {str(name): int(number) for name, number in about.get("special", {}).items()}
        ends = tuple(int(number) for number in about.get("ends", ()))
        return cls(HubFiles(there.files, there.spec, special, ends), int(about["size"]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuilt from its files in a worker."""
        return type(self), (self._source, self.rows)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each id; none for special tokens."""
        spec, special = self._source.spec, set(self.special.values())
        added = {int(token["id"]) for token in spec.get("added_tokens") or ()}
        to_bytes = piece_reader(spec)
        pieces = [b""] * self.rows
        for number, name in self._names.items():
            if number in added:
                pieces[number] = b"" if number in special else name.encode()
            elif number not in special:
                pieces[number] = to_bytes(name)
        return pieces

    @property
    def names(self) -> list[str]:
        """What the tokenizer calls each id; rows of the model without a token have no name."""
        return [self._names.get(number, "") for number in range(self.rows)]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what tokenizer.json says of ids, whatever its spacing."""
        apart = ("truncation", "padding", "post_processor", "version")
        said = {name: value for name, value in self._source.spec.items() if name not in apart}
        return hash_json({"kind": self.kind, "tokenizer": said})

    @cached_property
    def reasons(self) -> list[str]:
        """Why tokens may not give a text back; empty where they always do."""
        return reasons_of(self._plain, {*self._names.values()})

    @cached_property
    def parts(self) -> bool:
        """Whether a text may be cut at a gap without another id: no token spans one, and texts put
        together there encode as they do alone.
        """
        if any(GAP.search(piece.decode(errors="replace")) for piece in self.pieces):
            return False
        rights = [gap + text for gap in " \n" for text in PROBES]
        return all(
            self._ids(left + "e" + right) == self._ids(left + "e") + self._ids(right)
            for left in PROBES
            for right in rights
        )

    def cut(self, text: bytes) -> int:
        """Bytes up to the last gap; 0 without one, or where the tokenizer joins words."""
        if not self.parts:
            return 0
        for first in (max(len(text) - FAR, 0), 0):
            ends = [found.end() for found in re.finditer(rb"[A-Za-z](?=[ \n])", text[first:])]
            if ends:
                return first + ends[-1]
        return 0

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text; UnicodeDecodeError where it is not UTF-8."""
        units: list[str | list[int]] = []
        for part in self._guarded(text.decode()):
            units += GAP.split(part) if isinstance(part, str) and self.parts else [part]
        known = self._known
        if len(known) > MOST_KNOWN:
            known.clear()
        new = list({unit for unit in units if isinstance(unit, str) and unit not in known})
        encoded = self._rust.encode_batch_fast(new, add_special_tokens=False)
        known.update((unit, each.ids) for unit, each in zip(new, encoded, strict=True))
        ids = [known[unit] if isinstance(unit, str) else unit for unit in units]
        for unit in new:
            if len(unit) > LONGEST_KNOWN:
                del known[unit]
        return np.fromiter(itertools.chain.from_iterable(ids), dtype=self.dtype)

    @cached_property
    def _known(self) -> dict[str, list[int]]:
        """Ids of what has been encoded: most of a text is words that it has had before."""
        return {}

    def encode_marked(self, text: str) -> np.ndarray:
        """Ids of a text in which special tokens are spelt, as chat templates do; as transformers
        has them, without any that it would put before and behind.
        """
        ids = self._marked.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=self.dtype)

    @cached_property
    def _marked(self) -> RustTokenizer:
        """The tokenizer as it is, which finds special tokens in a text."""
        tokenizer = RustTokenizer.from_str(self.files[TOKENIZER].decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _ids(self, text: str) -> list[int]:
        """Ids of a text, whole."""
        ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
        return ids

    def _guarded(self, text: str) -> Iterator[str | list[int]]:
        """A text in parts, so that none spells a token that stands for something else."""
        guard = self._guard
        if guard is None:
            yield text
            return
        begin = 0
        for found in guard.finditer(text):
            at = found.start()
            if text[at] == SPACE_MARK:
                yield text[begin:at]
                yield self._mark
                begin = at + 1
            else:
                # The first character by itself: what follows cannot complete the name.
                yield text[begin : at + 1]
                begin = at + 1
        yield text[begin:]

    @cached_property
    def _mark(self) -> list[int]:
        """Ids of the bytes of SPACE_MARK; empty where a vocabulary has no bytes."""
        ids = {name: number for number, name in self._names.items()}
        found = [ids.get(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        return [number for number in found if number is not None] if None not in found else []

    @cached_property
    def _guard(self) -> re.Pattern[str] | None:
        """What a text must not spell: the mark of a space, and names that the model would match."""
        spec = self._source.spec
        names = [SPACE_MARK] if self._mark and has_mark(spec) else []
        if spec["model"].get("type") == "Unigram":
            special = set(self.special.values())
            names += [
                name
                for number, name in self._names.items()
                if len(name) > 1 and (number in special or BYTE.fullmatch(name))
            ]
        if not names:
            return None
        # Looked at and not taken, because a name may begin inside another.
        return re.compile("|".join(f"(?={re.escape(name)})" for name in names))

    @cached_property
    def size(self) -> int:
        """Number of ids: rows of the model."""
        return self.rows

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files, then the description."""
        for name in KEPT:
            if name in self.files:
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(self.files[name])
        self.describe(folder)

    def describe(self, folder: Path) -> None:
        """Write the description of files that lie in a folder."""
        what = {"kind": self.kind, "hash": self.hash, "size": self.rows}
        what |= {"special": self.special, "ends": list(self.ends)}
        write_description(folder, what, *(name for name in KEPT if name in self.files))
