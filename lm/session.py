"""Texts that a model has read and goes on writing, several side by side.

A session is one or more lanes; each has its own place, memory and random numbers, so a text does
not depend on its neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.common.progress import Progress
from data.vocab import Vocabulary
from lm.loading import LoadedRun
from lm.model.incremental import Reader
from lm.sampling import Sampler, SamplingConfig
from lm.stops import StoppedText

PART = 4096
"""Tokens of each lane that are read between two updates of the progress display."""


@dataclass(frozen=True)
class Writing:
    """How texts are continued."""

    sampling: SamplingConfig
    tokens: int
    """At most so many to a text."""
    seeds: Sequence[int]
    """One for each lane."""
    stops: Sequence[bytes] = ()


class Session:
    """Lanes of text that a model reads and continues."""

    def __init__(self, loaded: LoadedRun, reader: Reader, seen_BV: torch.Tensor) -> None:
        self.loaded, self.reader = loaded, reader
        self.seen_BV = seen_BV
        """bool, the tokens that each lane has read or written, for the repetition penalty."""

    @staticmethod
    def begin(loaded: LoadedRun, lanes: int) -> "Session":
        """Lanes that have read nothing but the context that precedes every text."""
        model = loaded.model
        reader = Reader(model, model.empty_memory(lanes))
        seen = torch.zeros(lanes, model.vocabulary, dtype=torch.bool, device=reader.last_BD.device)
        session = Session(loaded, reader, seen)
        session.read([np.array([loaded.vocabulary.start])] * lanes)
        return session

    @property
    def lanes(self) -> int:
        """Number of texts."""
        return self.reader.lanes

    def read(self, texts: Sequence[np.ndarray]) -> None:
        """Each lane reads a text of any length, given as ids.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        counts = [len(text) for text in texts]
        tokens_Bt = torch.zeros(len(texts), max(counts), dtype=torch.int64)
        for lane, text in enumerate(texts):
            if len(text) and not 0 <= int(text.min()) <= int(text.max()) < self.seen_BV.shape[1]:
                raise ValueError(
                    f"tokens must be below {self.seen_BV.shape[1]}, the size of the model's "
                    f"vocabulary, not {int(text.max())}"
                )
            tokens_Bt[lane, : len(text)] = torch.from_numpy(text.astype(np.int64))
            self.seen_BV[lane, tokens_Bt[lane, : len(text)].to(self.seen_BV.device)] = True
        tokens_Bt = tokens_Bt.to(self.seen_BV.device)
        enabled = max(counts) > PART
        with Progress("read", sum(counts), "token", scale=True, enabled=enabled) as bar:
            for first in range(0, max(counts), PART):
                part = [min(max(count - first, 0), PART) for count in counts]
                self.reader.read(tokens_Bt[:, first : first + PART], part)
                bar.update(sum(part))

    def repeat(self, copies: int) -> "Session":
        """Each lane `copies` times, side by side; what was read is shared."""
        seen = self.seen_BV.repeat_interleave(copies, dim=0)
        return Session(self.loaded, self.reader.repeat(copies), seen)

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
        pieces = self.loaded.vocabulary
        sampler = Sampler(how.sampling, how.seeds, self.seen_BV)
        texts = [StoppedText(how.stops) for _ in range(self.lanes)]
        going = list(range(self.lanes))
        for _ in range(how.tokens):
            token_B = sampler(self.reader.logits())
            self.reader.read(token_B[:, None])
            for lane, token in zip(going, token_B.cpu().numpy(), strict=True):
                show(lane, texts[lane].add(pieces.decode(token[None])))
            rows = [row for row, lane in enumerate(going) if not texts[lane].stopped]
            if len(rows) < len(going):
                going = [going[row] for row in rows]
                if not going:
                    break
                self.reader = self.reader.select(rows)
                sampler.keep(rows)
        self.seen_BV = sampler.seen_BV
        for lane in going:
            show(lane, texts[lane].end())
        return [bytes(text.written) for text in texts]


def encode(vocabulary: Vocabulary, text: bytes, name: str) -> np.ndarray:
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
