"""The parts of a score: by word frequency, place, document, attention, and with memory changed."""

import csv
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.common.say import plain, warn
from data.shards import Split
from eval.ablation import CHANGES, AblatedPredictor, foreign
from eval.keeping import read_to_end
from eval.per_word import by_frequency, counts_line_ends, training_counts
from eval.protocol import Reading, convert
from eval.reach import reach
from eval.results import Result, bits_named, bits_of, spoken
from lm.inference.attention_mass import AttentionMass
from lm.inference.inference_config import BITS
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.compression import LossSum
from lm.model.model_config import ModelConfig
from lm.objectives.objective import Segment
from lm.scoring import Scorer

COLUMNS = ["name", "title", "tokens", "bytes", "words", "nats", "bits_per_byte", "word_perplexity"]


def names(split: str) -> tuple[str, str, str]:
    """Names of the record, of the list of documents, and of the page of what memory tells."""
    return f"breakdown-{split}.json", f"documents-{split}.csv", f"worth-{split}.html"


class WatchingScorer(Scorer[ModelState]):
    """A scorer that notes attention and the reconstruction loss of each layer on the way."""

    mass: AttentionMass

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.losses: dict[str, LossSum] = {}

    def read(self, segment: Segment, state: ModelState) -> tuple[Tensor, ModelState]:
        """What a segment costs; counts it where every token is scored."""
        assert isinstance(self.predictor, ModelPredictor)
        model, memory = self.predictor.model, state.memory
        output = model(segment.inputs_BT, memory, segment.targets_BT, losses=True)
        whole_B = segment.scored_BT.all(dim=1)
        self.mass.add(self.mass.full_lanes(memory) & whole_B)
        for name, loss in output.by_layer.items() if whole_B.all() else ():
            before = self.losses.get(name, LossSum(torch.zeros(()), torch.zeros(())))
            self.losses[name] = LossSum(
                *(a + b.double() for a, b in zip(before, loss, strict=True))
            )
        return output.predictions, ModelState(output.memory)

    def by_layer(self, name: str) -> list[float]:
        """Mean of what the model tells of each layer by this name; empty where it does not."""
        if name not in self.losses:
            return []
        total, elements = self.losses[name]
        return (total / torch.where(elements > 0, elements, 1.0)).tolist()


def frequency(
    reading: Reading, token_nats: np.ndarray, edges: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Words by how often the training split has them (paper, table 7); none of audio or without
    training text.
    """
    shards, split = reading.shards, reading.split
    if "train" not in shards.splits or split.vocabulary.kind == "mulaw":
        return []
    training = training_counts(shards.split("train"), counts_line_ends(shards))
    return [
        {"name": name, "words": words, "nats": nats, "perplexity": perplexity(nats, words)}
        for name, words, nats in by_frequency(split, token_nats, training, edges)
        if words
    ]


def perplexity(nats: float, words: int) -> float | None:
    """Perplexity a word; None without words, or where it is beyond all floating-point numbers, as
    that of one very long word may be.
    """
    found = convert(nats, "word_perplexity", words) if words else math.inf
    return found if math.isfinite(found) else None


def perplexity_shown(value: float | None) -> str:
    """A perplexity as it is read."""
    if value is None:
        return "over 1e308"
    return f"{value:,.1f}" if value < 1e6 else f"{value:.3g}"


def place_edges(split: Split, segment: int) -> list[int]:
    """Where the stretches of a document end that are told apart: its first segment, the next, the
    next two, the next four ..., up to the longest document.
    """
    edges = [0, segment]
    while edges[-1] < int(split.documents["tokens"].max()):
        edges.append(2 * edges[-1])
    return edges


def place_sums(split: Split, token_nats: np.ndarray, edges: list[int]) -> np.ndarray:
    """Nats and bytes (of text that tokens do not give back, tokens) of each document that is not
    empty in each stretch, [documents, stretches, 2]; 0 bytes where it does not reach.
    """
    size_V = split.vocabulary.token_bytes if split.exact else np.ones(split.vocabulary.size)
    documents = split.documents[split.documents["tokens"] > 0]
    sums = np.zeros((len(documents), len(edges) - 1, 2))
    for row, (offset, tokens) in enumerate(documents[["offset", "tokens"]].tolist()):
        for number, (low, high) in enumerate(pairwise(edges)):
            part = slice(offset + low, offset + min(high, tokens))
            if low < tokens:
                size = size_V[split.tokens[part]].sum()
                sums[row, number] = token_nats[part].sum(dtype=np.float64), size
    return sums


def by_position(split: Split, token_nats: np.ndarray, segment: int) -> list[dict[str, Any]]:
    """Bits per byte (of text that tokens do not give back, per token) by place in the document, in
    tokens: the first segment, the next, the next two, the next four ...; does more context keep
    helping?
    """
    edges = place_edges(split, segment)
    tokens_D = split.documents["tokens"]
    sums = place_sums(split, token_nats, edges).sum(axis=0)
    return [
        {
            "from": edges[number],
            "to": edges[number + 1],
            BITS[not split.exact]: nats / math.log(2) / size,
            "bytes" if split.exact else "tokens": int(size),
            "documents": int((tokens_D > edges[number]).sum()),
        }
        for number, (nats, size) in enumerate(sums)
        if size
    ]


def attention(mass: AttentionMass) -> dict[str, Any]:
    """Share of attention by layer and age, oldest first, six buckets a store (paper, figure 2);
    empty where no lane filled its memories.
    """
    if not mass.lanes:
        return {}
    return {
        "stores": {name: shares.tolist() for name, shares in mass.by_store().items()},
        "ages": {name: shares.tolist() for name, shares in mass.by_age().items()},
        "segments": int(mass.lanes),
        "spans": spans(mass.model.config),
    }


def spans(config: ModelConfig) -> dict[str, list[int]]:
    """Tokens ago at which each store ends and begins, seen from the end of a segment. Pinned slots
    have no age.
    """
    far = reach(config)
    edges = [far["compressed"], far["memory"], far["segment"], 0]
    names = ("compressed", "memory", "segment")
    return {
        name: [newer, older] for name, (older, newer) in zip(names, pairwise(edges), strict=True)
    }


def ablation(reading: Reading, kinds: tuple[str, ...]) -> dict[str, float]:
    """Bits per byte (or per token) with compressed memory changed, and the share of segments for
    which exchanged memory was that of another document; none for a model without. A single lane has
    nobody to exchange with.
    """
    model, vocabulary = reading.loaded.model, reading.loaded.vocabulary
    if not model.config.compressed:
        return {}
    found = {}
    for name in kinds:
        if name == "exchanged" and reading.config.lanes == 1:
            warn("a single lane has no other to exchange memory with; give --lanes for that")
            continue
        ablated = AblatedPredictor(model, vocabulary, CHANGES[name])
        scorer = Scorer(ablated, reading.split, reading.config)
        read_to_end(scorer)
        found[name] = scorer.result().bits
    if "exchanged" in found:
        found["from_another_document"] = foreign(scorer)
    return found


def write_documents(path: Path, split: Split, document_nats: np.ndarray) -> None:
    """One row a document: name and title, sizes, nats and units, in the order of the split."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(document_rows(split, document_nats))


def document_rows(split: Split, document_nats: np.ndarray) -> Iterator[list[Any]]:
    """The rows of `write_documents`; a unit without a denominator is left blank. Names are those of
    files or what a corpus says, and may hold anything: what cannot be read is written as escapes.
    """
    for details, facts, nats in zip(split.details, split.documents, document_nats, strict=True):
        tokens, size, words = (int(facts[name]) for name in ("tokens", "bytes", "words"))
        bits = nats / math.log(2) / size if size and split.exact else ""
        row = [plain(details.name), plain(details.title or ""), tokens, size, words]
        yield [*row, round(nats, 4), bits, perplexity(float(nats), words) or ""]


def table(result: Result) -> str:
    """The breakdowns in lines."""
    bits = bits_named(result["position"])
    lines = [f"{result['value']:.4f} {spoken(result['protocol']['unit'])}"]
    if result["frequency"]:
        lines.append("by occurrences of the word in training: words, perplexity a word")
        lines += [
            f"  {b['name']:<20}{b['words']:>10,} {perplexity_shown(b['perplexity']):>13}"
            for b in result["frequency"]
        ]
    lines.append(f"by place in the document, in tokens: {bits}, documents that reach it")
    lines += [
        f"  {p['from']:>9,} to {p['to']:<9,}{bits_of(p):10.4f}{p['documents']:>8,}"
        for p in result["position"]
    ]
    if result["attention"]:
        lines.append("attention by layer, first to last")
        lines += [
            f"  {name:<12}" + "".join(f"{share:8.3f}" for share in shares)
            for name, shares in result["attention"]["stores"].items()
        ]
    if result["reconstruction"]:
        errors = "".join(f"{error:10.2g}" for error in result["reconstruction"])
        lines.append(f"reconstruction error by layer{errors}")
        shares = "".join(f"{error:10.3f}" for error in result["reconstruction_relative"])
        lines.append(f"  over the mean square      {shares}")
    if result["ablation"]:
        lines.append(f"with compressed memory: {bits}")
        lines += [
            f"  {name:<12}{result['ablation'][name]:8.4f}"
            for name in CHANGES
            if name in result["ablation"]
        ]
    return "\n".join(lines)
