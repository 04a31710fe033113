"""Made-up text on disk: what data.recall, data.probes and data.series have in common."""

import shutil
from collections.abc import Callable
from pathlib import Path

from data.common.files import hash_file
from data.common.outputs import check_folder, writing_folder
from data.common.requirements import in_bytes, require_memory
from data.documents import SPLITS

ELSEWHERE = "remove it, or name another --out folder"


def publish(
    out: Path, write_split: Callable[[str, Path], None], *, size: int, memory: int, what: str
) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl, which appear together.

    Args:
        out: folder for the text; one that is there must be empty or hold the same text.
        write_split: writes the split of a name to a file.
        size: bytes of all files, at least.
        memory: bytes of memory that making them takes.
        what: takes so much memory.

    Raises:
        ValueError: there is no room in memory or on the disk, or another text lies there.
    """
    check_folder(out)
    require_memory(memory, what)
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if size > (free := shutil.disk_usage(there).free):
        raise ValueError(
            f"the text takes at least {in_bytes(size)}, but {there} has room for "
            f"{in_bytes(free)}: ask for fewer or shorter documents"
        )
    if strange := {path.name for path in listed(out)} - {f"{split}.jsonl" for split in SPLITS}:
        raise ValueError(f"{out} holds {min(strange)}, which is no made-up text; {ELSEWHERE}")
    with writing_folder(out) as folder:
        for split in SPLITS:
            write_split(split, folder / f"{split}.jsonl")
        # The same call after one that was killed late finds its own work.
        for path in listed(out):
            if hash_file(path) != hash_file(folder / path.name):
                raise ValueError(f"{path} is there already and holds another text; {ELSEWHERE}")
    print(f"python -m data.prepare --corpus text --vocabulary bytes --source {out} --shards SHARDS")


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, which may not be there."""
    return sorted(folder.iterdir()) if folder.exists() else []
