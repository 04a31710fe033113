"""Where a text ends: stop strings, found as the text comes, and whole characters."""

import codecs
from collections.abc import Sequence

from data.vocab import Vocabulary


class StoppedText:
    """The text of one lane, up to the first stop string, which does not belong to it.

    What might be the beginning of a stop string or a part of a character is held back.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        self.stops = stops
        self.written = bytearray()
        """Everything given out so far."""
        self.stopped = False
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, piece: bytes) -> str:
        """Take the bytes of a token; returns the characters that are certain now."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(found)
        certain = min(found) if found else len(text) - self._beginning(text)
        self._held = text[certain:]
        return self._give(text[:certain], final=self.stopped)

    def end(self) -> str:
        """The rest, when no more tokens come."""
        return "" if self.stopped else self._give(self._held, final=True)

    def _give(self, text: bytes, final: bool) -> str:
        self.written += text
        return self._decoder.decode(text, final)

    def _beginning(self, text: bytes) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0


def check_stops(stops: Sequence[bytes], vocabulary: Vocabulary) -> None:
    """See that every stop string can occur in a text of the vocabulary.

    Raises:
        ValueError: one is empty, or no sequence of tokens contains it.
    """
    for stop in stops:
        if not stop:
            raise ValueError("a stop string must not be empty; leave it out")
        if not can_occur(stop, vocabulary.pieces):
            raise ValueError(
                f"the stop string {stop.decode(errors='replace')!r} can never occur in a text of "
                f"the vocabulary {vocabulary.name}; choose another"
            )


def can_occur(text: bytes, pieces: Sequence[bytes]) -> bool:
    """Whether some sequence of pieces contains `text`."""
    if any(text in piece for piece in pieces):
        return True
    # Places in the text that some end of a piece, followed by whole pieces, can lead up to.
    reached = [
        any(piece.endswith(text[:at]) for piece in pieces) if at else True
        for at in range(len(text))
    ]
    for at in range(len(text)):
        if not reached[at]:
            continue
        for piece in pieces:
            if not piece:
                continue
            if piece.startswith(text[at:]):
                return True
            if at + len(piece) < len(text) and text.startswith(piece, at):
                reached[at + len(piece)] = True
    return False
