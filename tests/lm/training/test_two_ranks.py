"""Sparse training on two ranks, at every ZeRO stage."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.common.command import dump_config
from data.shards import Shards
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import SparseConfig
from lm.training import dist
from lm.training.trainer import Trainer

SPARSE = SparseConfig(0.1, 0.1, refresh=2)


def test_stages_and_ranks_agree(
    run_config: RunConfig, shards: Shards, tmp_path: Path, free_port: int
) -> None:
    """Reservoirs and sets are bitwise the same on both ranks and, but for rounding, at all stages
    and in one process; a run resumes bitwise on two ranks, and goes on on one; and the collectives
    are given the backward set where dense training gives them whole matrices.
    """
    config = replace(
        run_config,
        model=replace(run_config.model, dropout=0.0, filters=4, feedforward=64),
        optim=replace(run_config.optim, eps=1e-4),
        training=replace(run_config.training, zero=0),
        sparse=SPARSE,
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port),
    }
    command = [sys.executable, "-m", "tests.lm.training.two_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(tmp_path / "config.yaml"), str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, messages = process.communicate(timeout=400)
        assert process.returncode == 0, messages
    first, second = (json.loads((tmp_path / f"rank-{r}.json").read_text()) for r in range(2))
    single = Trainer(config, shards, dist.join())
    nats = [single.train_step(12)["nats"] for _ in range(5)]
    weights = sum(m.reservoir.numel() for m in single.sparsity.topkast.matrices.values())
    others = sum(p.numel() for p in single.model.parameters()) - 0.2 * weights
    for zero in range(4):
        ours, theirs = first[f"sparse-{zero}"], second[f"sparse-{zero}"]
        assert ours["digest"] == theirs["digest"]
        assert ours["nats"] == pytest.approx(nats, rel=1e-5)
        assert ours["resumed"] and theirs["resumed"]
        sparse, dense = (first[f"{name}-{zero}"]["traffic"] for name in ("sparse", "dense"))
        assert sparse.keys() == dense.keys()
        # Gradients are summed, or parameters gathered, each a whole number of times.
        times = round(sum(dense.values()) / (4 * (weights + others)))
        saved = sum(dense.values()) - sum(sparse.values())
        assert times >= 1 and saved == pytest.approx(times * 4 * 0.8 * weights, rel=0.02)
    folder = Path(first["sparse-3"]["checkpoint"])
    alone = Trainer(config, shards, dist.join(), folder)
    for _ in range(3):
        assert alone.train_step(12)["nats"] == pytest.approx(
            single.train_step(12)["nats"], rel=1e-4
        )
    a, b = (dict(t.engine.weights()) for t in (alone, single))
    for name, weight in a.items():
        torch.testing.assert_close(weight, b[name], rtol=1e-3, atol=1e-4)
