"""Sparse matrices in training: when their sets are chosen, and what checkpoints hold of them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.tensors import TensorFile
from lm.model.transformer import CompressiveTransformer
from lm.runs.checkpoints import MEND, SETS, STATE, SparseState
from lm.runs.run_config import RunConfig
from lm.sparse import state
from lm.sparse.routes import Route, candidates, measured, take
from lm.sparse.topkast import sparsify
from lm.training.dist import World
from lm.training.engine import Engine

MEASURED_TOKENS = 2048
"""Most tokens that routes are measured with."""


class Sparsity:
    """The sparse matrices of a run; there may be none."""

    def __init__(self, model: CompressiveTransformer, config: RunConfig) -> None:
        """Give the matrices of a new model the form that the config asks for."""
        self.topkast = sparsify(model, config.sparse, config.power, config.training.seed)
        self.changed: dict[str, float] = {}
        """Statistics of the last refresh."""
        self.base: str | None = None
        """File that checkpoints share."""
        self.routes: dict[str, Route] = {}
        """How each sparse matrix multiplies, by the name of its module."""

    def choose_routes(self, config: RunConfig, world: World, stored: Mapping[str, Route]) -> None:
        """Say how each sparse matrix multiplies, now that the model is where it will train.

        Args:
            config: the run's.
            world: all ranks take the first one's choice.
            stored: the choice of the checkpoint that the run continues from; another kernel would
                round otherwise.

        Raises:
            ValueError: a route that a matrix cannot go.
        """
        modules = {name.rpartition(".")[0]: m.module for name, m in self.topkast.matrices.items()}
        training = config.training
        dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
        if config.sparse.route != "auto":
            self.routes = dict.fromkeys(modules, config.sparse.route)
        elif all(stored.get(name) in candidates(module, dtype) for name, module in modules.items()):
            self.routes = {name: stored[name] for name in modules}
        else:
            lanes = training.lanes // (world.size * training.micro_batches)
            tokens = min(lanes * config.model.segment, MEASURED_TOKENS)
            self.routes = world.gather(measured(modules, tokens, dtype))[0]
        for name, module in modules.items():
            take(module, self.routes[name], dtype)

    def spoken(self) -> str:
        """How many matrices are sparse and how they multiply; empty if there are none."""
        if not self.routes:
            return ""
        counts = Counter(self.routes.values())
        ways = ", ".join(f"{count} {route}" for route, count in sorted(counts.items()))
        return f"{len(self.routes)} sparse matrices multiply by {ways}"

    def refresh(self, step: int, engine: Engine) -> None:
        """Choose sets anew if that is due after `step` steps."""
        if self.topkast.due(step):
            self.changed = self.topkast.refresh(step, engine)
            engine.give_weights()

    def save(
        self, step: int, files: dict[str, dict[str, Tensor]], previous: Path | None
    ) -> dict[str, Path]:
        """Add to the files of a checkpoint, and return what it shares with an earlier one.

        Args:
            step: the checkpoint's.
            files: to add to.
            previous: the newest complete checkpoint.
        """
        if not self.topkast.matrices:
            return {}
        links = {}
        if self.base and previous is not None and (previous / self.base).is_file():
            links[self.base] = previous / self.base
        else:
            self.base = f"reservoir-{step:08d}.safetensors"
            files[self.base] = state.base(self.topkast)
        files[SETS] = state.sets(self.topkast)
        return links

    def state(self) -> dict[str, Any]:
        """What state.json holds."""
        if not self.topkast.matrices:
            return {}
        return {"reservoir": self.base, "changed": self.changed, "routes": self.routes}

    def restore(self, folder: Path, step: int, stored: SparseState | None) -> None:
        """Take over what a checkpoint holds.

        Args:
            folder: the checkpoint.
            step: its step.
            stored: what `state` gave.

        Raises:
            ValueError: a file is damaged.
        """
        if not self.topkast.matrices:
            return
        if stored is None:
            raise ValueError(f"{folder / STATE} says nothing of the sparse matrices; {MEND}")
        self.base, self.changed = stored.reservoir, dict(stored.changed)
        base, sets = (TensorFile(folder / name, MEND) for name in (stored.reservoir, SETS))
        state.require_base(self.topkast, base)
        state.require_sets(self.topkast, sets)
        state.put_back(self.topkast, base, sets)
        # The sets of this step are chosen when training goes on.
        self.topkast.at(step - 1)
