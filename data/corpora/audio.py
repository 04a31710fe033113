"""Speech or other sound: folders of 16-bit PCM .wav files (the paper's speech setting)."""

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.corpora.local import existing
from data.documents import BLOCK_BYTES, PART_BYTES, Block, Document, Part, Source
from data.splits import assign_splits, fractions, names_splits

WANTED = "a .wav file, or a folder of them, all of one sample rate"


@dataclass(frozen=True)
class WavPiece:
    """Frames [start, end) of a .wav file, a document."""

    path: Path
    start: int
    end: int
    document: Document


@dataclass(frozen=True)
class WavPart(Part):
    """Pieces of .wav files as little-endian 16-bit mono samples."""

    pieces: tuple[WavPiece, ...]

    @property
    def size(self) -> int:
        """Bytes of the samples."""
        return 2 * sum(piece.end - piece.start for piece in self.pieces)

    def read(self) -> Iterator[Block]:
        """Yield samples, channels mixed down to their mean."""
        for piece in self.pieces:
            with wave.open(str(piece.path), "rb") as file:
                file.setpos(piece.start)
                channels = file.getnchannels()
                position, begins = piece.start, True
                while position < piece.end or begins:
                    count = min(piece.end - position, BLOCK_BYTES // 2)
                    frames = np.frombuffer(file.readframes(count), dtype="<i2")
                    mixed = np.round(frames.reshape(-1, channels).mean(axis=1)).astype("<i2")
                    yield Block(piece.document, mixed.tobytes(), begins)
                    position, begins = position + count, False


def open_audio(source: str | None) -> Source:
    """A document a file; splits as `assign_splits` has them, else one or two files cut 90/5/5 %.

    ValueError for files that are not 16-bit PCM, cut short, or of several sample rates.
    """
    given = existing(source, "audio", WANTED)
    paths = sorted(given.rglob("*.wav")) if given.is_dir() else [given]
    if not paths:
        raise ValueError(f"{given} holds no .wav files; corpus audio wants {WANTED}")
    root = given if given.is_dir() else given.parent
    names = [path.relative_to(root).as_posix() for path in paths]
    heads = [head(path) for path in paths]
    for path, (_, rate) in zip(paths, heads, strict=True):
        if rate != heads[0][1]:
            raise ValueError(
                f"{path} has {rate} samples a second and {paths[0]} has {heads[0][1]}: convert "
                "them to one rate"
            )
    if len(paths) < 3 and not names_splits(names):
        pieces = [
            WavPiece(path, start, end, Document(split, f"{name}[{start}:{end}]"))
            for path, name, (frames, _) in zip(paths, names, heads, strict=True)
            for split, (start, end) in fractions(frames).items()
        ]
    else:
        pieces = [
            WavPiece(path, 0, frames, Document(split, name))
            for path, name, split, (frames, _) in zip(
                paths, names, assign_splits(names), heads, strict=True
            )
        ]
    facts = {"sample_rate": heads[0][1]}
    return Source("audio", "bits_per_sample", wav_parts(pieces), facts, words="none")


def head(path: Path) -> tuple[int, int]:
    """Frames and sample rate of a .wav file, or ValueError."""
    try:
        with wave.open(str(path), "rb") as file:
            width, frames, rate = file.getsampwidth(), file.getnframes(), file.getframerate()
            needed = frames * width * file.getnchannels()
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a PCM .wav file: {error or 'it is too short'}") from error
    if width != 2:
        raise ValueError(f"{path} has {8 * width}-bit samples: convert it to 16-bit PCM")
    if path.stat().st_size < needed:
        raise ValueError(f"{path} is cut short: copy it again")
    return frames, rate


def wav_parts(pieces: list[WavPiece]) -> tuple[WavPart, ...]:
    """Group pieces, in order, into parts of about PART_BYTES."""
    parts: list[WavPart] = []
    waiting: list[WavPiece] = []
    samples = 0
    for piece in pieces:
        waiting.append(piece)
        samples += piece.end - piece.start
        if 2 * samples >= PART_BYTES:
            parts.append(WavPart(tuple(waiting)))
            waiting, samples = [], 0
    if waiting:
        parts.append(WavPart(tuple(waiting)))
    return tuple(parts)
