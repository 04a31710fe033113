"""Program: does a run fit on a cluster, how fast does it go, and how often is it best saved."""

from dataclasses import replace
from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from data.options import DataConfig
from data.shards import open_shards
from lm.model.model_config import ModelConfig
from lm.runs.run_config import OptimConfig, RunConfig, TrainingConfig
from lm.sparse.sparse_config import SparseConfig
from tools.cluster import Cluster, PlanConfig, shaped


def main(
    model: ModelConfig,
    optim: OptimConfig,
    training: TrainingConfig,
    sparse: SparseConfig,
    cluster: Cluster,
    asked: PlanConfig,
) -> None:
    """Plan a run: memory at each ZeRO stage, step time, days to a budget, checkpoints.

    Args:
        model: shape of the model.
        optim: how weights move.
        training: lanes, precision and what else a step consists of.
        sparse: which matrices are sparse.
        cluster: machines.
        asked: what is to be planned.
    """
    from tools.planning import check_lanes
    from tools.stages import MOST_LANES, balance, plan, refusals, sentence, table

    check_output(asked.json, asked.shards)
    vocabulary = asked.vocabulary
    if asked.shape is not None:
        vocabulary, model = shaped(asked.shape, model)
    config = RunConfig(DataConfig("text", Path()), model, optim, training, sparse=sparse)
    clusters = [replace(cluster, nodes=count) for count in asked.nodes or (cluster.nodes,)]
    if training.lanes > MOST_LANES:
        raise ValueError(f"training.lanes must be at most {MOST_LANES:,}, not {training.lanes:,}")
    for one in clusters:
        # Before the first is planned.
        check_lanes(training.lanes, one.ranks)
    dealt = ""
    if asked.shards is not None:
        split = open_shards(asked.shards).split("train")
        dealt = sentence(balance(split, training.lanes, model.segment))
    plans = [plan(config, vocabulary, one, asked.budget) for one in clusters]
    write_result(asked.json, plans)
    count, trained = plans[0]["parameters"], plans[0]["trained"]
    moving = "" if trained == count else f", of which {trained:,} are trained"
    print(f"{count:,} parameters{moving}, {training.lanes} lanes, {training.precision}")
    print("\n".join([*table(plans), *refusals(plans[0])]))
    if dealt:
        print(dealt)


if __name__ == "__main__":
    command.run(main, section="asked")
