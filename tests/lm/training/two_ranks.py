"""What each of two ranks does in tests/lm/training/test_two_ranks.py: trains a dense and a sparse
run at every ZeRO stage and writes what it saw.

The collectives are torch's; a wrapper counts the bytes that each is given.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.command import load_config
from data.shards import Shards, open_shards
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import SparseConfig
from lm.training import dist, engine
from lm.training.loop import Loop
from lm.training.trainer import Trainer

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter"),
    *("all_gather_into_tensor", "reduce_scatter_tensor", "_all_gather_base"),
    *("_reduce_scatter_base", "all_gather_single", "reduce_scatter_single"),
)
counted: dict[str, int] = {}


def count(name: str) -> None:
    """Count what a collective of torch.distributed is given: the larger side of each call."""
    original: Callable[..., Any] = getattr(torch.distributed, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        sizes = [0]
        for value in (*args, *kwargs.values()):
            tensors = value if isinstance(value, list | tuple) else [value]
            if all(isinstance(tensor, Tensor) for tensor in tensors):
                sizes.append(sum(t.numel() * t.element_size() for t in tensors))
        counted[name] = counted.get(name, 0) + max(sizes)
        return original(*args, **kwargs)

    setattr(torch.distributed, name, counting)


def digest(trainer: Trainer) -> str:
    """Of reservoirs and sets on this rank."""
    whole = hashlib.sha256()
    for matrix in trainer.sparsity.topkast.matrices.values():
        whole.update(matrix.reservoir.numpy().tobytes())
        whole.update(matrix.module.index.numpy().tobytes())
    return whole.hexdigest()


def train(config: RunConfig, shards: Shards, world: dist.World, run: Path) -> dict[str, Any]:
    """Two steps, of which the second is counted, and of a sparse run three more, of which two
    refresh its sets, and a checkpoint."""
    trainer = Trainer(config, shards, world)
    results = [trainer.train_step(12)]
    counted.clear()
    results.append(trainer.train_step(12))
    traffic = dict(counted)
    if config.sparse.density is None:
        return {"traffic": traffic}
    results += [trainer.train_step(12) for _ in range(3)]
    loop = Loop(trainer, run)
    loop.saved = -1
    loop.save()
    loop.close_checkpoint()
    world.barrier()
    folder = checkpoints.newest(run)
    assert folder is not None
    again = Trainer(config, shards, world, folder)
    resumed = again.train_step(12) == trainer.train_step(12) and digest(again) == digest(trainer)
    return {
        "nats": [result["nats"] for result in results],
        "traffic": traffic,
        "digest": digest(trainer),
        "resumed": resumed,
        "checkpoint": str(folder),
    }


def main(config_file: str, out: str) -> None:
    """Train every case and write what this rank saw."""
    # Before DeepSpeed takes hold of some of them.
    for name in COLLECTIVES:
        if hasattr(torch.distributed, name):
            count(name)
    world = dist.join()
    engine.PERSISTENT = 0
    config = load_config(RunConfig, Path(config_file))
    shards = open_shards(config.data.shards)
    seen = {}
    for zero in (0, 1, 2, 3):
        for name, sparse in (("dense", SparseConfig()), ("sparse", config.sparse)):
            case = replace(config, sparse=sparse, training=replace(config.training, zero=zero))
            run = Path(out) / f"{name}-{zero}"
            seen[f"{name}-{zero}"] = train(case, shards, world, run)
    (Path(out) / f"rank-{world.rank}.json").write_text(json.dumps(seen))
    dist.leave(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
