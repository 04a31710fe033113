"""Other commits of this checkout, laid out in folders, to be compared with it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder that is gone afterwards.

    Raises:
        ValueError: there is no such commit here.
    """
    with TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        archive = place / "files.tar"
        packed = _git("archive", f"--output={archive}", f"{commit}^{{commit}}")
        if packed.returncode:
            raise ValueError(
                f"there is no commit {commit} in {ROOT}; git log shows them, in a clone with its "
                "history"
            )
        tree = place / "checkout"
        tree.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", tree], check=True)
        yield tree


def environment(tree: Path, threads: int = 1) -> dict[str, str]:
    """The environment of a process that imports a checkout's packages and computes on so many
    threads.
    """
    return os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
