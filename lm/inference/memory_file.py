"""Memory on disk: what a model has read, to go on from later."""

from pathlib import Path
from typing import Any

import torch

from data.common.files import as_json
from data.common.outputs import writing
from data.common.tensors import TensorFile, save_tensors
from lm.inference.adapted import AdaptedPredictor, looking_up
from lm.inference.inference_config import PLAIN, LookupConfig
from lm.inference.loading import LoadedRun
from lm.inference.model_hash import model_hash
from lm.inference.predictor import ModelPredictor, ModelState
from lm.inference.session import Session
from lm.model.incremental import Reader
from lm.model.memory import MemoryState

KIND = "longrange-lm memory 1"
LOOKUP, LOGITS = "lookup.", "lookup.logits"
MEND = "read the text again and write it with --save-memory"


def save_memory(path: Path, session: Session[Any]) -> None:
    """Write everything that a session knows of its texts, the open segment included, and what it
    looks up.
    """
    predictor, state, last_BD = session.predictor, session.state, session.last_B1[:, 0]
    about, looked_up = {"kind": KIND}, {}
    if isinstance(predictor, AdaptedPredictor):
        looked_up = {LOOKUP + name: each for name, each in state.looked_up().items()}
        looked_up[LOGITS] = last_BD
        about["lookup"] = as_json(predictor.identity)
        predictor, state, last_BD = predictor.inner, state.inner, state.last_BD
    assert isinstance(predictor, ModelPredictor)
    model = predictor.model
    reader = state.reader or Reader(model, state.memory)
    tensors = reader.memory.tensors() | {
        "lengths": torch.tensor(reader.lengths),
        "last": last_BD.to(reader.last_BD.dtype, copy=True),
        "seen": session.seen_BV,
        **looked_up,
    }
    for index, layer in enumerate(reader.layers):
        tensors |= {f"open.{name}.{index}": room for name, room in layer.rooms().items()}
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with writing(path) as place:
        save_tensors(ready, place, about | {"model": model_hash(model)})


def load_memory(path: Path, loaded: LoadedRun, lookup: LookupConfig = PLAIN) -> Session[Any]:
    """Read what `save_memory` wrote for the same model.

    Args:
        path: the file.
        loaded: the model.
        lookup: what the session looks up; where the one that was saved looked up nothing, there is
            nothing to be found of what it read.

    Raises:
        ValueError: the file holds no memory, has changed since it was written, or is of another
            model, other lengths or another way of looking up.
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
    predictor = looking_up(loaded.predictor, lookup)
    settings = as_json(predictor.identity) if isinstance(predictor, AdaptedPredictor) else None
    saved = file.about.get("lookup")
    if saved not in (None, settings):
        raise ValueError(
            f"{path} was written by a text that looks up what it has read, and otherwise than this "
            "one; give the same --adapt.method and settings"
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
            # Files of models in bfloat16 may have summed attention in either type.
            dtype = None if name == "received" else room.dtype
            room.copy_(file.take(f"open.{name}.{index}", dtype, room.shape))
    seen = file.take("seen", torch.bool, (reader.lanes, model.vocabulary)).to(device)
    state, last_B1D = ModelState(reader.memory, reader), reader.last_BD[:, None]
    if not isinstance(predictor, AdaptedPredictor):
        return Session(predictor, state, last_B1D, seen)
    if saved is None:
        lookups = predictor.after(state, last_B1D[:, 0])
        return Session(predictor, lookups, predictor.without(last_B1D), seen)
    parts = {n: file[n].to(device) for n in file if n.startswith(LOOKUP)}
    logits_B1V = parts.pop(LOGITS)[:, None]
    lookups = predictor.joined(state, {n.removeprefix(LOOKUP): each for n, each in parts.items()})
    return Session(predictor, lookups, logits_B1V, seen)
