"""Memory on disk: what a model has read, to go on from later."""

from hashlib import sha256
from pathlib import Path

import torch

from data.common.files import hash_json
from data.common.outputs import writing
from data.common.tensors import TensorFile, save_tensors
from lm.inference.loading import LoadedRun
from lm.inference.predictor import ModelPredictor, ModelState
from lm.inference.session import Session
from lm.model.incremental import Reader
from lm.model.memory import MemoryState
from lm.model.model_config import JOINED, ModelConfig
from lm.model.transformer import CompressiveTransformer

KIND = "longrange-lm memory 1"
MEND = "read the text again and write it with --save-memory"


def model_hash(model: CompressiveTransformer) -> str:
    """SHA-256 of a model's configuration, lengths included, and of its weights."""
    known = model.config.shape()
    # Settings that have joined since do not count at their defaults, so that old memory is known.
    kept = {n: v for n, v in known.items() if n not in JOINED or v != getattr(ModelConfig, n)}
    config = f"ModelConfig({', '.join(f'{name}={value!r}' for name, value in kept.items())})"
    digest = sha256(hash_json({"config": config}).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_memory(path: Path, session: Session[ModelState]) -> None:
    """Write everything that a session knows of its texts, the open segment included."""
    assert isinstance(session.predictor, ModelPredictor)
    model, state = session.predictor.model, session.state
    reader = state.reader or Reader(model, state.memory)
    tensors = reader.memory.tensors() | {
        "lengths": torch.tensor(reader.lengths),
        "last": session.last_B1[:, 0],
        "seen": session.seen_BV,
    }
    for index, layer in enumerate(reader.layers):
        tensors |= {f"open.{name}.{index}": room for name, room in layer.rooms().items()}
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with writing(path) as place:
        save_tensors(ready, place, {"kind": KIND, "model": model_hash(model)})


def load_memory(path: Path, loaded: LoadedRun) -> Session[ModelState]:
    """Read what `save_memory` wrote for the same model.

    Raises:
        ValueError: the file holds no memory, has changed since it was written, or is of another
            model or other lengths.
        OSError: there is no such file.
    """
    with path.open("rb"):
        pass
    file = TensorFile(path, MEND)
    if file.about.get("kind") != KIND:
        raise ValueError(f"{path} holds no memory; write it with --save-memory")
    if file.about.get("model") != model_hash(loaded.model):
        raise ValueError(
            f"{path} is the memory of another model, checkpoint or other lengths; read the "
            "text again with this one"
        )
    model = loaded.model
    device = model.embedding.weight.device
    like = Reader(model, model.empty_memory(1))
    stored = {
        name: file.take(name, part.dtype, (None, *part.shape[1:])).to(device)
        for name, part in like.memory.tensors().items()
    }
    reader = Reader(model, MemoryState.from_tensors(stored))
    reader.lengths = file.take("lengths", torch.int64, (reader.lanes,)).tolist()
    if not all(0 <= length < model.config.segment for length in reader.lengths):
        raise ValueError(f"{path} has an open segment of impossible length; {MEND}")
    reader.last_BD = file.take("last", like.last_BD.dtype, reader.last_BD.shape).to(device)
    for index, layer in enumerate(reader.layers):
        for name, room in layer.rooms().items():
            room.copy_(file.take(f"open.{name}.{index}", room.dtype, room.shape))
    seen = file.take("seen", torch.bool, (reader.lanes, model.vocabulary)).to(device)
    state = ModelState(reader.memory, reader)
    return Session(loaded.predictor, state, reader.last_BD[:, None], seen)
