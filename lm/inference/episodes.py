"""Recall of episodes: memories of whole texts, kept in a folder and found again by the content of
another text's beginning (after Ritter et al., arXiv 1805.09692).

A file holds the memory of one text at its end and two keys: mean final hidden states of its
opening, read with empty memory, and of the whole text, so that a text is found by one that begins
like it and by one that goes on from it. A text that begins has empty slots: memories whose keys are
near are tried on its opening, and the one that tells it best fills them, unless none tells it
better. The text goes on as if it followed the text of that memory. Memory is first in, first out,
so what is found stays for as long as memory of that age does.

Shapes: B texts, N memories, C candidates, T tokens, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.common.files import hash_json
from data.common.outputs import writing
from data.common.progress import Progress
from data.common.say import plain
from data.common.tensors import TensorFile, save_tensors
from lm.inference.loading import LoadedRun
from lm.inference.model_hash import model_hash
from lm.inference.predictor import ModelPredictor, ModelState
from lm.inference.store import Store
from lm.model.memory import MemoryState

KIND = "longrange-lm episode 1"
SUFFIX, KEYS = ".safetensors", "found_by"
MEND = "remove it and add its text again (longrange library add)"
OF_WEIGHTS = ("keys", "values")
"""What memory keeps beside its content, and is made of it anew."""
CANDIDATES = 8
"""Memories with the nearest keys, after which the opening of a text is read."""
MARGIN = 3.0
"""Nats by which another of these, or no memory, has to tell the opening better than the nearest to
be taken in its place: odds of twenty to one."""


@dataclass(frozen=True)
class Episode:
    """What a library knows of a text without reading its memory."""

    path: Path
    name: str
    """Of the text."""
    tokens: int
    """That it has."""
    opening: int
    """First tokens that it is found by, or would be if it had as many."""
    text: str
    """SHA-256 of the text."""
    model: str
    """Hash of the model that read it."""


def described(path: Path) -> tuple[Episode, TensorFile]:
    """What a file of a library says of its text; ValueError where it is none."""
    file = TensorFile(path, MEND)
    about = file.about
    try:
        tokens, opening = int(about["tokens"]), int(about["opening"])
        episode = Episode(path, about["name"], tokens, opening, about["text"], about["model"])
        known = about["kind"] == KIND
    except (KeyError, ValueError):
        known = False
    if not known:
        raise ValueError(f"{path} is no memory of a library; {MEND}")
    return episode, file


def episodes(folder: Path) -> list[tuple[Episode, TensorFile]]:
    """All of a library, by name.

    Raises:
        ValueError: there is no such folder or nothing in it, or a file is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no library; make one with longrange library add")
    found = [described(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    if not found:
        raise ValueError(f"{folder} holds no memories; add some with longrange library add")
    return sorted(found, key=lambda each: (each[0].name, each[0].text))


def inputs_of(predictor: ModelPredictor, ids: np.ndarray) -> Tensor:
    """What is read of a text that begins, [1, 1 + tokens]."""
    ids_1T = torch.from_numpy(np.concatenate([[predictor.vocabulary.start], ids]).astype(np.int64))
    return ids_1T[None].to(predictor.device)


def key_of(predictor: ModelPredictor, ids: np.ndarray, opening: int) -> Tensor:
    """Mean final hidden state [D] of a text's first `opening` tokens at most, in float32."""
    inputs_1T = inputs_of(predictor, ids)[:, :opening]
    hidden_1TD, _ = predictor.read(inputs_1T, predictor.begin(1))
    return hidden_1TD[0].float().mean(dim=0)


def require_segment(predictor: ModelPredictor, ids: np.ndarray, name: str) -> None:
    """ValueError for a text of which nothing enters memory."""
    if not fills(predictor, ids):
        raise ValueError(
            f"{name} has {len(ids):,} tokens, less than a segment of {predictor.segment:,}: "
            "nothing of it enters memory"
        )


def require_opening(predictor: ModelPredictor, opening: int) -> None:
    """ValueError for an opening that takes all slots of the memory that it is to find."""
    segment = predictor.segment
    rounded = -(-opening // segment) * segment
    if segment >= predictor.warmup:
        raise ValueError(
            f"memories reach back {predictor.warmup:,} tokens, and an opening takes a segment of "
            f"{segment:,} at least, so nothing of what is found would be left; give a shorter "
            "--segment or a longer --memory"
        )
    if rounded >= predictor.warmup:
        raise ValueError(
            f"an opening of {rounded:,} tokens takes all slots of memories that reach back "
            f"{predictor.warmup:,}, and nothing of what is found would be left; give a shorter "
            "--opening"
        )


def add(folder: Path, loaded: LoadedRun, text: tuple[bytes, np.ndarray, str], opening: int) -> Path:
    """Read a text and keep its memory in a library.

    Tokens behind its last whole segment have not entered memory and are not kept.

    Args:
        folder: the library; it is there.
        loaded: the model.
        text: its bytes, its tokens, and what it is called.
        opening: first tokens that it is found by.

    Returns:
        The file; one of the same text by the same model is replaced.

    Raises:
        ValueError: it is shorter than a segment, or the library is of another model or has keys of
            openings of another length, or an opening takes all slots.
    """
    (content, ids, name), predictor = text, loaded.predictor
    model = model_hash(loaded.model)
    for path in sorted(folder.glob(f"*{SUFFIX}"))[:1]:
        require_alike(described(path)[0], model, opening)
    segment = predictor.segment
    inputs_1T = inputs_of(predictor, ids)
    whole = inputs_1T.shape[1] // segment * segment
    require_segment(predictor, ids, name)
    require_opening(predictor, opening)
    state = predictor.begin(1)
    total_D = torch.zeros(loaded.model.config.width, dtype=torch.float64)
    with Progress(f"read {name}", whole, "token", scale=True) as bar:
        for part in inputs_1T[:, :whole].split(segment, dim=1):
            hidden_1TD, state = predictor.read(part, state)
            total_D += hidden_1TD[0].cpu().double().sum(dim=0)
            bar.update(segment)
    opened_D = key_of(predictor, ids, opening).cpu()
    keys_2D = torch.stack([opened_D, (total_D / whole).float()])
    tensors = without_keys(state.memory).tensors() | {KEYS: keys_2D}
    digest = sha256(content).hexdigest()
    about = {
        "kind": KIND,
        "model": model,
        "name": name,
        "text": digest,
        "tokens": str(len(ids)),
        "opening": str(opening),
    }
    target = folder / f"{digest[:32]}{SUFFIX}"
    with writing(target) as place:
        save_tensors({n: each.cpu().contiguous() for n, each in tensors.items()}, place, about)
    return target


def fills(predictor: ModelPredictor, ids: np.ndarray) -> bool:
    """Whether a text has a whole segment, so that something of it enters memory."""
    return inputs_of(predictor, ids).shape[1] >= predictor.segment


def usual_opening(predictor: ModelPredictor) -> int:
    """A quarter of what memories span, so that most of a found memory stays; a segment at least."""
    return max(predictor.segment, min(512, predictor.warmup // 4))


def require_alike(episode: Episode, model: str, opening: int | None = None) -> None:
    """ValueError where a memory is of other weights or lengths, or its key of another opening."""
    if episode.model != model:
        raise ValueError(
            f"{episode.path} is the memory of another model, checkpoint or other lengths; read its "
            "text with this one into a library of its own"
        )
    if opening is not None and episode.opening != opening:
        raise ValueError(
            f"the library has keys of the first {episode.opening:,} tokens, not {opening:,}; give "
            f"--opening {episode.opening} or another library"
        )


def without_keys(memory: MemoryState) -> MemoryState:
    """Memory without keys and values of its slots."""
    layers = (
        {name: each for name, each in layer.items() if name not in OF_WEIGHTS}
        for layer in memory.layers
    )
    return MemoryState(tuple(layers), memory.counts)


@torch.no_grad()
def tell(
    predictor: ModelPredictor, ids: np.ndarray, memories: Iterable[MemoryState]
) -> list[float]:
    """Nats of a text's tokens after each of some memories of one lane, C numbers.

    One is read after the other, so that no more room is taken than a text itself needs.
    """
    read_1T = inputs_of(predictor, ids)[:, : len(ids)]
    targets_1T = torch.from_numpy(ids.astype(np.int64))[None].to(predictor.device)
    nats_C = []
    for memory in memories:
        hidden_1TD, _ = predictor.read(read_1T, ModelState(memory))
        nats_C.append(float(predictor.nats(hidden_1TD, targets_1T).double().sum()))
    return nats_C


def taken(nats_C: list[float]) -> int:
    """Which of some memories a text begins with, the nearest first: see MARGIN."""
    best = nats_C.index(min(nats_C))
    return best if nats_C[0] - nats_C[best] > MARGIN else 0


@dataclass(frozen=True)
class Choice:
    """What a text begins with."""

    number: int | None
    """Of the memory; None: with none."""
    nearest: int
    """Number of the memory whose key is nearest."""
    saved: float
    """Nats that the memory saves on the opening; of the nearest where none is taken."""


class Library:
    """Memories of one model, found by keys."""

    def __init__(self, folder: Path, loaded: LoadedRun, candidates: int = CANDIDATES) -> None:
        """Reads the keys of a library.

        Args:
            folder: of the library.
            loaded: the model.
            candidates: memories that are tried on a text's opening.

        Raises:
            ValueError: there is none, a file is damaged, or of another model.
        """
        self.predictor, model = loaded.predictor, model_hash(loaded.model)
        self.candidates = candidates
        found = episodes(folder)
        self.episodes, self.files = [each for each, _ in found], [file for _, file in found]
        self.opening: int = self.episodes[0].opening
        for episode in self.episodes:
            require_alike(episode, model, self.opening)
        width = loaded.model.config.width
        keys_N2D = torch.stack([file.take(KEYS, torch.float32, (2, width)) for file in self.files])
        keys_1ND = keys_N2D.flatten(0, 1)[None].to(self.predictor.device)
        count = keys_1ND.shape[1]
        self.store = Store.empty(1, count, count, keys_1ND[0, 0])
        order_1N = torch.arange(count, device=keys_1ND.device)[None] // 2
        self.store.add(keys_1ND, order_1N, torch.ones_like(order_1N, dtype=torch.bool))

    @property
    def hash(self) -> str:
        """SHA-256 over texts, model and opening."""
        texts = sorted(episode.text for episode in self.episodes)
        return hash_json([self.episodes[0].model, self.opening, texts])

    def protocol(self) -> dict[str, Any]:
        """What a score that recalls from it says of it."""
        return {"library": self.hash, "opening": self.opening, "candidates": self.candidates}

    def nearest(self, ids: np.ndarray) -> list[int]:
        """Numbers of the candidates for a text that begins so, the nearest first."""
        query_D = key_of(self.predictor, ids, self.opening)
        every = self.store.capacity
        found = self.store.nearest(query_D[None, None], self.store.written_B[:, None], every)
        numbers = self.store.values_BR[0, found.slots_BTK[0, 0]].tolist()
        return list(dict.fromkeys(numbers))[: self.candidates]

    def choose(self, ids: np.ndarray) -> Choice:
        """What a text with these first tokens begins with."""
        numbers = self.nearest(ids)
        memories = map(self.begin, [*numbers, None])
        nats_C = tell(self.predictor, ids[: self.opening], memories)
        place = taken(nats_C)
        number = None if place == len(numbers) else numbers[place]
        told = 0 if number is None else place
        return Choice(number, numbers[0], nats_C[-1] - nats_C[told])

    def spoken(self, choice: Choice) -> str:
        """Whose memory a text begins with, in words."""
        if choice.number is None:
            name = plain(self.episodes[choice.nearest].name)
            return f"no memory (the nearest, of {name}, costs its opening {-choice.saved:.1f} nats)"
        name = plain(self.episodes[choice.number].name)
        return f"the memory of {name}, which saves its opening {choice.saved:.1f} nats"

    def memory(self, number: int) -> MemoryState:
        """A memory, of one lane; ValueError where its file has changed."""
        model, file = self.predictor.model, self.files[number]
        like = without_keys(model.empty_memory(1)).tensors()
        stored = {name: file.take(name, each.dtype, each.shape) for name, each in like.items()}
        placed = {name: each.to(self.predictor.device) for name, each in stored.items()}
        memory = MemoryState.from_tensors(placed)
        return model.keep_keys(memory) if self.predictor.keep_keys else memory

    def begun(self, texts: Sequence[np.ndarray]) -> tuple[ModelState, list[str]]:
        """What texts begin with that are about to be read, and in words where it comes from."""
        chosen = [self.choose(ids) for ids in texts]
        known = {number: self.begin(number) for number in {choice.number for choice in chosen}}
        memory = MemoryState.concatenate([known[choice.number] for choice in chosen])
        return ModelState(memory), [self.spoken(choice) for choice in chosen]

    def begin(self, number: int | None) -> MemoryState:
        """A memory, or that of who has read nothing."""
        return self.predictor.begin(1).memory if number is None else self.memory(number)
