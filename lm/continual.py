"""Program: learn several corpora one after the other in one set of matrices of fixed size."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from data.common import command
from data.common.command import dump_config, load_config
from data.common.files import atomic_path, read_json, write_json
from data.common.tensors import save_tensors
from data.options import DataConfig
from data.shards import Shards, open_shards
from data.vocab import load_vocabulary
from lm.model import CompressiveTransformer, ModelConfig
from lm.scoring import ScoringConfig, score
from lm.sparse.config import Kind, PowerConfig
from lm.sparse.packing import Capacity, Packed, fewest
from lm.sparse.prune import dense_matrices
from lm.sparse.topkast import sparsify
from lm.training import checkpoint, dist
from lm.training.config import RunConfig, TrainingConfig
from lm.training.loop import Loop
from lm.training.optim import OptimConfig
from lm.training.runlog import MetricsLog, write_environment
from lm.training.stopping import StopRequest
from lm.training.trainer import Trainer

PACKED = "packed.safetensors"
ENTRY = "packed.json"


@dataclass(frozen=True)
class PackingConfig:
    """How many weights a corpus may claim."""

    accepted: float = 0.99
    """Share gamma of the quality that a mask must keep: bits per byte may rise to 1 / gamma."""
    densities: tuple[float, ...] = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
    """Shares of each matrix that are tried, falling."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that corpora share; of all other parameters each has its own."""

    def __post_init__(self) -> None:
        if not 0 < self.accepted <= 1:
            raise ValueError(f"packing.accepted must be above 0, at most 1, not {self.accepted}")
        falling = sorted({d for d in self.densities if 0 < d < 1}, reverse=True)
        if list(self.densities) != falling:
            raise ValueError("packing.densities must fall, and lie between 0 and 1")


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
    folders = [run / f"{number}-{shards.path.name}" for number, shards in enumerate(opened)]
    for number, (shards, folder) in enumerate(zip(opened, folders, strict=True)):
        # Weights that nobody has claimed begin anew for each corpus.
        own = replace(training, seed=training.seed + number)
        config = RunConfig(data_of(shards), model, optim, own, power=power)
        if not (folder / ENTRY).is_file():
            learn(config, shards, folder, packing, folders[:number])
    entries = [read_json(folder / ENTRY) for folder in folders]
    for entry, shards, folder in zip(entries, opened, folders, strict=True):
        entry["after_all"] = quality(load_packed(folder, folders), shards)
    write_json(run / "scores.json", entries)
    print("\n".join(spoken(entry) for entry in entries))


def data_of(shards: Shards) -> DataConfig:
    """The data section of a run on shards."""
    prefix = shards.corpus.endswith("-prefix")
    return DataConfig(shards.corpus.removesuffix("-prefix"), Path(shards.path), prefix=prefix)


def learn(
    config: RunConfig, shards: Shards, folder: Path, packing: PackingConfig, before: list[Path]
) -> None:
    """Train on a corpus with the weights that those before it have left, and pack it.

    Raises:
        SystemExit: a signal stopped training, which is saved.
    """
    newest = checkpoint.newest(folder)
    trainer = Trainer(config, shards, dist.join(config.training.timeout), newest)
    capacity = Capacity(dense_matrices(trainer.model, packing.kinds))
    for earlier in before:
        packed = Packed.of_tensors(load_file(earlier / PACKED))
        capacity.add(packed)
    if newest is None:
        capacity.fill(trainer.model)
        if before:
            trainer.model.load_state_dict(packed.own, strict=False)
    capacity.guard(trainer.model)
    describe(config, shards, folder)
    MetricsLog(folder / "metrics.jsonl").cut(trainer.step)
    stop = StopRequest(joined=True)
    with stop.listening():
        finished = Loop(trainer, folder, stop).train()
    if not finished:
        stop.end(trainer.step)
    entry = pack(trainer.model, shards, folder, packing, capacity)
    entry["packed"] = quality(load_packed(folder, [*before, folder]), shards)
    write_json(folder / ENTRY, entry)


def describe(config: RunConfig, shards: Shards, folder: Path) -> None:
    """Make the folder describe itself as a run."""
    (folder / "vocabulary").mkdir(parents=True, exist_ok=True)
    shards.vocabulary.save(folder / "vocabulary")
    with atomic_path(folder / "config.yaml") as temporary:
        temporary.write_text(dump_config(config))
    write_environment(folder)


def pack(
    model: CompressiveTransformer,
    shards: Shards,
    folder: Path,
    packing: PackingConfig,
    capacity: Capacity,
) -> dict[str, Any]:
    """Write the fewest weights that a trained model can do with on its corpus, and return what
    there is to say of them.
    """
    trained, before = quality(model, shards), capacity.share

    def acceptable() -> bool:
        return quality(model, shards) <= trained / packing.accepted

    density, masks = fewest(model, capacity.claimed, packing.densities, acceptable)
    packed = capacity.pack(model, masks)
    capacity.add(packed)
    tensors = packed.tensors()
    with atomic_path(folder / PACKED) as temporary:
        save_tensors(tensors, temporary)
    return {
        "corpus": shards.path.name,
        "trained": trained,
        "density": density,
        "claimed": capacity.share - before,
        "claimed_together": capacity.share,
        "mask_bytes": sum(len(bits) for key, bits in tensors.items() if key.startswith("mask/")),
    }


def load_packed(folder: Path, folders: list[Path]) -> CompressiveTransformer:
    """The model of a corpus as the weights are after all corpora in `folders` have been learnt."""
    config = load_config(RunConfig, folder / "config.yaml")
    model = CompressiveTransformer(config.model, load_vocabulary(folder / "vocabulary").size)
    sparsify(model, config.sparse, config.power, seed=0)
    packed = Packed.of_tensors(load_file(folder / PACKED))
    capacity = Capacity(packed.masks)
    for each in folders:
        capacity.add(Packed.of_tensors(load_file(each / PACKED)))
    capacity.unpack(model, packed)
    return model.eval()


def quality(model: CompressiveTransformer, shards: Shards) -> float:
    """Bits per byte of a corpus's validation split."""
    return score(model, shards.split("validation"), ScoringConfig()).bits_per_byte


def spoken(entry: dict[str, Any]) -> str:
    """A corpus's line."""
    same = "the same" if entry["after_all"] == entry["packed"] else "ANOTHER"
    return (
        f"{entry['corpus']}: {entry['trained']:.4f} bits/byte trained, {entry['packed']:.4f} with "
        f"{entry['density']:.0%} of each matrix, of which {entry['claimed']:.0%} newly claimed; "
        f"{same} score after all corpora; mask {entry['mask_bytes']:,} bytes"
    )


if __name__ == "__main__":
    command.run(main)
