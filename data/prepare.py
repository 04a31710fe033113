"""Program: corpus + vocabulary -> token shards; parallel, atomic, restartable.

The work is done in `<shards>.building` beside the shards and renamed into place when it is whole.
A build that was killed continues there; a lock keeps a second build of the same shards waiting.
"""

import errno
import os
import shutil
from pathlib import Path

from data.assemble import assemble
from data.common.command import run
from data.common.files import hash_json, publish_folder, read_json, remove_folder, write_json
from data.common.locks import locked
from data.common.progress import Progress
from data.common.schema import Sha256, Size, as_record
from data.common.signals import Interrupted
from data.corpora.checksums import read_checksums
from data.documents import Source
from data.duplicates import without_duplicates
from data.encode import PARTS_FORMAT, Encoder
from data.learn import make_tokenizer
from data.manifest import AGAIN
from data.options import DataConfig
from data.pool import work_in_pool
from data.shards import MANIFEST, Shards, open_shards
from data.sources import (
    SOURCE_FILES,
    hash_source,
    hub_of,
    list_files,
    open_source,
    read_source,
    require_unchanged,
    same_source,
    write_source,
)
from data.splits import with_all_splits
from data.tokenizers.registry import Tokenizer, load_tokenizer
from data.tokenizers.tokenizer import DESCRIPTION

PLAN = "plan.json"

__all__ = ["DataConfig", "main", "prepare"]


def main(data: DataConfig, workers: Size | None = None, verify: bool = False) -> None:
    """Turn a corpus into memory-mapped token shards.

    Args:
        data: what to prepare and where.
        workers: number of processes; null is one for each core.
        verify: hash every file of shards that are there already.
    """
    print(table(prepare(data, workers, verify)))


def prepare(config: DataConfig, workers: int | None = None, verify: bool = False) -> Shards:
    """Build the shards of a config, or open them if they are there.

    ValueError when the source is not usable, or when the folder holds shards made with other
    options or from other files.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    final = config.shards
    work = final.with_name(f"{final.name}.building")
    lock = final.with_name(f".{final.name}.lock")
    left = work.exists() and is_work(work)
    if (final / MANIFEST).is_file() and not (left or lock.exists()):
        return existing(config, verify)
    strange = not final.is_dir() or (any(final.iterdir()) and not (final / MANIFEST).is_file())
    if final.exists() and strange:
        raise ValueError(f"{final} is in the way and holds no shards: choose another folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"another build of {final}"):
        if (final / MANIFEST).is_file():
            # A build that was killed after its last step has left its folder.
            if is_work(work):
                remove_work(work)
            return existing(config, verify)
        if not is_work(work):
            raise ValueError(
                f"{work} is in the way, where the build works and what it makes is removed: move "
                "it away or choose another folder"
            )
        build_or_explain(config, work, workers)
    return open_shards(final, verify)


def existing(config: DataConfig, verify: bool) -> Shards:
    """Open shards that are there; ValueError unless they are what the config asks for."""
    shards = open_shards(config.shards, verify)
    if shards.manifest.options != config.content():
        raise ValueError(
            f"{config.shards} was prepared with other options: remove it or choose another folder"
        )
    hub = hub_of(config)
    if hub is not None and not hub.made(shards.manifest.source):
        raise ValueError(
            f"{config.shards} was not prepared from {hub.name}: remove it or choose another folder"
        )
    if config.checksums is not None:
        checked = shards.manifest.source.checksums
        if checked is None or checked.list != read_checksums(config.checksums).sha256:
            raise ValueError(
                f"{config.shards} was not checked against {config.checksums} when it was prepared: "
                "remove it or choose another folder"
            )
        if checked.differ and config.checksums_mismatch == "refuse":
            raise ValueError(
                f"{config.shards} has texts that differ from {config.checksums}, such as "
                f"{min(checked.differ)}: give --checksums-mismatch warn, or remove it"
            )
    if hub is None and (config.source is not None or config.corpus == "pystdlib"):
        made_from = read_source(config.shards)
        if hash_source(made_from) != shards.manifest.source.sha256:
            raise ValueError(
                f"{config.shards / SOURCE_FILES} belongs to another build than {MANIFEST}; {AGAIN}"
            )
        if not same_source(made_from, list_files(config)):
            raise ValueError(
                f"{config.shards} was prepared from other files, or they have changed since: "
                "remove it or choose another folder"
            )
    for name in shards.splits:
        shards.split(name).open_tokens()
    print(f"{config.shards}: the shards are there")
    return shards


def is_work(work: Path) -> bool:
    """Whether nothing is there, or what a build has left: its plan is the first thing it writes."""
    if not os.path.lexists(work):
        return True
    if work.is_symlink() or not work.is_dir():
        return False
    if (work / PLAN).is_file():
        try:
            as_record(Sha256, read_json(work / PLAN))
        except ValueError:
            return False
        return True
    return all(path.name.startswith(f".{PLAN}.") for path in work.iterdir())


def remove_work(work: Path) -> None:
    """Remove what a build has left, the plan last: it says whose the folder is."""
    for path in work.iterdir() if work.exists() else ():
        if path.is_dir():
            remove_folder(path)
        elif path.name != PLAN:
            path.unlink()
    remove_folder(work)


def build_or_explain(config: DataConfig, work: Path, workers: int | None) -> None:
    """Build; after a failure leave what a later call can use, and nothing else."""
    try:
        build(config, work, workers or len(os.sched_getaffinity(0)))
    except Interrupted as signal:
        signal.then = "the same command goes on with the build"
        raise
    except ValueError:
        # Text that cannot be used stays unusable: nothing is worth keeping.
        remove_work(work)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk with {work} is full: make room and call again, and the build continues"
        ) from error


def build(config: DataConfig, work: Path, workers: int) -> None:
    """Do the work in `work`, which may hold a build that was interrupted, and publish it."""
    files = list_files(config)
    listed = [[file.record(), file.state] for file in files]
    plan = hash_json([PARTS_FORMAT, config.content(), config.source, listed])
    if not (work / PLAN).is_file() or read_json(work / PLAN) != plan:
        remove_work(work)
        work.mkdir()
        write_json(work / PLAN, plan)
    remove_folder(work / "shards")
    source = with_all_splits(open_source(config, work / "unpacked"))
    # A hub data set may have a new commit since an interrupted build, or Python a new version.
    stage = work / hash_json(source.facts)[:16]
    (stage / "parts").mkdir(parents=True, exist_ok=True)
    dropped = None
    if config.drop_duplicates:
        source, dropped = without_duplicates(source, stage / "texts", workers)
    vocabulary = build_tokenizer(config, source, stage / "vocabulary", workers)
    digests = source.official is not None and source.official.digests is not None
    encoder = Encoder(vocabulary, source.words, digests, stage / "parts", len(source.parts))
    encode_parts(encoder, source, workers)
    source_hash = write_source(work, files, workers)
    require_unchanged(config, files)
    assemble(config, source, encoder, work / "shards", source_hash, dropped)
    shutil.copy(work / SOURCE_FILES, work / "shards")
    if config.shards.exists():
        config.shards.rmdir()
    publish_folder(work / "shards", config.shards)
    remove_work(work)


def build_tokenizer(config: DataConfig, source: Source, folder: Path, workers: int) -> Tokenizer:
    """Make the vocabulary, or load the one that an interrupted build has made."""
    if not (folder / DESCRIPTION).is_file():
        folder.mkdir(exist_ok=True)
        make_tokenizer(config, source, workers).save(folder)
    return load_tokenizer(folder)


def encode_parts(encoder: Encoder, source: Source, workers: int) -> None:
    """Encode every part that is not finished yet."""
    todo = [(i, part) for i, part in enumerate(source.parts) if not encoder.done(i).exists()]
    sizes = [part.size for _, part in todo]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    with Progress(f"encode {source.corpus}", total, "B", scale=True) as progress:
        for size in work_in_pool(workers, Encoder.encode, encoder, todo):
            progress.update(size)


def table(shards: Shards) -> str:
    """What the shards hold, a line a split."""
    lines = [f"{'split':<12}{'documents':>12}{'tokens':>16}{'bytes':>16}{'words':>16}"]
    for name in shards.splits:
        facts = shards.facts(name)
        numbers = "".join(f"{n:>16,}" for n in (facts.tokens, facts.bytes, facts.words))
        lines.append(f"{name:<12}{facts.documents:>12,}{numbers}")
    lines.append(f"{shards.corpus}, {shards.vocabulary.name}, hash {shards.hash}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, section="data")
