"""One rank's part of a run in float64: `python -m tests.float64 PRESET OUT` writes losses and
weights after some steps.
"""

import json
import sys
from pathlib import Path

import torch

from data.common.command import load_config
from data.shards import open_shards
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.trainer import Trainer

STEPS = 6


def main(preset: str, out: str) -> None:
    """Train in float64, sums over ranks included."""
    torch.set_num_threads(1)
    world = dist.join()
    config = load_config(RunConfig, Path(preset))
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed sums gradients of the types that it knows the device for.
    get_accelerator().supported_dtypes = lambda: [torch.float64]
    torch.set_default_dtype(torch.float64)
    trainer = Trainer(config, open_shards(config.data.shards), world)
    trainer.engine.deepspeed.communication_data_type = torch.float64
    results = [trainer.train_step(STEPS) for _ in range(STEPS)]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert weights.dtype == torch.float64
    if world.first:
        Path(out).write_text(json.dumps({"steps": results, "weights": weights.tolist()}))
    dist.leave(world)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
