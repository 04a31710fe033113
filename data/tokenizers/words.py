"""Words of the closed vocabulary of WikiText-103, ordered by frequency."""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from data.common.files import atomic_path, hash_json
from data.tokenizers.tokenizer import DESCRIPTION, Tokenizer, read_description, write_description

WORDS = "words.tsv"
EOS, UNKNOWN = b"<eos>", b"<unk>"
# Stands for the end of a line among words; no UTF-8 text contains this byte.
LINE_END = b"\xff"


class WordTokenizer(Tokenizer):
    """Words between white space, and `<eos>` for the end of a line; most frequent first.

    A word stands for a space and itself, `<eos>` for a space and a newline: the form of WikiText's
    files, which is decoded exactly. Of other text the spacing inside a line is not kept. A word not
    in the vocabulary becomes `<unk>`. Context before the first token is `<eos>`.
    """

    kind = "words"
    needs_lines = True

    def __init__(self, counts: list[tuple[bytes, int]], eos: int, unknown: int) -> None:
        self.counts, self.start, self.unknown = counts, eos, unknown
        self._ids = {word: i for i, (word, _) in enumerate(counts) if i != eos}
        self._ids[LINE_END] = eos

    @classmethod
    def build(cls, counts: Counter[bytes]) -> Self:
        """The vocabulary of counted `split_words`; equal counts go by their bytes.

        The end of a line and the unknown word are in it even if no text has them.
        """
        known = {LINE_END: 0, UNKNOWN: 0} | counts
        ordered = sorted(known.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, _ in ordered]
        eos = words.index(LINE_END)
        ordered[eos] = (EOS, ordered[eos][1])
        return cls(ordered, eos, words.index(UNKNOWN))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        description = read_description(folder)
        lines = (folder / WORDS).read_bytes().split(b"\n")[:-1]
        counts = [(word, int(count)) for word, count in (line.split(b"\t") for line in lines)]
        eos, unknown = description["eos"], description["unknown"]
        if not max(eos, unknown) < len(counts) or any(count < 0 for _, count in counts):
            raise ValueError(f"{folder / WORDS} lacks words that {DESCRIPTION} speaks of")
        return cls(counts, eos, unknown)

    @cached_property
    def pieces(self) -> list[bytes]:
        """A space and the word; for `<eos>` a space and a newline."""
        pieces = [b" " + word for word, _ in self.counts]
        pieces[self.start] = b" \n"
        return pieces

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the words in order."""
        words = [word.decode() for word, _ in self.counts]
        return hash_json({"kind": self.kind, "words": words, "eos": self.start})

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of whole lines; UnicodeDecodeError where they are not UTF-8."""
        ids, unknown = self._ids, self.unknown
        return np.array([ids.get(word, unknown) for word in split_words(text)], dtype=self.dtype)

    def save(self, folder: Path) -> None:
        """Write words with their counts, a line each, then the description."""
        with atomic_path(folder / WORDS) as temporary:
            lines = [b"%s\t%d\n" % item for item in self.counts]
            temporary.write_bytes(b"".join(lines))
        what = {"kind": self.kind, "hash": self.hash, "eos": self.start, "unknown": self.unknown}
        write_description(folder, what, WORDS)


def split_words(text: bytes) -> list[bytes]:
    """Words of whole lines, with LINE_END after each line; UnicodeDecodeError if not UTF-8."""
    text.decode()
    return text.replace(b"\n", b" %s " % LINE_END).split()
