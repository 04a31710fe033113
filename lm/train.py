"""Program: train a Compressive Transformer, or continue a run that was stopped."""

import sys
from pathlib import Path

from data.common import command
from data.common.command import dump_config, load_config
from data.common.files import atomic_path
from data.common.say import say
from data.options import DataConfig
from data.shards import Shards, open_shards
from lm.model import ModelConfig
from lm.sparse.config import PowerConfig, SparseConfig
from lm.training import checkpoint, dist
from lm.training.config import RunConfig, TrainingConfig, resumed
from lm.training.loop import Loop
from lm.training.optim import OptimConfig
from lm.training.report import ReportConfig
from lm.training.runlog import MetricsLog, write_environment
from lm.training.stopping import StopRequest
from lm.training.trainer import Trainer


def main(
    run: Path,
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
        run: folder of the run; one that holds a checkpoint of the same run is continued.
        data: the shards to train on.
        model: shape of the model.
        optim: how weights move.
        training: length of the run, its lanes, and what it writes when.
        report: what the run shows of itself.
        sparse: matrices that are sparse all through training.
        power: matrices that are powers of their parameters.
    """
    config = RunConfig(data, model, optim, training, report, sparse, power)
    stop = StopRequest()
    with stop.listening():
        train(config, run, stop)


def train(config: RunConfig, run: Path, stop: StopRequest) -> None:
    """Begin a run or go on with it, to its end or until `stop`.

    Raises:
        SystemExit: stopped; the status is that of lm.training.stopping.
    """
    shards = open_shards(config.data.shards)
    folder = checkpoint.newest(run)
    if folder is not None:
        if not (run / "config.yaml").is_file():
            raise ValueError(
                f"{run} holds checkpoints but not their config.yaml; put it back or give another "
                "--run folder"
            )
        config = resumed(config, load_config(RunConfig, run / "config.yaml"), str(run))
    elif (run / "config.yaml").exists() or (run.exists() and any(run.iterdir())):
        _require_unfinished(run)
    world = dist.join(config.training.timeout)
    stop.joined = True
    with dist.ending_together(world):
        trainer = _trainer(config, shards, world, folder)
        if folder is not None:
            _say(world, f"continue {run} from step {trainer.step}")
        if world.first:
            _describe(run, trainer)
        finished = Loop(trainer, run, stop).train()
    dist.leave(world)
    if not finished:
        stop.end(trainer.step, world.first)


def _trainer(config: RunConfig, shards: Shards, world: dist.World, folder: Path | None) -> Trainer:
    """A new trainer, or one that continues from a checkpoint, with what there is to say of it."""
    training = config.training
    if world.size == 1 and training.zero and not training.offload:
        _say(world, f"training.zero {training.zero} divides among ranks; one alone is faster at 0")
    trainer = Trainer(config, shards, world, folder)
    if routes := trainer.sparsity.spoken():
        _say(world, routes)
    return trainer


def _describe(run: Path, trainer: Trainer) -> None:
    """Make the run's folder say what it holds, and its log end where training goes on."""
    (run / "vocabulary").mkdir(parents=True, exist_ok=True)
    with atomic_path(run / "config.yaml") as temporary:
        temporary.write_text(dump_config(trainer.config))
    write_environment(run)
    trainer.shards.vocabulary.save(run / "vocabulary")
    MetricsLog(run / "metrics.jsonl").cut(trainer.step)


def _require_unfinished(run: Path) -> None:
    """A folder without checkpoint may hold what a run wrote before its first, and nothing else."""
    ours = {"config.yaml", "env.json", "metrics.jsonl", "vocabulary", "checkpoints"}
    ours |= {"samples", "profile", "tensorboard", "wandb", "launch.sh", "launch.sbatch"}
    for path in run.iterdir():
        if path.name not in ours:
            raise ValueError(f"{run} holds {path.name} and no run; give a new --run folder")


def _say(world: dist.World, line: str) -> None:
    if world.first:
        say(line)


if __name__ == "__main__":
    # DeepSpeed's launcher adds the local rank, which it also puts in the environment.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    command.run(main, argv=arguments)
