"""Program: made-up text whose best prediction is known: coins, dice, Markov chains.

Writes train.jsonl, validation.jsonl and test.jsonl for data.prepare (corpus text, vocabulary
bytes), an episode a line: `text`, letters from `a` on, and `source`, what drew it. Episodes that
are held out have `nats` too, the cost of each letter under the exact Bayes prediction.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from data.common import command
from data.common.schema import Count, Size
from data.common.values import require_ranges
from data.documents import SPLITS
from data.mixtures import Source, draw, nats, predictions
from data.synthetic import publish


@dataclass(frozen=True)
class ProbeConfig(Source):
    """A source, and how many episodes it has."""

    length: Size = 256
    """Symbols of an episode."""
    documents: Size = 20_000
    """Episodes of the training split."""
    held_out: Size = 200
    """Episodes of each other split."""
    seed: Count = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        require_ranges(self)
        super().__post_init__()

    @property
    def source(self) -> Source:
        """What draws."""
        return Source(self.task, self.symbols, self.prior, self.hazard)

    def count(self, split: str) -> int:
        """Episodes of a split."""
        return self.documents if split == "train" else self.held_out


def main(probe: ProbeConfig, out: Path) -> None:
    """Write text for a probe of memory.

    Args:
        probe: the source.
        out: folder for the text, which appears whole or not at all; one that is there must be
            empty or hold the same text.
    """
    publish(
        out,
        lambda split, path: write_split(probe, split, path),
        size=sum(map(probe.count, SPLITS)) * probe.length,
        memory=4 * 8 * BATCH * probe.length * probe.symbols,
        what=f"episodes of {probe.length:,} symbols (--length)",
    )


BATCH = 256
"""Episodes that are drawn at once."""


def write_split(probe: ProbeConfig, split: str, path: Path) -> None:
    """Write the episodes of a split."""
    source = probe.source
    draws = np.random.default_rng([probe.seed, SPLITS.index(split)])
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, probe.count(split), BATCH):
            count = min(BATCH, probe.count(split) - first)
            symbols_DN = draw(source, count, probe.length, draws)
            lines = [{"text": spelled(row), "source": asdict(source)} for row in symbols_DN]
            if split != "train":
                costs_DN = nats(predictions(source, symbols_DN), symbols_DN)
                lines = [
                    line | {"nats": costs.tolist()}
                    for line, costs in zip(lines, costs_DN, strict=True)
                ]
            file.writelines(json.dumps(line) + "\n" for line in lines)


def spelled(symbols_N: np.ndarray) -> str:
    """Symbols as letters."""
    return "".join(ascii_lowercase[symbol] for symbol in symbols_N)


if __name__ == "__main__":
    command.run(main, section="probe")
