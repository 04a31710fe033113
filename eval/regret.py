"""How far a model's predictions of a probe are from the exact ones, by place in the episode.

Shapes: E episodes of the split, N symbols of each, K symbols of the alphabet.
"""

import json as json_lib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.mixtures import Source, predictions, windowed
from data.probes import spelled
from data.shards import Split
from eval.reach import reach, require_text
from lm.inference.predictor import StateT
from lm.model.components import cross_entropy
from lm.model.model_config import ModelConfig
from lm.objectives.objective import Segment
from lm.scoring import Scorer

PLACES = 32
"""Stretches of an episode that a result tells apart, at most."""
KEPT = ("segment", "memory", "compressed")
"""What windowed predictors see, as eval.reach names it."""


class ProbeScorer(Scorer[StateT]):
    """A scorer that notes what probability each symbol of a probe's alphabet is given."""

    symbols = 2
    log_p_NK: np.ndarray

    def read(self, segment: Segment, state: StateT) -> tuple[Tensor, StateT]:
        """What a segment costs; notes the log-probabilities, in float64."""
        targets_BT = segment.targets_BT
        hidden, state = self.predictor.read(segment.inputs_BT, state)
        logits_BTV = self.predictor.logits(hidden)
        first = ord(ascii_lowercase[0])
        # Of all tokens, so that what is given to others is lost.
        log_p_BTV = torch.log_softmax(logits_BTV.double(), dim=-1)
        log_p_BTK = log_p_BTV[..., first : first + self.symbols].cpu().numpy()
        scored_BT = self.batch.scored_BT[self.rows]
        place_BT = self.batch.offset_B[self.rows, None] + np.arange(scored_BT.shape[1])
        if self.step == 0:
            self.log_p_NK = np.empty((len(self.split.tokens), self.symbols))
        self.log_p_NK[place_BT[scored_BT]] = log_p_BTK[scored_BT]
        nats = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        return nats.view(targets_BT.shape), state


def read_probe(path: Path) -> tuple[Source, np.ndarray]:
    """The source of a probe, and its episodes [E, N] as numbers.

    Raises:
        ValueError: the file is not there, or no program wrote it that writes probes.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; make it with python -m data.probes")
    try:
        records = [json_lib.loads(line) for line in path.read_text().splitlines()]
        texts = [record["text"] for record in records]
        names = {field.name for field in fields(Source)}
        (source,) = {Source(**{name: r["source"][name] for name in names}) for r in records}
        # Episodes of different lengths make no array.
        episodes_EN = np.array(
            [[ascii_lowercase[: source.symbols].index(x) for x in text] for text in texts],
            dtype=np.int64,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{path} is no probe; make it with python -m data.probes") from None
    return source, episodes_EN


def read_episodes(path: Path, split: Split) -> tuple[Source, np.ndarray]:
    """The source and the episodes [E, N] of a probe that a split was prepared from.

    Raises:
        ValueError: the file is not that of the split, or the split's tokens are not bytes.
    """
    if split.vocabulary.kind != "bytes":
        raise ValueError(f"symbols are bytes; prepare {path.parent} with --vocabulary bytes")
    source, episodes_EN = read_probe(path)
    require_text(path, [spelled(symbols_N).encode() for symbols_N in episodes_EN], split)
    return source, episodes_EN


def divergence(p_ENK: np.ndarray, log_q_ENK: np.ndarray) -> np.ndarray:
    """Nats [E, N] by which predictions q cost more than the exact ones p, in the mean over what
    may come: KL(p || q).
    """
    nats: np.ndarray = (p_ENK * (np.log(p_ENK) - log_q_ENK)).sum(axis=2)
    return nats


def regret(
    source: Source, episodes_EN: np.ndarray, log_q_NK: np.ndarray, config: ModelConfig
) -> dict[str, Any]:
    """Regret of a model and of exact predictors that see a part of the episode.

    Args:
        source: what drew the episodes.
        episodes_EN: symbols.
        log_q_NK: the model's log-probabilities, episode after episode.
        config: its lengths.

    Returns:
        `places`, stretches of the episode with the mean nats a symbol: `nats` of the best
        prediction, `regret` of the model, and of those who see `segment`, `memory` and
        `compressed` (eval.reach) and predict exactly; `last`, the same of the last segment, and
        `total`, sums over an episode; `deviation`, the standard error of the model's.
    """
    episodes, length = episodes_EN.shape
    p_ENK = predictions(source, episodes_EN)
    costs = {"nats": -(p_ENK * np.log(p_ENK)).sum(axis=2)}
    costs["regret"] = divergence(p_ENK, log_q_NK.reshape(p_ENK.shape))
    seen = reach(config)
    for name in KEPT:
        # The first input of a segment is the symbol before it, whatever is remembered.
        before = seen[name] - config.segment + 1
        q_ENK = windowed(source, episodes_EN, config.segment, before)
        costs[name] = divergence(p_ENK, np.log(q_ENK))
    means = {name: cost_EN.mean(axis=0) for name, cost_EN in costs.items()}
    edges = np.unique(np.linspace(0, length, min(PLACES, length) + 1).astype(int))
    last = slice((length - 1) // config.segment * config.segment, length)
    by_episode = {
        "last": costs["regret"][:, last].mean(axis=1),
        "total": costs["regret"].sum(axis=1),
    }
    error = {
        name: float(each.std(ddof=1) / np.sqrt(episodes)) if episodes > 1 else 0.0
        for name, each in by_episode.items()
    }
    return {
        "source": {field.name: getattr(source, field.name) for field in fields(Source)},
        "episodes": episodes,
        "length": length,
        "reach": {name: seen[name] for name in KEPT},
        "places": [
            {"from": int(a), "to": int(b)}
            | {n: float(mean[a:b].mean()) for n, mean in means.items()}
            for a, b in pairwise(edges)
        ],
        "last": {n: float(mean[last].mean()) for n, mean in means.items()}
        | {"deviation": error["last"]},
        "total": {n: float(mean.sum()) for n, mean in means.items()}
        | {"deviation": error["total"]},
    }


def table(found: dict[str, Any]) -> str:
    """Regret by place in lines, then of the last segment and of a whole episode."""
    names = ("nats", "regret", *KEPT)
    head = ("best", "regret", *(f"sees {found['reach'][name]}" for name in KEPT))

    def line(label: str, row: dict[str, Any]) -> str:
        error = f"  (regret ± {row['deviation']:.5f})" if "deviation" in row else ""
        return f"{label:>16}" + "".join(f"{row[name]:>12.5f}" for name in names) + error

    return "\n".join(
        [
            f"{'symbols':>16}" + "".join(f"{name:>12}" for name in head),
            *(line(f"{row['from']} to {row['to'] - 1}", row) for row in found["places"]),
            line("last segment", found["last"]),
            line("sum", found["total"]),
        ]
    )
