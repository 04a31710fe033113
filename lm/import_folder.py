"""Program: make a run of a folder that lm.export wrote, or that transformers saved after it."""

from pathlib import Path

from data.common import command
from data.common.integrity import check_sums
from data.common.locks import new_folder
from data.common.outputs import check_folder
from data.tokenizers.registry import load_tokenizer
from lm.runs.adopted_config import copy_base


def main(folder: Path, run: Path, vocabulary: Path | None = None) -> None:
    """Make a run of an exported folder, to score it, to write with it, or to export it again.

    Such a run has weights, and no optimiser to train on with.

    Args:
        folder: folder of the model, with config.json and safetensors.
        run: folder to write; it must not exist.
        vocabulary: folder of its vocabulary, if that is not the model's.
    """
    from lm.hub.importing import read_config, read_weights, write_run
    from lm.hub.weights import MEANT

    check_folder(run)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model; write one with python -m lm.export")
    check_sums(folder, MEANT)
    config, size = read_config(folder / "config.json")
    words = load_tokenizer(vocabulary or folder)
    if words.size != size:
        raise ValueError(
            f"the model knows {size} tokens, but {vocabulary or folder} has {words.size}; give its "
            "own --vocabulary"
        )
    with new_folder(run, "--run") as place:
        # Read within the lock: whoever waits for it should not hold a model.
        write_run(config, read_weights(folder, config.model, size), words, place)
        copy_base(folder, place)
    print(run)


if __name__ == "__main__":
    command.run(main)
