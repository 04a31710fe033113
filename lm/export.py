"""Program: write a trained model as a folder for the Hugging Face ecosystem."""

from pathlib import Path
from typing import Literal

from data.common import command
from data.common.integrity import write_sums
from data.common.locks import new_folder
from data.common.outputs import check_folder
from data.tokenizers.registry import load_tokenizer


def main(
    run: Path,
    out: Path,
    checkpoint: str | None = None,
    title: str | None = None,
    max_shard_size: str = "5GB",
    plain: bool = False,
    precision: Literal["float32", "bfloat16"] | None = None,
    license: str | None = None,
) -> None:
    """Write a trained model as a folder that AutoModelForCausalLM loads with trust_remote_code.

    The folder has weights, configuration, tokenizer, the code of the model and a model card with
    the scores that were measured with these weights. Sparse matrices are written as dense ones
    that are zero outside the forward set.

    Args:
        run: folder of the run.
        out: folder to write; it must not exist.
        checkpoint: name of the checkpoint, by default the newest.
        title: of the model card, by default the run's name.
        max_shard_size: weights are split into files of this size at most, such as 500MB.
        plain: write the model that the run was adopted from, without memory or code, as its own
            library knows it; weights that nothing has trained are the same bits.
        precision: numbers that weights are written in; none: those of the checkpoint, bfloat16
            where most of its weights are.
        license: the hub's identifier of the weights' licence, such as apache-2.0, for the card.
    """
    from lm.hub.card import model_card
    from lm.hub.exporting import check_shard_size, has_tokenizer, quiet_deepspeed, write_folder
    from lm.hub.plain import require_base, write_plain
    from lm.inference.inference_config import Placement
    from lm.inference.loading import find_weights, load_run, pieces, stored_precision

    check_folder(out, *pieces(run))
    check_shard_size(max_shard_size)
    if plain:
        if title is not None or license is not None:
            name = "license" if title is None else "title"
            raise ValueError(f"{name} has no effect on a --plain model, which gets no card")
        if precision is not None:
            raise ValueError(
                "precision has no effect on a --plain model, whose weights keep their own"
            )
        require_base(run)
        config, weights = find_weights(run, checkpoint)
        with new_folder(out, "--out") as place:
            words = load_tokenizer(run / "vocabulary")
            write_plain(run, weights, config.model, words, place, max_shard_size)
        print(out)
        return
    quiet_deepspeed()
    kept = precision or stored_precision(find_weights(run, checkpoint)[1])
    loaded = load_run(run, checkpoint, placement=Placement("cpu", kept))
    with new_folder(out, "--out") as place:
        write_folder(loaded, place, max_shard_size)
        tokenizer = has_tokenizer(loaded.vocabulary)
        card = model_card(loaded, run, title or run.resolve().name, tokenizer, license)
        (place / "README.md").write_text(card, encoding="utf-8")
        # Weights have theirs in their files, and the card may be edited.
        paths = [path for path in place.rglob("*") if path.is_file()]
        names = sorted(path.relative_to(place).as_posix() for path in paths)
        write_sums(place, [n for n in names if not n.endswith((".safetensors", ".md"))])
    print(out)


if __name__ == "__main__":
    command.run(main)
