"""A book: reading of a long text and writing on, beside transformers with a cache that grows.

An adopted run reads with its memory; the model that it was adopted from reads with the keys and
values of all that it has read, as far as its positions go. Each has a process of its own, so that
the memory that it takes is seen.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from data.common.outputs import check_output
from data.common.schema import Size
from lm import export
from lm.hub.plain import require_base
from lm.inference.inference_config import Placement, SamplingConfig
from lm.inference.loading import load_run
from lm.inference.session import Session, Writing, encode
from tools.benchmarks.timing import machine, report

MEBIBYTE = 1 << 20


def main(
    run: Path,
    text: Path,
    tokens: Size = 100_000,
    written: Size = 200,
    part: Size = 2048,
    full: Size | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    json: Path | None = None,
) -> None:
    """Read a text in parts, one at a time, and write on from its end, on one core.

    Args:
        run: an adopted model.
        text: the book.
        tokens: of it that are read, as far as it goes.
        written: tokens that are written at the end, greedily.
        part: tokens that are read at once, and timed.
        full: tokens that transformers reads at most; none: the positions that the model knows.
        precision: numbers that weights, memory and cache are held in.
        json: file for the result.

    Raises:
        ValueError: the run was not adopted, or the text is shorter than a part.
    """
    check_output(json)
    try:
        require_base(run)
    except ValueError:
        raise ValueError(
            f"{run} was not adopted: no model of transformers is to be beside it"
        ) from None
    read = encode(load_run(run).vocabulary, text.read_bytes(), text.name)[:tokens]
    ids = torch.tensor(read.tolist())
    if len(ids) < part:
        raise ValueError(f"{text} has {len(ids):,} tokens, less than a part of {part:,}")
    asked = (ids, part, written, precision)
    result: dict[str, Any] = {"memory": alone(with_memory, run, *asked)}
    with tempfile.TemporaryDirectory() as place:
        export.main(run, folder := Path(place) / "plain", plain=True)
        result["cache"] = alone(with_cache, folder, *asked, full)
    report(result | machine(torch.device("cpu")) | {"precision": precision, "threads": 1}, json)


def alone(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What a function returns, called in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def with_memory(run: Path, ids: Tensor, part: int, written: int, precision: Any) -> dict[str, Any]:
    """A run's own reader; see `timed`."""
    torch.set_num_threads(1)
    predictor = load_run(run, placement=Placement("cpu", precision)).predictor
    before = held()
    session = Session.begin(predictor, lanes=1)

    def read(some: Tensor) -> None:
        session.read([some.numpy()])

    def write() -> None:
        session.write(Writing(SamplingConfig(temperature=0.0), tokens=written, seeds=[0]))

    return timed(read, write, ids.split(part), written, before)


@torch.no_grad()
def with_cache(
    folder: Path,
    ids: Tensor,
    part: int,
    written: int,
    precision: str,
    full: int | None,
) -> dict[str, Any]:
    """The library's own model and cache; see `timed`."""
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(1)
    kind: Any = AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    most = full or model.config.max_position_embeddings - written
    cache, before, last = DynamicCache(), held(), torch.zeros(1, 1, dtype=torch.int64)

    def read(some: Tensor) -> None:
        nonlocal last
        logits = model(some[None], past_key_values=cache, logits_to_keep=1).logits
        last = logits[:, -1].argmax(-1, keepdim=True)

    def write() -> None:
        for _ in range(written):
            read(last[0])

    return timed(read, write, ids[:most].split(part), written, before)


def timed(
    read: Callable[[Tensor], object],
    write: Callable[[], object],
    parts: tuple[Tensor, ...],
    written: int,
    before: int,
) -> dict[str, Any]:
    """Tokens a second of each part that is read and of writing, and the memory that reading took.

    Args:
        read: of one part after the others.
        write: so many tokens behind them.
        parts: of the text; the last may be shorter.
        written: tokens.
        before: bytes of memory that the process held before anything was read.
    """
    rates, most = [], before
    for part in parts:
        rates.append(round(len(part) / seconds(partial(read, part)), 1))
        most = max(most, held())
    number = sum(map(len, parts))
    total = sum(len(part) / rate for part, rate in zip(parts, rates, strict=True))
    return {
        "tokens": number,
        "seconds": round(total, 1),
        "tokens_per_second": round(number / total, 1),
        "by_part": rates,
        "written_per_second": round(written / seconds(write), 2),
        "mib_before": round(before / MEBIBYTE),
        "mib_more": round((most - before) / MEBIBYTE),
    }


def seconds(action: Callable[[], object]) -> float:
    """Seconds of the processor that an action takes, of all its threads."""
    start = time.process_time()
    action()
    return time.process_time() - start


def held() -> int:
    """Bytes of memory that this process holds."""
    resident: int = psutil.Process().memory_info().rss
    return resident
