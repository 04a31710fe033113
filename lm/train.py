"""Program: train a Compressive Transformer, or continue a run that was stopped."""

import sys

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


if __name__ == "__main__":
    # DeepSpeed's launcher adds the local rank, which it also puts in the environment.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    command.run(main, section="start", argv=arguments)
