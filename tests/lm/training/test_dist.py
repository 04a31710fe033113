"""How ranks join."""

import warnings
from dataclasses import replace

import pytest

from data.shards import Shards
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.trainer import Trainer


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_no_step_warns(
    zero: int,
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    partition_everything: None,
) -> None:
    """DeepSpeed gathers and scatters by names that torch has given up, which it said each step."""
    config = replace(run_config, training=replace(run_config.training, zero=zero))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trainer = Trainer(config, shards, world)
        trainer.train_step(12)
        trainer.train_step(12)
