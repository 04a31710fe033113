"""Program: what a memory loses of a text whose best prediction is known: regret by place.

Reads a text of data.probes. Regret is what a model's prediction of a symbol costs beyond the exact
Bayes prediction, in nats, in the mean over what may come. Beside it stands the regret of exact
predictors that see only the segment, memory too, and what a layer reaches through compressed
memory: a model below one of them has kept something of what that one cannot see.
"""

from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from eval.eval_config import ScoreConfig


def main(
    run: Path,
    scoring: ScoreConfig,
    answers: Path,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Show a model's regret against the place in the episode.

    Args:
        run: folder of a run that was trained on a text of data.probes.
        scoring: how the text is read; each episode begins with empty memory.
        answers: the text's file of this split, such as probe/test.jsonl.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default bayes-SPLIT.json in the run's folder.
    """
    from eval.keeping import read_to_end
    from eval.protocol import open_reading, record
    from eval.regret import ProbeScorer, read_episodes, regret, table
    from lm.inference.loading import parts_of

    target = json or run / f"bayes-{split}.json"
    check_output(target, *parts_of(run), shards, answers)
    if not scoring.reset_documents:
        raise ValueError("give --reset-documents: an episode says nothing of the next one")
    reading = open_reading(run, scoring, split, shards, checkpoint)
    source, episodes_EN = read_episodes(answers, reading.split)
    scorer = ProbeScorer(reading.loaded.predictor, reading.split, scoring)
    scorer.symbols = source.symbols
    read_to_end(scorer)
    result = record(reading, scorer.result())
    config = reading.loaded.model.config
    result["bayes"] = regret(source, episodes_EN, scorer.log_p_NK, config)
    write_result(target, result)
    print(table(result["bayes"]))


if __name__ == "__main__":
    command.run(main, section="scoring")
