"""Program: corpus + vocabulary -> token shards; parallel, atomic, restartable.

The work is done in `<shards>.building` beside the shards and renamed into place when it is whole.
A build that was killed continues there; a lock keeps a second build of the same shards waiting.
"""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from data.assemble import assemble
from data.command import run
from data.documents import Part, Source
from data.encode import Encoder
from data.files import hash_json, publish_folder, read_json, remove_folder, write_json
from data.locks import locked
from data.options import DataConfig
from data.progress import Progress
from data.shards import MANIFEST, Shards, open_shards
from data.sources import fingerprint, open_source
from data.vocab import ByteVocabulary, load_vocabulary

__all__ = ["DataConfig", "main", "prepare"]

SOURCE_FILES = "source.json"


def main(data: DataConfig, workers: int | None = None, verify: bool = False) -> None:
    """Turn a corpus into memory-mapped token shards.

    Args:
        data: what to prepare and where.
        workers: number of processes; null is one for each core.
        verify: hash every file of shards that are there already.
    """
    shards = prepare(data, workers, verify)
    print(table(shards))


def prepare(config: DataConfig, workers: int | None = None, verify: bool = False) -> Shards:
    """Build the shards of a config, or open them if they are there; return them opened.

    ValueError when the source is not usable, or when the folder holds shards made with other
    options or from other files.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    final = config.shards
    if (final / MANIFEST).is_file():
        return existing(config, verify)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ValueError(f"{final} is in the way and holds no shards: choose another folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(final.with_name(f".{final.name}.lock"), f"another build of {final}"):
        if (final / MANIFEST).is_file():
            return existing(config, verify)
        work = final.with_name(f"{final.name}.building")
        try:
            build(config, work, workers or cores())
        except ValueError:
            # Text that cannot be used stays unusable: unlike a crash, nothing is worth keeping.
            remove_folder(work)
            raise
    return open_shards(final)


def existing(config: DataConfig, verify: bool) -> Shards:
    """Open shards that are there; ValueError unless they are what the config asks for."""
    shards = open_shards(config.shards, verify)
    if shards.manifest["options"] != config.content():
        raise ValueError(
            f"{config.shards} was prepared with other options: remove it or choose another folder"
        )
    if config.source is not None or config.corpus == "pystdlib":
        made_from = read_json(config.shards / SOURCE_FILES)
        if made_from != fingerprint(config):
            raise ValueError(
                f"{config.shards} was prepared from other files, or they have changed since: "
                "remove it or choose another folder"
            )
    print(f"{config.shards}: the shards are there")
    return shards


def build(config: DataConfig, work: Path, workers: int) -> None:
    """Do the work in `work`, which may hold a build that was interrupted, and publish it."""
    files = fingerprint(config)
    plan = hash_json({"options": config.content(), "files": files, "source": config.source})
    if not (work / "plan.json").is_file() or read_json(work / "plan.json") != plan:
        remove_folder(work)
        (work / "parts").mkdir(parents=True)
        write_json(work / "plan.json", plan)
    remove_folder(work / "shards")
    source = open_source(config, work / "unpacked")
    (work / "vocabulary").mkdir(exist_ok=True)
    ByteVocabulary().save(work / "vocabulary")
    vocabulary = load_vocabulary(work / "vocabulary")
    encoder = Encoder(vocabulary, source.lines_are_words, work / "parts")
    encode_parts(encoder, source, workers)
    total = sum(path.stat().st_size for path in (work / "parts").glob("*.tokens"))
    with Progress("join", total, "B", scale=True) as progress:
        assemble(config, source, encoder, work / "shards", progress)
    write_json(work / "shards" / SOURCE_FILES, files)
    if config.shards.exists():
        config.shards.rmdir()
    publish_folder(work / "shards", config.shards)
    remove_folder(work)


def encode_parts(encoder: Encoder, source: Source, workers: int) -> None:
    """Encode every part that is not finished yet, on `workers` processes."""
    todo = {i: part for i, part in enumerate(source.parts) if not encoder.done(i).exists()}
    total = sum(part.size for part in source.parts)
    with Progress(f"encode {source.corpus}", total, "B", scale=True) as progress:
        progress.update(total - sum(part.size for part in todo.values()))
        if min(workers, len(todo)) <= 1:
            for index, part in todo.items():
                progress.update(encoder.encode(index, part))
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(todo)), spawn, start_worker, (encoder,)) as pool:
            futures = [pool.submit(encode_in_worker, index, part) for index, part in todo.items()]
            try:
                for future in as_completed(futures):
                    progress.update(future.result())
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    "a worker was killed, perhaps for want of memory: call again with fewer "
                    "workers and the build continues"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Encoder] = {}


def start_worker(encoder: Encoder) -> None:
    """Keep the encoder in this process, and leave if the main process is killed."""
    _worker["encoder"] = encoder
    parent: Any = multiprocessing.parent_process()

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def encode_in_worker(index: int, part: Part) -> int:
    """Encode a part in a worker process; return its source bytes."""
    return _worker["encoder"].encode(index, part)


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def table(shards: Shards) -> str:
    """What the shards hold, a line a split."""
    lines = [f"{'split':<12}{'documents':>12}{'tokens':>16}{'bytes':>16}{'words':>16}"]
    for name in shards.splits:
        facts = shards.manifest["splits"][name]
        numbers = (f"{facts[key]:>16,}" for key in ("tokens", "bytes", "words"))
        lines.append(f"{name:<12}{facts['documents']:>12,}{''.join(numbers)}")
    lines.append(f"{shards.corpus}, {shards.vocabulary.name}, hash {shards.hash}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, section="data")
