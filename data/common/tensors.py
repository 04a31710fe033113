"""Tensors on disk: the one way in which programs write and read safetensors files.

Each tensor has its hash in the file's header, over name, type, shape and bytes, so that every byte
of the file that matters is covered, and a reader of a few tensors pays for these alone.
"""

import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from data.common.files import follow_umask, hash_json, parse_json
from data.common.integrity import CHANGED, tell_unchecked
from data.common.outputs import in_place

HASHES = "sha256"
"""Key in the file's metadata: a JSON object of hashes by tensor."""
ABOUT = "__metadata__"
"""Key among them: of the rest of the metadata. No tensor can have this name."""


def tensor_hash(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, type, shape and bytes."""
    digest = sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(bytes_of(tensor).numpy().data)
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> Tensor:
    """All bytes of a tensor in order, on the CPU."""
    here = tensor.detach().cpu().contiguous()
    # One element is contiguous whatever its stride, which a view as bytes minds.
    return here.as_strided((here.numel(),), (1,)).view(torch.uint8)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file with their hashes, with the permissions of the umask.

    The library itself makes files that only their owner may read, and puts a file in the place of
    a device or of a FIFO that `path` names: these are written where they are.

    Raises:
        OSError: there is no room, or writing is not allowed.
    """
    about = dict(metadata or {})
    hashes = {name: tensor_hash(name, tensor) for name, tensor in tensors.items()}
    hashes[ABOUT] = hash_json(about)
    metadata = about | {HASHES: json.dumps(hashes, sort_keys=True)}
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


ALIGNED = 64
"""Bytes that the addresses of torch's own tensors on a CPU are multiples of."""


class TensorFile(Mapping[str, Tensor]):
    """An opened file of `save_tensors`, or any safetensors file; reads what is asked for."""

    def __init__(self, path: Path, mend: str) -> None:
        """Open a file.

        Args:
            path: the file.
            mend: what the user can do about a damaged file; ends the sentence.

        Raises:
            ValueError: it is missing, cut off or no safetensors file, or its header is damaged.
        """
        self.path, self.mend = path, mend
        try:
            self.file: Any = safe_open(path, framework="pt")
            self.about: dict[str, str] = self.file.metadata() or {}
            self.names = list(self.file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {mend}") from error
        self.hashes = self._hashes()

    def _hashes(self) -> dict[str, Any] | None:
        text = self.about.pop(HASHES, None)
        if text is None and not any(ABOUT in value for value in self.about.values()):
            tell_unchecked(self.path)
            return None
        try:
            # They may be there by a name that a bit has changed.
            hashes = parse_json(text or "")
        except ValueError:
            hashes = None
        if (
            not isinstance(hashes, dict)
            or hashes.pop(ABOUT, None) != hash_json(self.about)
            or hashes.keys() != set(self.names)
        ):
            raise ValueError(f"{self.path} {CHANGED}: its header is damaged; {self.mend}")
        return hashes

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by name.

        Raises:
            ValueError: the file does not have it, or it does not match its hash.
        """
        try:
            tensor: Tensor = self.file.get_tensor(name)
        except SafetensorError as error:
            if name not in self.names:
                raise ValueError(f"{self.path} lacks {name}; {self.mend}") from None
            raise ValueError(f"{self.path} cannot be read ({error}); {self.mend}") from error
        if self.hashes is not None and self.hashes[name] != tensor_hash(name, tensor):
            raise ValueError(f"{self.path} {CHANGED}: {name} does not match its hash; {self.mend}")
        # Where a tensor of torch's own would lie: of one elsewhere, the same numbers may be summed
        # in another order, and what goes on from a file would differ in its last bits.
        return tensor.clone() if tensor.data_ptr() % ALIGNED else tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that the file has, without reading it."""
        return tuple(self.file.get_slice(name).get_shape())

    def halved(self, name: str) -> bool:
        """Whether a tensor that the file has is of bfloat16, without reading it."""
        return str(self.file.get_slice(name).get_dtype()) == "BF16"

    def take(self, name: str, dtype: torch.dtype | None, shape: Sequence[int | None]) -> Tensor:
        """A tensor that must have this type (none: any of floating point) and shape (none: any).

        Raises:
            ValueError: it is another, or one that the file lacks or that has changed.
        """
        tensor = self[name]
        fits = len(shape) == tensor.ndim and all(
            size in (None, has) for size, has in zip(shape, tensor.shape, strict=True)
        )
        typed = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
        if not (fits and typed):
            raise ValueError(
                f"{self.path} holds {name} as {spoken(tensor.dtype, tensor.shape)}, not as "
                f"{spoken(dtype, shape)}; {self.mend}"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def load_tensors(path: Path, mend: str) -> dict[str, Tensor]:
    """All tensors of a file; arguments and errors as of `TensorFile`."""
    return dict(TensorFile(path, mend))


def spoken(dtype: torch.dtype | None, shape: Sequence[int | None]) -> str:
    """Type and shape in words, such as "float32 [3, 4]"."""
    kind = "numbers" if dtype is None else str(dtype).removeprefix("torch.")
    return f"{kind} [{', '.join('any' if size is None else str(size) for size in shape)}]"
