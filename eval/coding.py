"""A file as the arithmetic code of a model's predictions, and back."""

import bz2
import lzma
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.common.files import hash_json
from data.common.progress import Progress
from data.common.requirements import extra, require_memory
from lm.inference.adapted import AdaptedPredictor
from lm.inference.loading import LoadedRun
from lm.inference.predictor import Predictor
from lm.scoring import require_finite

MAGIC, VERSION = b"LRLM", 1
LAYOUT = struct.Struct("<16s16sQIH")
SIZE = len(MAGIC) + 1 + LAYOUT.size
WORD = 4
"""Bytes of a word of the coder."""
MOST_THREADS = 1024
"""More than any machine computes with; a library ends the process when it gets fewer than it asks
for."""
PRECISION = 24
"""Bits of the coder's probabilities, none of which is zero."""
SUFFIX = ".lm"
LANE_TOKENS, MOST_LANES = 4096, 256
"""By default each lane is at least so long, and there are at most so many: the beginning of a lane
costs about two bytes more than the same text after what stands before it.
"""
SLACK, LEAST = 64.0, 2.0**-PRECISION
"""Bits that a coder may leave out at the end, and the least probability that it gives a token."""


def target_of(file: Path, decompress: bool) -> Path:
    """Where a result goes by default.

    Raises:
        ValueError: the name of a compressed file does not say what it was before.
    """
    if not decompress:
        return file.with_name(file.name + SUFFIX)
    if file.suffix != SUFFIX:
        raise ValueError(f"{file} does not end in {SUFFIX}; say with --out where its text goes")
    return file.with_suffix("")


def compress(
    predictor: Predictor[Any], model: bytes, content: bytes, lanes: int | None, file: Path
) -> bytes:
    """The compressed file.

    Args:
        predictor: what gives the probabilities.
        model: 16 bytes that stand for all that decides them.
        content: the text.
        lanes: see `main`.
        file: what it is called in a complaint.

    Raises:
        ValueError: the predictor's vocabulary does not give the content back exactly.
    """
    vocabulary = predictor.vocabulary
    try:
        tokens = vocabulary.encode(content).astype(np.int64)
        exact = vocabulary.decode(tokens) == content
    except ValueError:
        exact = False
    if not exact:
        raise ValueError(
            f"{file} cannot be written exactly with the vocabulary {vocabulary.name}; compress it "
            "with a model of bytes"
        )
    if lanes is None:
        lanes = min(MOST_LANES, len(tokens) // LANE_TOKENS)
    segments = -(-len(tokens) // predictor.segment)
    header = Header(
        model=model,
        content=sha256(content).digest()[:16],
        tokens=len(tokens),
        lanes=max(1, min(lanes, segments)),
        threads=torch.get_num_threads(),
    )
    payload = Coder(predictor, header).encode(tokens)
    return pack(header, payload)


def restore(predictor: Predictor[Any], model: bytes, packed: bytes, file: Path) -> bytes:
    """The file that was compressed; arguments as in `compress`.

    Raises:
        ValueError: it is damaged, or was made with another model or on a machine that computes
            otherwise.
    """
    header, payload = unpack(packed, file)
    if header.model != model:
        raise ValueError(
            f"{file} was compressed with another model, or looked up otherwise; give the run, "
            "checkpoint and --adapt that it was made with"
        )
    segments = max(1, -(-header.tokens // predictor.segment))
    if header.tokens > most_tokens(payload, predictor.vocabulary.size) or header.lanes > segments:
        raise ValueError(
            f"{file} is damaged: {len(payload):,} bytes cannot hold {header.tokens:,} tokens in "
            f"{header.lanes:,} lanes"
        )
    threads = torch.get_num_threads()
    try:
        # The number of threads decides the order of sums, and so the last bits.
        torch.set_num_threads(header.threads)
        tokens_N = Coder(predictor, header).decode(payload)
        content = None if tokens_N is None else predictor.vocabulary.decode(tokens_N)
    except AssertionError:
        # What the coder says of words that fit no token.
        content = None
    finally:
        torch.set_num_threads(threads)
    if content is None or sha256(content).digest()[:16] != header.content:
        raise ValueError(
            f"{file} does not come back as it was: it was changed, or this machine rounds "
            "otherwise than the one that compressed it; decompress it there"
        )
    return content


def model_digest(loaded: LoadedRun, predictor: Predictor[Any] | None = None) -> bytes:
    """What a compressed file knows its model by, 16 bytes: weights, shape and vocabulary, and what
    the predictor around it looks up, if anything.
    """
    parts = [loaded.weights, loaded.vocabulary.hash, loaded.model.config.shape()]
    if isinstance(predictor, AdaptedPredictor):
        parts.append(predictor.identity)
    return bytes.fromhex(hash_json(parts))[:16]


@dataclass(frozen=True)
class Header:
    """What a decoder must know, and what it checks."""

    model: bytes
    """Digest of the model, 16 bytes."""
    content: bytes
    """Digest of the file before, 16 bytes."""
    tokens: int
    lanes: int
    threads: int
    """Of the processor, while it was compressed."""


def pack(header: Header, payload: bytes) -> bytes:
    """A whole file."""
    body = MAGIC + bytes([VERSION]) + LAYOUT.pack(*astuple(header)) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(packed: bytes, file: Path) -> tuple[Header, bytes]:
    """Header and coder's words of a whole file.

    Raises:
        ValueError: it is no such file, of another version, cut off or changed, or its header says
            what no file of this program says.
    """
    if packed[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{file} was not made by eval.compress")
    body, checksum = packed[:-4], packed[-4:]
    if len(packed) < SIZE + 4 or struct.pack("<I", zlib.crc32(body)) != checksum:
        raise ValueError(f"{file} is damaged: its checksum does not fit; copy it again")
    if packed[len(MAGIC)] != VERSION:
        raise ValueError(f"{file} was made by another version of eval.compress")
    header = Header(*LAYOUT.unpack(body[len(MAGIC) + 1 : SIZE]))
    payload = body[SIZE:]
    if not 1 <= header.threads <= MOST_THREADS:
        raise ValueError(f"{file} is damaged: it was made with {header.threads} threads")
    if not 1 <= header.lanes <= max(1, header.tokens):
        raise ValueError(
            f"{file} is damaged: it has {header.lanes} lanes of {header.tokens} tokens"
        )
    if len(payload) % WORD:
        raise ValueError(f"{file} is damaged: its text does not end with a word of the coder")
    return header, payload


def most_tokens(payload: bytes, vocabulary: int) -> int:
    """So many tokens fit into the coder's words at most: none is more probable than all but the
    least that every other token of the vocabulary keeps.
    """
    others = max(1, vocabulary - 1)
    bits_each = -math.log1p(-others / 2**PRECISION) / math.log(2)
    # The coder may leave out a word whose bits say nothing.
    return int(8 * (len(payload) + WORD) / bits_each)


class EndedError(Exception):
    """More bits were read than there are."""


class Coder:
    """Walks through the lanes of a text side by side, with the probabilities of what comes next."""

    def __init__(self, predictor: Predictor[Any], header: Header) -> None:
        with extra("eval", "eval.compress"):
            import constriction

        self.streams = constriction.stream.queue
        self.family = constriction.stream.model.Categorical(perfect=False)
        self.predictor, self.total, self.lanes = predictor, header.tokens, header.lanes
        segment = predictor.segment
        segments = -(-self.total // segment)
        # The lanes are those of a score with as many lanes, so that both numbers can be compared.
        bounds = [lane * segments // self.lanes * segment for lane in range(self.lanes + 1)]
        self.bounds = np.minimum(bounds, self.total)

    def steps(self, choose: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Walk to the end. At each step `choose` has the lanes that go on, the places of their next
        tokens, and probabilities [lanes, V]; it returns these tokens.
        """
        predictor = self.predictor
        state = predictor.begin(self.lanes)
        start, device = predictor.vocabulary.start, predictor.device
        last = torch.full((self.lanes, 1), start, device=device)
        begins, ends = self.bounds[:-1], self.bounds[1:]
        length = int((ends - begins).max(initial=0))
        with Progress("code", self.total, "token", scale=True) as bar:
            for step in range(length):
                hidden, state = predictor.read(last, state)
                logits = predictor.logits(hidden)[:, -1]
                probabilities = logits.float().softmax(dim=-1).cpu().numpy()
                require_finite(probabilities)
                going = np.flatnonzero(begins + step < ends)
                tokens = choose(begins[going] + step, probabilities[going])
                # Lanes that are through read on from whatever they have, so shapes never change.
                last[going, 0] = torch.from_numpy(tokens).to(device)
                bar.update(len(going))

    def encode(self, tokens_N: np.ndarray) -> bytes:
        """Tokens as a string of bits."""
        encoder = self.streams.RangeEncoder()

        def choose(places: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
            chosen = tokens_N[places]
            encoder.encode(chosen.astype(np.int32), self.family, probabilities)
            return chosen

        self.steps(choose)
        return words_of(encoder)

    def decode(self, payload: bytes) -> np.ndarray | None:
        """The tokens of a string of bits, [N]; None if it ends before the last of them, or goes on
        behind it.
        """
        decoder = self.streams.RangeDecoder(np.frombuffer(payload, dtype="<u4").astype(np.uint32))
        require_memory(8 * self.total, f"a text of {self.total:,} tokens")
        tokens_N = np.zeros(self.total, dtype=np.int64)
        # Written again, because words behind the end need not disturb a decoder.
        again = self.streams.RangeEncoder()
        bits = 8.0 * len(payload) + SLACK

        def choose(places: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
            nonlocal bits
            chosen = decoder.decode(self.family, probabilities).astype(np.int64)
            tokens_N[places] = chosen
            again.encode(chosen.astype(np.int32), self.family, probabilities)
            # What the coder gives a token is no more than this.
            given = probabilities[np.arange(len(chosen)), chosen].astype(np.float64) + LEAST
            bits += np.log2(given).sum()
            if bits < 0:
                raise EndedError
            return chosen

        try:
            self.steps(choose)
        except EndedError:
            return None
        return tokens_N if words_of(again) == payload else None


def words_of(encoder: Any) -> bytes:
    """What a coder has written."""
    words: np.ndarray = encoder.get_compressed()
    return words.astype("<u4").tobytes()


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    """General compressors at their strongest, by name."""
    with extra("eval", "--compare"):
        import brotli
        import zstandard

    return {
        "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
        "bzip2 -9": lambda text: bz2.compress(text, 9),
        "zstd -22": zstandard.ZstdCompressor(level=22).compress,
        "brotli -11": lambda text: brotli.compress(text, quality=11, lgwin=24),
    }
