"""Speech or other sound: folders of 16-bit PCM .wav files (the paper's speech setting)."""

import struct
import wave
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.corpora.local import Listing, ending, list_source
from data.documents import BLOCK_BYTES, Block, Document, Part, Piece, Source, grouped
from data.splits import assign_splits, fractions, names_splits

WANTED = "a .wav file, or a folder of them, all of one sample rate"
# A file larger than this has more than a head.
MOST_HEAD = 4096


@dataclass(frozen=True)
class WavPart(Part):
    """Pieces of .wav files, counted in frames, as little-endian 16-bit mono samples."""

    pieces: tuple[Piece, ...]

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
                    if len(frames) < count * channels:
                        raise ValueError(f"{piece.path} became shorter while it was read")
                    mixed = np.round(frames.reshape(-1, channels).mean(axis=1)).astype("<i2")
                    yield Block(piece.document, mixed.tobytes(), begins)
                    position, begins = position + count, False


def open_audio(source: str | None) -> Source:
    """A document a file; splits as `assign_splits` has them, else one or two files cut 90/5/5 %.

    ValueError for files that are not 16-bit PCM, cut short, or of several sample rates.
    """
    found = find_files(source)
    paths = found.paths
    names = [path.relative_to(found.root).as_posix() for path in paths]
    heads = [head(path) for path in paths]
    for path, (_, rate) in zip(paths, heads, strict=True):
        if rate != heads[0][1]:
            raise ValueError(
                f"{path} has {rate} samples a second and {paths[0]} has {heads[0][1]}: convert "
                "them to one rate"
            )
    if len(paths) < 3 and not names_splits(names):
        pieces = [
            Piece(path, start, end, Document(split, f"{name}[{start}:{end}]"))
            for path, name, (frames, _) in zip(paths, names, heads, strict=True)
            for split, (start, end) in fractions(frames).items()
        ]
    else:
        pieces = [
            Piece(path, 0, frames, Document(split, name))
            for path, name, split, (frames, _) in zip(
                paths, names, assign_splits(names), heads, strict=True
            )
        ]
    found.tell(names)
    facts = {"sample_rate": heads[0][1]}
    parts = map(WavPart, grouped(pieces, lambda piece: 2 * (piece.end - piece.start)))
    return Source("audio", "bits_per_sample", tuple(parts), facts, words="none")


def find_files(source: str | None) -> Listing:
    """The file that a source names, or the .wav files of its folder; ValueError if it has none."""
    found = list_source(source, "audio", WANTED, lambda name: ending(name) == ".wav")
    if not found.paths:
        raise ValueError(f"{source} holds no .wav files{found.only()}; corpus audio wants {WANTED}")
    return found


def head(path: Path) -> tuple[int, int]:
    """Frames and sample rate of a .wav file, or ValueError."""
    last = 0
    try:
        with wave.open(str(path), "rb") as file:
            width, frames, rate = file.getsampwidth(), file.getnframes(), file.getframerate()
            needed = width * file.getnchannels()
            file.setpos(max(frames - 1, 0))
            # RuntimeError: beyond the end of the whole file, as its head has it.
            with suppress(RuntimeError):
                last = len(file.readframes(1))
    except (wave.Error, EOFError, RuntimeError, struct.error) as error:
        reason = str(error) or "it is too short"
        raise ValueError(f"{path} is not a PCM .wav file: {reason}") from error
    if width != 2:
        raise ValueError(f"{path} has {8 * width}-bit samples: convert it to 16-bit PCM")
    if rate < 1:
        raise ValueError(f"{path} says that it has {rate} samples a second: convert it again")
    if frames and last < needed:
        raise ValueError(
            f"{path} is cut short, since its head says {frames:,} frames: copy or convert it again"
        )
    if not frames and path.stat().st_size > MOST_HEAD:
        raise ValueError(
            f"{path} has a head that says nothing of its sound, as of a recording that was broken "
            "off: convert it again"
        )
    return frames, rate
