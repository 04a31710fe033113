"""Memory on disk: what a model has read, to go on from later."""

from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.common.files import atomic_path, hash_json
from data.common.tensors import save_tensors
from lm.loading import LoadedRun
from lm.model import CompressiveTransformer, MemoryState
from lm.model.incremental import Reader
from lm.session import Session

KIND = "longrange-lm memory 1"


def model_hash(model: CompressiveTransformer) -> str:
    """SHA-256 of a model's configuration, lengths included, and of its weights."""
    digest = sha256(hash_json({"config": repr(model.config)}).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_memory(path: Path, session: Session) -> None:
    """Write everything that a session knows of its texts, the open segment included."""
    reader, memory = session.reader, session.reader.memory
    tensors = memory.tensors() | {
        "lengths": torch.tensor(reader.lengths),
        "last": reader.last_BD,
        "seen": session.seen_BV,
    }
    for index in range(len(reader.layers)):
        tensors |= {f"open.{name}.{index}": part for name, part in _rooms(reader, index).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_tensors(ready, temporary, {"kind": KIND, "model": model_hash(session.loaded.model)})


def _rooms(reader: Reader, index: int) -> dict[str, Tensor]:
    """What a layer keeps of the open segment, by name."""
    layer = reader.layers[index]
    rooms = {"key": layer.keys.key_BHTd, "value": layer.keys.value_BHTd}
    rooms["inputs"] = layer.inputs_BTD
    if layer.received_BS is not None:
        rooms["received"] = layer.received_BS
    return rooms


def load_memory(path: Path, loaded: LoadedRun) -> Session:
    """Read what `save_memory` wrote for the same model.

    Raises:
        ValueError: the file holds no memory, or that of another model or other lengths.
        OSError: there is no such file.
    """
    with path.open("rb"):
        pass
    try:
        file = safe_open(path, framework="pt")
        about = file.metadata() or {}
        if about.get("kind") != KIND:
            raise ValueError(f"{path} holds no memory; write it with --save-memory")
        if about["model"] != model_hash(loaded.model):
            raise ValueError(
                f"{path} is the memory of another model, checkpoint or other lengths; read the "
                "text again with this one"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as memory ({error}); write it with --save-memory"
        ) from error
    model = loaded.model
    device = model.embedding.weight.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    own = ("lengths", "last", "seen")
    stored = {n: t for n, t in tensors.items() if n not in own and not n.startswith("open.")}
    reader = Reader(model, MemoryState.from_tensors(stored))
    reader.lengths = tensors["lengths"].tolist()
    reader.last_BD = tensors["last"]
    for index in range(model.config.layers):
        for name, room in _rooms(reader, index).items():
            room.copy_(tensors[f"open.{name}.{index}"])
    return Session(loaded, reader, tensors["seen"])
