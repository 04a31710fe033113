"""Texts that a model has read and goes on writing, several side by side.

A session is one or more lanes; each has its own place, memory and random numbers, so a text does
not depend on its neighbours.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch

from data.common.progress import Progress
from data.tokenizers.registry import Tokenizer
from lm.inference.inference_config import SamplingConfig
from lm.inference.predictor import Predictor, StateT
from lm.inference.sampling import Sampler


@dataclass(frozen=True)
class Writing:
    """How texts are continued."""

    sampling: SamplingConfig
    tokens: int
    """At most so many to a text."""
    seeds: Sequence[int]
    """One for each lane."""
    stops: Sequence[bytes] = ()
    ends: frozenset[int] = frozenset()
    """Tokens at which a text ends; they are read, and have no text."""


@dataclass(eq=False)
class Session(Generic[StateT]):
    """Lanes of text that a predictor reads and continues; each has read a token at least."""

    predictor: Predictor[StateT]
    state: StateT
    """What the predictor knows of them."""
    last_B1: torch.Tensor
    """What it made of the last token of each lane, [B, 1, ...]."""
    seen_BV: torch.Tensor
    """bool, the tokens that each lane has read or written, for the repetition penalty."""
    ended: frozenset[int] = frozenset()
    """Lanes, counted as at its beginning, whose last writing came to one of its `ends`."""

    @staticmethod
    def begin(
        predictor: Predictor[StateT], lanes: int, state: StateT | None = None
    ) -> "Session[StateT]":
        """Lanes that have read nothing but the context that precedes every text.

        state: what the predictor knows of them already, if anything.
        """
        vocabulary, device = predictor.vocabulary, predictor.device
        start_B1 = torch.full((lanes, 1), vocabulary.start, device=device)
        known = predictor.begin(lanes) if state is None else state
        last_B1, state = predictor.read(start_B1, known)
        seen_BV = torch.zeros(lanes, vocabulary.size, dtype=torch.bool, device=device)
        seen_BV[:, vocabulary.start] = True
        return Session(predictor, state, last_B1, seen_BV)

    @property
    def lanes(self) -> int:
        """Number of texts."""
        return len(self.last_B1)

    def logits(self) -> torch.Tensor:
        """Of what follows in each lane, [B, V]."""
        return self.predictor.logits(self.last_B1)[:, 0]

    def advance(self, tokens_Bt: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Read some tokens of each lane, from the left; returns what the predictor made of them,
        [B, t, ...].
        """
        if min(counts) == tokens_Bt.shape[1]:
            hidden, self.state = self.predictor.read(tokens_Bt, self.state)
            self.last_B1 = hidden[:, -1:]
            return hidden
        hidden, self.state = self.predictor.read(tokens_Bt, self.state, counts)
        # Lanes that read nothing keep what they had.
        rows = [lane for lane, count in enumerate(counts) if count]
        self.last_B1 = self.last_B1.clone()
        self.last_B1[rows, 0] = hidden[rows, [counts[row] - 1 for row in rows]]
        return hidden

    def read(self, texts: Sequence[np.ndarray]) -> None:
        """Each lane reads a text of any length, given as ids.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        size = self.predictor.vocabulary.size
        for text, seen_V in zip(texts, self.seen_BV, strict=True):
            if len(text) and not 0 <= int(text.min()) <= int(text.max()) < size:
                raise ValueError(
                    f"tokens must be below {size}, the size of the model's vocabulary, not "
                    f"{int(text.max())}"
                )
            seen_V[text.astype(np.int64)] = True
        total, enabled = sum(map(len, texts)), max(map(len, texts)) > self.predictor.at_once
        with Progress("read", total, "token", scale=True, enabled=enabled) as bar:
            for tokens_Bt, counts in self.parts(texts, self.predictor.at_once):
                self.advance(tokens_Bt, counts)
                bar.update(sum(counts))

    def parts(
        self, texts: Sequence[np.ndarray], size: int
    ) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Texts side by side, `size` tokens at once: tokens [B, t] as `advance` reads them, and how
        many each lane has of them.
        """
        for first in range(0, max(map(len, texts)), size):
            some = [text[first : first + size] for text in texts]
            counts = [len(text) for text in some]
            tokens_Bt = torch.zeros(len(some), max(counts), dtype=torch.int64)
            for lane, text in enumerate(some):
                tokens_Bt[lane, : len(text)] = torch.from_numpy(text.astype(np.int64))
            yield tokens_Bt.to(self.predictor.device), counts

    def select(self, lanes: Sequence[int]) -> "Session[StateT]":
        """Some of the lanes, in any order and number; they and these go on independently."""
        rows = torch.tensor(list(lanes), device=self.seen_BV.device)
        return Session(
            self.predictor, self.state.select(lanes), self.last_B1[rows], self.seen_BV[rows]
        )

    def repeat(self, copies: int) -> "Session[StateT]":
        """Each lane `copies` times, side by side; what was read is shared."""
        return self.select([lane for lane in range(self.lanes) for _ in range(copies)])

    def write(
        self, how: Writing, show: Callable[[int, str], None] = lambda _, __: None
    ) -> list[bytes]:
        """Continue every lane; lanes that have stopped leave the session.

        Args:
            how: sampling, length, seeds and stop strings.
            show: called with a lane, counted as at the beginning, and its next characters.

        Returns:
            The continuations, without stop strings.
        """
        pieces = self.predictor.vocabulary.pieces
        sampler = Sampler(how.sampling, how.seeds, self.seen_BV)
        texts = [StoppedText(how.stops) for _ in range(self.lanes)]
        going, self.ended = list(range(self.lanes)), frozenset()
        for _ in range(how.tokens):
            token_B = sampler(self.logits())
            self.advance(token_B[:, None], [1] * self.lanes)
            for lane, token in zip(going, token_B.tolist(), strict=True):
                if token in how.ends:
                    self.ended |= {lane}
                    show(lane, texts[lane].end())
                    texts[lane].stopped = True
                else:
                    show(lane, texts[lane].add(pieces[token]))
            rows = [row for row, lane in enumerate(going) if not texts[lane].stopped]
            if len(rows) < len(going):
                going = [going[row] for row in rows]
                if not going:
                    break
                going_on = self.select(rows)
                self.state, self.last_B1 = going_on.state, going_on.last_B1
                sampler.keep(rows)
        self.seen_BV = sampler.seen_BV
        for lane in going:
            show(lane, texts[lane].end())
        return [bytes(text.written) for text in texts]


def encode(vocabulary: Tokenizer, text: bytes, name: str) -> np.ndarray:
    """Ids of a text.

    Args:
        vocabulary: of the model.
        text: any bytes that the vocabulary can hold.
        name: what the text is called in a complaint.

    Raises:
        ValueError: the vocabulary cannot hold the text.
    """
    try:
        return vocabulary.encode(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 at byte {error.start}, but the vocabulary {vocabulary.name} "
            "holds nothing else; convert it"
        ) from None
    except ValueError:
        raise ValueError(
            f"{name} has {len(text)} bytes, but the vocabulary {vocabulary.name} is of 16-bit "
            "samples; give an even number"
        ) from None


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


def check_stops(stops: Sequence[bytes], vocabulary: Tokenizer) -> None:
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
