"""Program: what a split costs a trained model, with the protocol of the number."""

from dataclasses import asdict, replace
from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from eval.eval_config import NAMES, ProgramConfig
from eval.results import Result
from lm.inference.inference_config import Lengths

HOW = ProgramConfig()


def main(
    run: Path | None = None,
    scoring: ProgramConfig = HOW,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
    compare: bool = True,
    keep: Path | None = None,
) -> None:
    """Score a split with a trained model: every token once, with the protocol of the number.

    The model is a run, or with --hf or --gguf any causal model of transformers. Several processes
    share the lanes: torchrun --nproc_per_node 2 -m -- eval.score ...

    Args:
        run: folder of the run.
        scoring: lengths, lanes, warm-up, and lengths to choose from on the validation split.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the whole record; a sweep is drawn in an .svg file beside it.
        compare: also compress the split's bytes with xz and bzip2.
        keep: folder for the state of a long score, with which the same command goes on.
    """
    from eval.protocol import open_reading
    from eval.scored import library_of, of_hub, of_run
    from eval.sweeps import (
        compressors,
        draw,
        figure_beside,
        point,
        sweep_table,
        table,
        this_rank,
    )
    from lm.inference.loading import parts_of
    from lm.training import dist

    require_one_model(run, scoring, shards, checkpoint)
    reads = [*([] if run is None else parts_of(run)), shards]
    check_output(json, *reads)
    figure = figure_beside(json) if json is not None and scoring.sweep else None
    check_output(figure, *reads)
    world = this_rank()

    def scored_at(lengths: Lengths, name: str, keep: Path | None = None) -> Result:
        if run is None:
            assert shards is not None
            result, part = of_hub(scoring, name, shards, world, keep)
        else:
            reading = open_reading(
                run, replace(scoring, **asdict(lengths)), name, shards, checkpoint
            )
            reading = replace(reading, split=reading.split.beginning(scoring.documents))
            cuts, library = scoring.frequency and name == split, library_of(scoring, reading)
            result, part = of_run(reading, world, keep, cuts, library)
        if compare and name == split:
            result["compressors"] = compressors(part)
        return result

    lengths, swept = Lengths(*(getattr(scoring, name) for name in NAMES)), None
    if scoring.sweep:
        if keep is not None:
            raise ValueError("keep has no effect on a sweep; score the chosen lengths with it")
        tried = scoring.sweep.points(lengths)
        points = [point(scored_at(each, "validation")) for each in tried]
        best = min(range(len(points)), key=lambda index: points[index]["value"])
        lengths, swept = tried[best], {"split": "validation", "points": points, "best": best}
    result = scored_at(lengths, split, keep)
    if swept is not None:
        result["sweep"] = swept
    if world.first:
        write_result(json, result)
        if figure is not None and swept is not None:
            draw(swept, figure)
        print((sweep_table(swept) + "\n" if swept else "") + table(result))
    if world.size > 1:
        dist.leave(world)


def require_one_model(
    run: Path | None, scoring: ProgramConfig, shards: Path | None, checkpoint: str | None
) -> None:
    """ValueError unless a run is named or a model of transformers, with what goes with it."""
    if (run is None) != scoring.of_hub:
        raise ValueError(
            "give the run that is scored as --run, or a model of transformers as --hf or --gguf"
        )
    if not scoring.of_hub:
        return
    if checkpoint is not None:
        raise ValueError("--checkpoint has no effect on a model of transformers; leave it out")
    if shards is None:
        raise ValueError("give the text that the model is scored on as --shards")


if __name__ == "__main__":
    command.run(main, section="scoring")
