"""Program: train a Compressive Transformer, or continue a run that was stopped."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.common import command
from data.options import DataConfig
from lm.model.model_config import ModelConfig
from lm.runs.run_config import OptimConfig, ReportConfig, RunConfig, RunFolder, TrainingConfig
from lm.sparse.sparse_config import PowerConfig, SparseConfig


def main(
    start: RunFolder,
    data: DataConfig,
    model: ModelConfig,
    optim: OptimConfig,
    training: TrainingConfig,
    report: ReportConfig,
    sparse: SparseConfig,
    power: PowerConfig,
) -> None:
    """Train a Compressive Transformer, or continue a run that was stopped.

    Args:
        start: folder of the run, and where in it to begin.
        data: the shards to train on.
        model: shape of the model.
        optim: how weights move.
        training: length of the run, its lanes, and what it writes when.
        report: what the run shows of itself.
        sparse: matrices that are sparse all through training.
        power: matrices that are powers of their parameters.
    """
    from lm.training.run import train
    from lm.training.stopping import StopRequest

    config = RunConfig(data, model, optim, training, report, sparse, power)
    stop = StopRequest()
    with stop.listening():
        train(config, start, stop)


def inherited(given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings of the run whose weights a new one begins with (--from).

    A run that has a checkpoint has taken over the settings with the weights.

    Args:
        given: options that are stated, by name.
    """
    from lm.runs.adopted_config import read_stored

    source, run = given.get("from"), given.get("run")
    if source is None:
        return {}
    if run is not None and any(Path(run, "checkpoints").glob("step-*")):
        source = run
    path = Path(source, "config.yaml")
    if not path.is_file():
        raise ValueError(f"--from {source} holds no run; give the folder of one")
    return {f"model.{name}": value for name, value in asdict(read_stored(path).model).items()}


if __name__ == "__main__":
    # DeepSpeed's launcher adds the local rank, which it also puts in the environment.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    command.run(main, section="start", argv=arguments, inherited=inherited)
