"""What long memory is worth: how much what it tells changes the prediction of each token.

Of each token a full reading and one that forgets (lm.inference.beside) give probabilities p and p0.

    worth       KL(p || p0): nats that memory tells, as the model itself sees it
    difference  log p(x) - log p0(x): nats that it saves on the token that came

Their means are equal where p is the text's own distribution. Where worth is the greater, memory
makes the model surer than it should be; both are too great where p0 never learnt to do without.

Shapes: B lanes, T tokens of a segment, V vocabulary, N tokens of the split.
"""

import html
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.common.outputs import writing
from data.common.say import plain
from data.lanes import Batch
from data.shards import Split
from eval.parts import place_edges
from eval.per_word import by_frequency, counts_line_ends, training_counts
from eval.protocol import Reading
from eval.worth_results import BESIDE
from lm.inference.beside import Beside, Forgetful, PairState, local_of
from lm.inference.inference_config import Local
from lm.objectives.measures import divergence, log_probabilities
from lm.objectives.objective import Segment
from lm.scoring import Scorer, arriving

WINDOW = 400
"""Tokens of a passage that is shown."""
PASSAGES = 12
STRONG = 3.0
"""Nats that are shown in full colour."""
STYLE = """
body { font: 16px/1.7 Georgia, serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font: 600 1rem system-ui, sans-serif; margin-top: 2rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-radius: 2px; }
"""


class WorthScorer(Scorer[PairState[Any]]):
    """Scores the full reading, and notes for each token what the local one makes of it."""

    predictor: Beside

    def __init__(self, predictor: Beside, *args: Any, **settings: Any) -> None:
        super().__init__(predictor, *args, **settings)
        self.worth, self.difference = (np.full(len(self.split.tokens), np.nan) for _ in range(2))
        """Of each token [N], in nats; NaN where it was not scored."""

    def read(self, segment: Segment, state: PairState[Any]) -> tuple[Tensor, PairState[Any]]:
        """Nats [B, T] of the full reading, and the state after a segment."""
        hidden, state = self.predictor.read(segment.inputs_BT, state)
        full, local = map(log_probabilities, self.predictor.both(hidden))
        targets = segment.targets_BT[..., None]
        saved = full.gather(-1, targets) - local.gather(-1, targets)
        self._found = arriving(torch.stack([divergence(full, local), saved[..., 0]]).detach())
        return -full.gather(-1, targets)[..., 0], state

    def advance(self) -> Batch:
        """Read the next segment of every lane, and place what was found of it."""
        batch = super().advance()
        scored_BT = batch.scored_BT[self.rows]
        place_BT = batch.offset_B[self.rows, None] + np.arange(scored_BT.shape[1])
        worth, difference = self._found().double().numpy()
        self.worth[place_BT[scored_BT]] = worth[scored_BT]
        self.difference[place_BT[scored_BT]] = difference[scored_BT]
        return batch


def worth_scorer(reading: Reading, local: Local | None) -> WorthScorer:
    """A scorer of a run beside itself without long memory.

    Raises:
        ValueError: there is nothing to forget.
    """
    loaded = reading.loaded
    seen = local_of(loaded.model.config, local, loaded.local)
    forgetful = Forgetful(loaded.model, loaded.vocabulary, seen)
    return WorthScorer(Beside(loaded.predictor, forgetful), reading.split, reading.config)


def worth_record(scorer: WorthScorer, reading: Reading, edges: tuple[int, ...]) -> dict[str, Any]:
    """Means over all tokens, by place in the document, and by word frequency."""
    assert isinstance(scorer.predictor.local, Forgetful)
    there = np.isfinite(scorer.worth)
    return {
        "local": scorer.predictor.local.local,
        "tokens": int(there.sum()),
        "worth": float(scorer.worth[there].mean()),
        "difference": float(scorer.difference[there].mean()),
        "position": by_place(scorer, reading.loaded.model.config.segment),
        "frequency": by_word(scorer, reading, edges),
    }


def by_place(scorer: WorthScorer, segment: int) -> list[dict[str, Any]]:
    """Means a token by place in the document: the first segment, the next, the next two, ..."""
    edges = place_edges(scorer.split, segment)
    documents = scorer.split.documents
    sums = np.zeros((len(edges) - 1, 3))
    for offset, tokens in zip(documents["offset"], documents["tokens"], strict=True):
        for number, (low, high) in enumerate(pairwise(edges)):
            part = slice(offset + low, offset + min(high, tokens))
            if low < tokens:
                kl, saved = scorer.worth[part], scorer.difference[part]
                sums[number] += np.nansum(kl), np.nansum(saved), np.isfinite(kl).sum()
    return [
        {
            "from": low,
            "to": high,
            "tokens": int(count),
            "worth": kl / count,
            "difference": saved / count,
        }
        for (low, high), (kl, saved, count) in zip(pairwise(edges), sums.tolist(), strict=True)
        if count
    ]


def by_word(scorer: WorthScorer, reading: Reading, edges: tuple[int, ...]) -> list[dict[str, Any]]:
    """Means a word by how often training has seen it; none of audio or without training text."""
    shards, split = reading.shards, reading.split
    if "train" not in shards.splits or split.vocabulary.kind == "mulaw":
        return []
    training = training_counts(shards.split("train"), counts_line_ends(shards))
    both = (
        by_frequency(split, np.nan_to_num(values), training, edges)
        for values in (scorer.worth, scorer.difference)
    )
    return [
        {"name": name, "words": words, "worth": kl / words, "difference": saved / words}
        for (name, words, kl), (_, _, saved) in zip(*both, strict=True)
        if words
    ]


def dearest(split: Split, worth: np.ndarray) -> Iterator[tuple[int, slice]]:
    """The passages whose tokens are worth most, dearest first, none of which overlap: number of the
    document, and place in the split.
    """
    found = []
    for number, (offset, tokens) in enumerate(
        zip(split.documents["offset"], split.documents["tokens"], strict=True)
    ):
        for first in range(offset, offset + tokens, WINDOW):
            part = slice(int(first), int(min(first + WINDOW, offset + tokens)))
            found.append((float(np.nansum(worth[part])), number, part))
    found.sort(key=lambda each: -each[0])
    for _, number, part in found[:PASSAGES]:
        yield number, part


def write_page(path: Path, scorer: WorthScorer, title: str) -> None:
    """A page of the dearest passages, each token the stronger in colour the more memory tells of
    it; what it is worth and saves stands in its tooltip.
    """
    split = scorer.split
    local = scorer.predictor.local
    assert isinstance(local, Forgetful)
    parts = [
        f"<h1>What memory tells: {html.escape(plain(title))}</h1>",
        "<p>The passages in which the prediction with memory differs most from that of a reading "
        f"that sees {BESIDE[local.local]}. Colour is KL(full || local) of the token's "
        f"prediction, full at {STRONG:g} nats; hover for numbers.</p>",
    ]
    for number, part in dearest(split, scorer.worth):
        first = part.start - int(split.documents["offset"][number])
        name = html.escape(plain(split.names[number]))
        parts.append(f"<h2>{name}, from token {first:,}</h2>")
        parts.append(f'<div class="text">{"".join(coloured(scorer, part))}</div>')
    with writing(path) as place:
        place.write_text(
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f"<title>{html.escape(plain(title))}</title>\n<style>{STYLE}</style>\n"
            + "\n".join(parts)
            + "\n</html>\n",
            encoding="utf-8",
        )


def coloured(scorer: WorthScorer, part: slice) -> Iterator[str]:
    """The tokens of a passage as they stand in a page."""
    pieces = scorer.split.vocabulary.pieces
    ids = scorer.split.tokens[part].tolist()
    for text, first, last in characters([pieces[token] for token in ids]):
        here = slice(part.start + first, part.start + last)
        kl, saved = np.nansum(scorer.worth[here]), np.nansum(scorer.difference[here])
        strength = min(max(float(kl), 0.0) / STRONG, 1.0)
        yield (
            f'<span style="background:rgba(214,96,20,{strength:.2f})" '
            f'title="worth {kl:.2f}, saves {saved:.2f} nats">{html.escape(text)}</span>'
        )


def characters(pieces: list[bytes]) -> Iterator[tuple[str, int, int]]:
    """Texts of tokens, those together whose bytes make up a character: text, first token, and the
    first after it.
    """
    held, first = b"", 0
    for number, piece in enumerate(pieces, 1):
        held += piece
        try:
            text = held.decode()
        except UnicodeDecodeError as error:
            # Three bytes may still become a character; more do not.
            if len(held) - error.start <= 3 and number < len(pieces):
                continue
            text = held.decode(errors="replace")
        yield plain_text(text), first, number
        held, first = b"", number


def plain_text(text: str) -> str:
    """A text whose line breaks stay and whose other control characters are shown."""
    shown = (c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(shown)


def worth_lines(found: dict[str, Any]) -> list[str]:
    """What `worth_record` holds, in lines."""
    without = BESIDE[found["local"]]

    def line(name: str, row: dict[str, Any], number: int) -> str:
        return f"  {name:<22}{number:>12,}{row['worth']:10.4f}{row['difference']:10.4f}"

    lines = [
        f"memory's worth in nats a token, beside {without}: KL, and what it saves",
        line("all", found, found["tokens"]),
        "  by place in the document, in tokens",
    ]
    for row in found["position"]:
        place = f"{row['from']:,} to {row['to']:,}"
        lines.append(line(place, row, row["tokens"]))
    if found["frequency"]:
        lines.append("  a word, by its occurrences in training")
        lines += [line(row["name"], row, row["words"]) for row in found["frequency"]]
    return lines
