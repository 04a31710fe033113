"""Program: learn several corpora one after the other in one set of matrices of fixed size."""

from pathlib import Path

from data.common import command
from data.shards import open_shards
from lm.model.model_config import ModelConfig
from lm.runs.run_config import OptimConfig, RunConfig, TrainingConfig
from lm.sparse.sparse_config import PackingConfig, PowerConfig


def main(
    run: Path,
    corpora: list[Path],
    model: ModelConfig,
    optim: OptimConfig,
    training: TrainingConfig,
    power: PowerConfig,
    packing: PackingConfig,
) -> None:
    """Learn corpora one after the other: each keeps a mask, and none harms those before it.

    RUN/N-NAME is an ordinary run on the N-th corpus, with packed.safetensors, which is all that is
    needed of it later. RUN/scores.json has each corpus's bits per byte on its validation split
    when it was packed and after the last corpus. The same command continues.

    Args:
        run: folder of the runs.
        corpora: folders of shards, with the same vocabulary, as '[shards/a, shards/b]'.
        model: shape of the model.
        optim: how weights move.
        training: length of each corpus's run, its lanes, and what it writes when.
        power: matrices that are powers of their parameters.
        packing: how many weights a corpus may claim.
    """
    from lm.training import dist
    from lm.training.folder import kept_alone, training_in
    from lm.training.tasks import data_of, learn_all, spoken

    opened = [open_shards(path) for path in corpora]
    if len({shards.vocabulary.hash for shards in opened}) != 1:
        raise ValueError("corpora must have the same vocabulary; see data.vocabulary_from")
    if optim.name != "adamw" or optim.weight_decay or training.zero or training.steps is None:
        raise ValueError(
            "lm.continual needs optim.name adamw, optim.weight_decay 0, because decay would move "
            "the weights of earlier corpora, training.zero 0 and training.steps"
        )
    world = dist.join(training.timeout)
    if world.size > 1:
        raise ValueError("lm.continual runs in one process")
    with kept_alone(run, training_in(run)):
        entries = learn_all(
            run, opened, RunConfig(data_of(opened[0]), model, optim, training, power=power), packing
        )
    print("\n".join(spoken(entry) for entry in entries))


if __name__ == "__main__":
    command.run(main)
