"""Corpora learnt one after the other, each packed into weights of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from data.common.files import atomic_path, write_json
from data.common.integrity import write_sealed
from data.common.schema import Count, Record, read_record
from data.common.tensors import load_tensors, save_tensors
from data.options import VOCABULARIES, DataConfig
from data.shards import Shards
from data.tokenizers.registry import load_tokenizer
from lm.inference.inference_config import BITS, ScoringConfig
from lm.inference.predictor import ModelPredictor
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import (
    RunConfig,
    RunFolder,
    changed,
    read_config,
)
from lm.scoring import score
from lm.sparse.packnet import Capacity, Packed, fewest
from lm.sparse.pruning import dense_matrices
from lm.sparse.sparse_config import PackingConfig
from lm.sparse.topkast import sparsify
from lm.training import dist
from lm.training.compiling import settled
from lm.training.folder import CONFIG, begin, describe
from lm.training.loop import Loop
from lm.training.stopping import StopRequest
from lm.training.trainer import Trainer

PACKED = "packed.safetensors"
ENTRY = "packed.json"
MEND = "remove the folder and call again: the corpus is learnt anew, and all after it"


class Entry(Record):
    """packed.json: a corpus that was learnt and packed."""

    corpus: str
    unit: str = BITS[0]
    trained: float
    """In this unit, the cost of its validation split with all weights."""
    packed: float = 0.0
    """The same with what it has packed."""
    after_all: float | None = None
    """The same again when the last corpus was learnt."""
    density: float
    claimed: float
    """Share of the weights that it was the first to claim."""
    claimed_together: float
    """Share that is claimed with it."""
    mask_bytes: Count


def learn_all(
    run: Path, corpora: list[Shards], config: RunConfig, packing: PackingConfig
) -> list[Entry]:
    """Learn what is not learnt yet and score everything at the end; returns what scores.json holds.

    Raises:
        ValueError: a corpus was learnt with other settings before.
    """
    config = settled(config)
    if config.training.learn != "all":
        raise ValueError(
            f"corpora are packed into all weights of a model, so training.learn must be all, not "
            f"{config.training.learn}"
        )
    folders = [run / f"{number}-{shards.path.name}" for number, shards in enumerate(corpora)]
    for number, (shards, folder) in enumerate(zip(corpora, folders, strict=True)):
        # Weights that nobody has claimed begin anew for each corpus.
        training = replace(config.training, seed=config.training.seed + number)
        own = replace(config, data=data_of(shards), training=training)
        if not (folder / ENTRY).is_file():
            learn(own, shards, folder, packing, folders[:number])
        elif changes := changed(own, read_config(folder / CONFIG), str(folder)):
            for name, (new, old) in changes.items():
                if not name.startswith(("data.", "report.")):
                    raise ValueError(
                        f"{folder} was learnt with {name} {old}, not {new}: give another --run "
                        f"folder or the same {name}"
                    )
    entries = [
        read_record(Entry, folder / ENTRY, MEND).model_copy(
            update={"after_all": quality(load_packed(folder, folders), shards)}
        )
        for shards, folder in zip(corpora, folders, strict=True)
    ]
    write_json(run / "scores.json", [entry.model_dump() for entry in entries])
    return entries


def data_of(shards: Shards) -> DataConfig:
    """The data section of a run on shards."""
    corpus = str(shards.manifest.options["corpus"])
    kind: Any = shards.manifest.vocabulary.kind
    return DataConfig(
        corpus,
        Path(shards.path),
        vocabulary=None if kind == VOCABULARIES[corpus][0] else kind,
        prefix=bool(shards.manifest.options.get("prefix", False)),
    )


def learn(
    config: RunConfig, shards: Shards, folder: Path, packing: PackingConfig, before: list[Path]
) -> None:
    """Train on a corpus with the weights that those before it have left, and pack it.

    Raises:
        SystemExit: a signal stopped training, which is saved.
    """
    folder.mkdir(exist_ok=True)
    begun = begin(RunFolder(folder), config)
    trainer = Trainer(config, shards, dist.join(config.training.timeout), begun.checkpoint)
    for kind in packing.kinds:
        if not dense_matrices(trainer.model, (kind,)):
            raise ValueError(f"packing.kinds names {kind}, which this model has no matrix of")
    capacity = Capacity(dense_matrices(trainer.model, packing.kinds))
    for earlier in before:
        packed = add_packed(earlier, capacity)
    if begun.checkpoint is None:
        capacity.fill(trainer.engine.stored)
        if before:
            trainer.engine.stored.load_state_dict(packed.own, strict=False)
        trainer.engine.give_weights()
    capacity.guard(trainer.model)
    describe(folder, trainer, begun)
    stop = StopRequest(joined=True)
    with stop.listening():
        finished = Loop(trainer, folder, stop).train()
    if not finished:
        stop.end(trainer.step)
    entry = pack(trained_model(trainer), shards, folder, packing, capacity)
    packed_quality = quality(load_packed(folder, [*before, folder]), shards)
    entry = entry.model_copy(update={"packed": packed_quality})
    write_sealed(folder / ENTRY, entry.model_dump(exclude={"after_all"}))


def trained_model(trainer: Trainer) -> CompressiveTransformer:
    """A model with the weights that were trained, which are float32 whatever it computed in."""
    if trainer.engine.masters is None:
        return trainer.model
    model = CompressiveTransformer(trainer.config.model, trainer.shards.vocabulary.size)
    sparsify(model, trainer.config.sparse, trainer.config.power, seed=0)
    model.load_state_dict(dict(trainer.engine.weights()), strict=False)
    return model.to(trainer.world.device)


def pack(
    model: CompressiveTransformer,
    shards: Shards,
    folder: Path,
    packing: PackingConfig,
    capacity: Capacity,
) -> Entry:
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
    return Entry(
        corpus=shards.path.name,
        unit=BITS[not shards.split("validation").exact],
        trained=trained,
        density=density,
        claimed=capacity.share - before,
        claimed_together=capacity.share,
        mask_bytes=sum(len(bits) for key, bits in tensors.items() if key.startswith("mask/")),
    )


def add_packed(folder: Path, capacity: Capacity | None = None) -> Packed:
    """What a corpus has packed, after it was added to what is claimed.

    Raises:
        ValueError: the file is damaged, or of other matrices.
    """
    tensors = load_tensors(folder / PACKED, MEND)
    try:
        packed = Packed.of_tensors(tensors)
        if capacity is not None:
            capacity.add(packed)
    except ValueError as error:
        raise ValueError(f"{folder / PACKED} cannot be used: {error}; {MEND}") from None
    return packed


def load_packed(folder: Path, folders: list[Path]) -> CompressiveTransformer:
    """The model of a corpus as the weights are after all corpora in `folders` have been learnt."""
    config = read_config(folder / CONFIG)
    model = CompressiveTransformer(config.model, load_tokenizer(folder / "vocabulary").size)
    sparsify(model, config.sparse, config.power, seed=0)
    packed = add_packed(folder)
    capacity = Capacity(packed.masks)
    for each in folders:
        add_packed(each, capacity)
    capacity.unpack(model, packed)
    return model.eval()


def quality(model: CompressiveTransformer, shards: Shards) -> float:
    """Bits per byte of a corpus's validation split; per token where there are no bytes."""
    predictor = ModelPredictor(model, shards.vocabulary)
    return score(predictor, shards.split("validation"), ScoringConfig()).bits


def spoken(entry: Entry) -> str:
    """A corpus's line."""
    same = "the same" if entry.after_all == entry.packed else "ANOTHER"
    unit = entry.unit.replace("_", " ")
    return (
        f"{entry.corpus}: {entry.trained:.4f} {unit} trained, {entry.packed:.4f} with "
        f"{entry.density:.0%} of each matrix, of which {entry.claimed:.0%} newly claimed; "
        f"{same} score after all corpora; mask {entry.mask_bytes:,} bytes"
    )
