"""Data pipeline: shards of a PG-19 folder built at several sizes, text encoded, lanes read.

Memory and core seconds are those of the whole process tree; of memory, shared pages count once.
Other work on the machine makes seconds longer, and core seconds hardly.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from data.common.outputs import check_output
from data.common.schema import Size
from data.corpora.pg19 import open_pg19
from data.encode import whole_lines
from data.lanes import LaneReader
from data.shards import Split, open_shards
from data.tokenizers.registry import ByteTokenizer, Tokenizer, WordTokenizer
from data.tokenizers.words import split_words
from lm.feeding import ReadAhead
from tools.benchmarks.building import CPU
from tools.benchmarks.timing import machine, report, take_turns

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000
LOOK_EVERY_S = 0.05
# Lanes and tokens a segment: the quick start's, a small model's, a large batch's, long segments.
SHAPES = ((16, 64), (16, 512), (64, 512), (8, 2048))
ORDERS: dict[str, dict[str, Any]] = {
    "stream": {"order": "stream"},
    "documents": {"order": "documents"},
    "documents with resets": {"order": "documents", "reset_documents": True},
}


def main(
    source: Path,
    sizes: tuple[Size, ...] = (30, 60, 120),
    workers: tuple[Size, ...] = (1, 2),
    vocabulary_size: Size = 32_000,
    rounds: Size = 3,
    json: Path | None = None,
) -> None:
    """Measure the data pipeline on books in PG-19's layout.

    Args:
        source: folder with train/ID.txt.
        sizes: MB of it that are prepared.
        workers: numbers of processes.
        vocabulary_size: of the SentencePiece vocabulary, which is learnt once.
        rounds: how often each build is timed; the median counts.
        json: file for the result.
    """
    check_output(json)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        books = {size: some_books(source, size, scratch) for size in sizes}
        largest, shards = books[max(sizes)], scratch / "subwords"
        size_option = f"--vocabulary-size={vocabulary_size}"
        learning = build(largest, shards, max(workers), size_option)
        builds = []
        for options in ("--vocabulary=bytes", f"--vocabulary-from={shards}"):
            kind = "bytes" if "bytes" in options else "sentencepiece"
            for text in books.values():
                for count in workers:
                    runs = [build(text, scratch / "shards", count, options) for _ in range(rounds)]
                    builds.append({"vocabulary": kind, "workers": count} | middle(runs))
        result = {
            "learning a vocabulary and encoding": learning | {"workers": max(workers)},
            "builds": builds,
            "encoding, MB/s a core": encoding_rates(largest, shards, rounds),
            "reading lanes, million tokens/s": reading_rates(open_shards(shards).split("train")),
        }
    report(result | machine(CPU), json)


def some_books(source: Path, size: int, scratch: Path) -> Path:
    """A folder with links to the first books of a source that together have about `size` MB."""
    folder = scratch / f"books-{size}"
    (folder / "train").mkdir(parents=True)
    total = 0
    for book in sorted((source / "train").glob("*.txt")):
        if total < 0.99 * size * MB:
            (folder / "train" / book.name).symlink_to(book.resolve())
            total += book.stat().st_size
    if total < 0.99 * size * MB:
        raise ValueError(
            f"{source} has {total / MB:.0f} MB in train/*.txt, not {size}: give other --sizes"
        )
    return folder


def build(source: Path, shards: Path, workers: int, option: str) -> dict[str, float]:
    """Build shards anew in another process; MB of text, time, speed and peak memory."""
    shutil.rmtree(shards, ignore_errors=True)
    command = [sys.executable, "-m", "data.prepare", "--corpus=pg19", f"--source={source}"]
    start, before = time.perf_counter(), children_seconds()
    process = subprocess.Popen(
        [*command, f"--shards={shards}", f"--workers={workers}", option],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(memory, family(process.pid))))
        time.sleep(LOOK_EVERY_S)
    seconds, core_seconds = time.perf_counter() - start, children_seconds() - before
    assert process.stderr
    if process.returncode:
        raise ValueError(process.stderr.read().strip())
    size = open_shards(shards).split("train").bytes / MB
    return {
        "MB": round(size, 1),
        "seconds": round(seconds, 2),
        "MB/s": round(size / seconds, 1),
        "MB/core second": round(size / core_seconds, 1),
        "peak MiB": round(peak / 2**20),
    }


def children_seconds() -> float:
    """Seconds that cores have worked for the children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """A process and all that it has started, while they live."""
    try:
        threads = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for thread in threads for child in thread.read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))]


def memory(pid: int) -> int:
    """Bytes of a process's memory, of a page that n share an n-th."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each value."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def encoding_rates(source: Path, shards: Path, rounds: int) -> dict[str, float]:
    """MB/s of one core for each vocabulary, on the first part of the text."""
    books = open_pg19(str(source), None, None, shards.with_name("unpacked"))
    blocks = [block.data for block in whole_lines(books.parts[0].read())]
    size = sum(map(len, blocks)) / MB
    subwords = open_shards(shards).vocabulary
    words = WordTokenizer.build(Counter(split_words(b"".join(blocks))))
    actions = {
        vocabulary.name: partial(encode_all, vocabulary, blocks)
        for vocabulary in (ByteTokenizer(), subwords, words)
    }
    taken = take_turns(actions, CPU, rounds, warmup=1)
    return {name: round(size / seconds, 1) for name, seconds in taken.items()}


def encode_all(vocabulary: Tokenizer, blocks: list[bytes]) -> None:
    """Encode blocks of whole lines."""
    for block in blocks:
        vocabulary.encode(block).tobytes()


def reading_rates(split: Split) -> dict[str, dict[str, float]]:
    """Million tokens/s of `next` in every order and shape, one reader at a time.

    Also with ReadAhead around it, as training uses it.
    """
    rates: dict[str, dict[str, float]] = {}
    for lanes, segment in SHAPES:
        steps = max(1, 2_000_000 // (lanes * segment))
        actions: dict[str, Callable[[], object]] = {}
        for name, options in ORDERS.items():
            reader = LaneReader(split, lanes=lanes, segment=segment, **options)
            actions[name] = partial(read, reader, steps)
        ahead = LaneReader(split, lanes=lanes, segment=segment)
        actions["stream, read ahead"] = partial(read, ReadAhead(ahead, CPU, 1), steps)
        taken = take_turns(actions, CPU, rounds=9)
        tokens = steps * lanes * segment / 1e6
        rates[f"{lanes} lanes x {segment}"] = {n: round(tokens / s) for n, s in taken.items()}
    return rates


def read(reader: LaneReader | ReadAhead, steps: int) -> None:
    """Read some batches."""
    for _ in range(steps):
        reader.next()
