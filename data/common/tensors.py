"""Tensors on disk: the one way in which programs write safetensors files."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from data.common.files import follow_umask
from data.common.outputs import in_place


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to a file, with the permissions of the umask.

    The library itself makes files that only their owner may read, and puts a file in the place of
    a device or of a FIFO that `path` names: these are written where they are.

    Raises:
        OSError: there is no room, or writing is not allowed.
    """
    if in_place(path):
        path.write_bytes(save(dict(tensors), metadata))
        return
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise _as_system_error(error, path) from None
    follow_umask(path)


def _as_system_error(error: SafetensorError, path: Path) -> OSError:
    """What the system said, which the library wraps into an error of its own."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, f"cannot be written ({str(error).strip()})", str(path))
