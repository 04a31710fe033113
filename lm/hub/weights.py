"""Hashes of the files of an exported folder, which transformers knows nothing of."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data.common.files import follow_umask
from data.common.integrity import SUMS, check_sums
from data.common.tensors import HASHES, TensorFile

MEND = "take all files of one export"
MEANT = f"{MEND}, or remove {SUMS} if the change is meant"


def check_hashes(folder: Any) -> None:
    """Read and check all files of a local folder that have hashes, as exports do.

    transformers reads without looking. What it saved itself has none.

    Raises:
        ValueError: a weight, the configuration or code has changed since it was written.
    """
    if not Path(folder).is_dir():
        return
    check_sums(Path(folder), MEANT)
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                hashed = HASHES in (opened.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {MEND}") from None
        if hashed:
            for _ in TensorFile(path, MEND).values():
                # Reading is checking.
                pass


def forget_hashes(folder: Any) -> None:
    """Take away the list of a folder whose files transformers is about to write anew."""
    (Path(folder) / SUMS).unlink(missing_ok=True)


def open_weights(folder: Any) -> None:
    """Give weights that transformers has written the permissions of the umask: its library makes
    files that only their owner may read.
    """
    for path in Path(folder).glob("*.safetensors"):
        follow_umask(path)
