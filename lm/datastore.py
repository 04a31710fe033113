"""Program: a run's hidden states of a split, searched by inverted lists, for kNN-LM.

It is made once, memory-mapped, and looked up by `--adapt.method knn --adapt.datastore DIR` in
`longrange generate` and `longrange compress`, and by `longrange adapt --datastore DIR`. What its
search finds of the true neighbours is printed. Needs the extra `datastore` (faiss).
"""

from dataclasses import dataclass
from pathlib import Path

from data.common import command
from data.common.locks import new_folder
from data.common.schema import Size
from lm.inference.inference_config import Lengths, Placement, ScoringConfig


@dataclass(frozen=True)
class DatastoreConfig(ScoringConfig, Lengths, Placement):
    """How the text is read, and how its hidden states are searched."""

    limit: Size | None = None
    """Read only this many segments of each lane."""
    lists: Size | None = None
    """Lists that the entries are parted into; none: about four times the root of their number."""
    probes: Size = 16
    """Lists that a search looks through, at most all."""
    queries: Size = 256
    """Hidden states of another split with which the search is compared with an exact one."""


def main(
    run: Path,
    out: Path,
    reading: DatastoreConfig,
    split: str = "train",
    shards: Path | None = None,
    checkpoint: str | None = None,
) -> None:
    """Read a split and make a datastore of it.

    Args:
        run: folder of the run.
        out: folder of the datastore; not there yet.
        reading: how the text is read and searched.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
    """
    from data.shards import open_shards
    from lm.hidden import keys_and_values, some_states
    from lm.inference.ivf import Made, index_of, library, recalls, usual_lists, write
    from lm.inference.loading import load_run
    from lm.inference.model_hash import model_hash

    library()
    loaded = load_run(run, checkpoint, reading, reading)
    opened = open_shards(shards or loaded.shards)
    if opened.vocabulary.hash != loaded.vocabulary.hash:
        raise ValueError(
            f"{opened.path} has another vocabulary than the model; prepare the text with the "
            "model's"
        )
    other = "validation" if split != "validation" else "test"
    with new_folder(out, "--out") as folder:
        keys_file = folder / "keys.f32"
        keys_ND, values_N = keys_and_values(
            loaded.predictor, opened.split(split), reading, reading.limit, keys_file
        )
        lists = min(reading.lists or usual_lists(len(keys_ND)), len(keys_ND))
        index = index_of(keys_ND, lists)
        queries_nD = some_states(loaded.predictor, opened.split(other), reading, reading.queries)
        found = recalls(index, keys_ND, queries_nD, lists)
        made = Made(
            model=model_hash(loaded.model),
            shards=opened.hash,
            split=split,
            entries=len(keys_ND),
            width=keys_ND.shape[1],
            lists=lists,
            probes=min(reading.probes, lists),
            queries=len(queries_nD),
            recall=found,
        )
        write(folder, index, values_N, made)
        del keys_ND
        keys_file.unlink()
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {made.entries:,} entries of {split} in {lists:,} lists, {size:,} bytes")
    print(f"  share of the 32 nearest that a search finds, of {made.queries} states of {other}:")
    for each in found:
        mark = "  <- used" if each.probes == made.probes else ""
        print(f"  {each.probes:>6} lists{each.recall:10.4f}{mark}")


if __name__ == "__main__":
    command.run(main, section="reading")
