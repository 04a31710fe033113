"""A datastore: hidden states of a text that was read before, by the million, and the tokens that
followed them, on disk and searched by inverted lists (faiss), for kNN-LM (Khandelwal et al., arXiv
1911.00172).

The index is memory-mapped: what is searched is read, the rest stays on disk. A search looks through
the lists whose centres are nearest and may miss neighbours of others; how many it finds is measured
when the datastore is made and stands in its record.

Shapes: N entries, n queries, K neighbours, D width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.common.files import hash_json
from data.common.integrity import check_sums, read_sealed, read_sums, write_sealed, write_sums
from data.common.progress import Progress
from data.common.requirements import extra
from data.common.schema import Count, Record, Sha256, Size, as_record

MEND = "make it again with longrange datastore"
RECORD, INDEX, VALUES = "datastore.json", "index.faiss", "values.npy"
NEIGHBOURS = 32
"""Of each query, when the recall of the index is measured."""
BLOCK = 1 << 16
"""Entries that are added or compared at once."""
SAMPLE = 64
"""Entries for each list, from which its centre is learnt."""


class Found(Record):
    """What a search that looks through some lists finds of the true neighbours."""

    probes: Size
    recall: float


class Made(Record):
    """What a datastore is of."""

    model: Sha256
    shards: Sha256
    split: str
    entries: Size
    width: Size
    lists: Size
    probes: Size
    """Lists that a search looks through."""
    queries: Count
    recall: list[Found]


class Datastore:
    """Entries on disk, found by their keys."""

    def __init__(self, folder: Path, model: str) -> None:
        """Opens a datastore.

        Args:
            folder: where it is.
            model: hash of the model whose hidden states are looked up.

        Raises:
            ValueError: there is none, it is damaged or of another model, or faiss is missing.
        """
        if not (folder / RECORD).is_file():
            raise ValueError(f"{folder} is no datastore; make one with longrange datastore")
        check_sums(folder, MEND)
        try:
            self.made = as_record(Made, read_sealed(folder / RECORD, MEND))
        except ValueError as error:
            raise ValueError(f"{folder / RECORD} is no record of a datastore: {error}") from None
        if self.made.model != model:
            raise ValueError(
                f"{folder} is of another model, checkpoint or other lengths; {MEND} for this one"
            )
        faiss = library()
        self.index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP)
        self.index.nprobe = self.made.probes
        self.values_N = np.load(folder / VALUES, mmap_mode="r")
        self.hash = hash_json(read_sums(folder, MEND))

    def nearest(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest entries of queries [..., D]: squared distances, values and whether there is
        one, [..., K] each.
        """
        flat_nD = queries.detach().float().cpu().reshape(-1, queries.shape[-1]).numpy()
        squares_nK, places_nK = self.index.search(flat_nD, neighbours)
        live_nK = places_nK >= 0
        values_nK = self.values_N[np.where(live_nK, places_nK, 0)].astype(np.int64)
        squares_nK = np.where(live_nK, squares_nK, 0.0).clip(min=0.0)
        shape = (*queries.shape[:-1], neighbours)
        squares, values, live = (
            torch.from_numpy(each).to(queries.device).view(shape)
            for each in (squares_nK, values_nK, live_nK)
        )
        return squares.to(queries.dtype), values, live


def library() -> Any:
    """The package faiss; ValueError where it is not installed."""
    with extra("datastore", "a datastore"):
        import faiss
    return faiss


def usual_lists(entries: int) -> int:
    """About four times the root of the entries, a power of two, and few enough to learn from."""
    lists = 1 << max(0, round(np.log2(4 * entries**0.5)))
    return int(max(1, min(lists, entries // 39)))


def index_of(keys_ND: np.ndarray, lists: int, seed: int = 0) -> Any:
    """An index of all keys: centres learnt from some of them, then all added.

    Args:
        keys_ND: float32, in memory or mapped.
        lists: that the keys are parted into.
        seed: of the choice of those that are learnt from.
    """
    faiss, (entries, width) = library(), keys_ND.shape
    chosen = np.random.default_rng(seed).choice(
        entries, size=min(entries, SAMPLE * lists), replace=False
    )
    quantizer = faiss.IndexFlatL2(width)
    index = faiss.IndexIVFFlat(quantizer, width, lists)
    # Too few to learn from is said by the library on its own, and is no mistake here.
    index.cp.min_points_per_centroid = 1
    index.train(np.ascontiguousarray(keys_ND[np.sort(chosen)]))
    with Progress("index", entries, "entry", scale=True) as bar:
        for block in blocks(keys_ND):
            index.add(np.ascontiguousarray(block))
            bar.update(len(block))
    return index


def blocks(keys_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive parts of all keys."""
    return (keys_ND[at : at + BLOCK] for at in range(0, len(keys_ND), BLOCK))


def exact(keys_ND: np.ndarray, queries_nD: np.ndarray, neighbours: int) -> np.ndarray:
    """Places of the true nearest keys, [n, K], by comparing with all."""
    queries, best = torch.from_numpy(queries_nD), None
    at = 0
    for block in blocks(keys_ND):
        keys = torch.from_numpy(np.array(block))
        squares = keys.square().sum(dim=1) - 2 * queries @ keys.T
        place = torch.arange(at, at + len(keys)).expand(squares.shape)
        if best is not None:
            squares, place = torch.cat([best[0], squares], 1), torch.cat([best[1], place], 1)
        some = squares.topk(min(neighbours, squares.shape[1]), dim=1, largest=False).indices
        best = squares.gather(1, some), place.gather(1, some)
        at += len(keys)
    assert best is not None
    found: np.ndarray = best[1].numpy()
    return found


def recalls(index: Any, keys_ND: np.ndarray, queries_nD: np.ndarray, lists: int) -> list[Found]:
    """The share of true neighbours that searches of rising thoroughness find."""
    neighbours = min(NEIGHBOURS, len(keys_ND))
    true_nK, found = exact(keys_ND, queries_nD, neighbours), []
    for probes in sorted({min(lists, 4**power) for power in range(6)}):
        index.nprobe = probes
        _, places_nK = index.search(queries_nD, neighbours)
        pairs = zip(true_nK, places_nK, strict=True)
        shares = [len({*true.tolist()} & {*got.tolist()}) / neighbours for true, got in pairs]
        found.append(Found(probes=probes, recall=float(np.mean(shares))))
    return found


def write(folder: Path, index: Any, values_N: np.ndarray, made: Made) -> None:
    """Write a datastore into a folder."""
    library().write_index(index, str(folder / INDEX))
    np.save(folder / VALUES, values_N)
    write_sealed(folder / RECORD, made.model_dump())
    write_sums(folder, [INDEX, VALUES, RECORD])
