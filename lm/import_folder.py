"""Program: make a run of a folder that lm.export wrote, or that transformers saved after it."""

from dataclasses import asdict
from pathlib import Path

import torch

from data.common import command
from data.common.command import load_config
from data.common.files import remove_folder
from data.common.integrity import write_sealed
from data.common.tensors import save_tensors
from data.vocab import load_vocabulary
from lm.export import quiet_deepspeed
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.training.checkpoint import LATEST, STATE, WEIGHTS, CheckpointState
from lm.training.config import RunConfig, write_config

NAME = "step-00000000"


def main(folder: Path, run: Path, vocabulary: Path | None = None) -> None:
    """Make a run of an exported folder, to score it, to write with it, or to export it again.

    Such a run has weights, and no optimiser to train on with.

    Args:
        folder: folder of the model, with config.json and safetensors.
        run: folder to write; it must not exist.
        vocabulary: folder of its vocabulary, if that is not the model's.
    """
    if run.exists():
        raise ValueError(f"{run} exists; give a folder that does not")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model; write one with python -m lm.export")
    quiet_deepspeed()
    config = CompressiveTransformerConfig.from_pretrained(folder)
    if not hasattr(config, "run"):
        raise ValueError(f"{folder} does not come from lm.export: config.json has no key run")
    words = load_vocabulary(vocabulary or folder)
    if words.size != config.vocab_size:
        raise ValueError(
            f"the model knows {config.vocab_size} tokens, but {vocabulary or folder} has "
            f"{words.size}; give its own --vocabulary"
        )
    model = CompressiveTransformerForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = load_config(RunConfig, config.run | {"model": asdict(config.sizes())})
    try:
        target = run / "checkpoints" / NAME
        target.mkdir(parents=True)
        (run / "vocabulary").mkdir()
        words.save(run / "vocabulary")
        weights = {n: p.detach().contiguous() for n, p in model.model.named_parameters()}
        save_tensors(weights, target / WEIGHTS)
        state = CheckpointState(step=0, ranks=0, shards="imported")
        write_sealed(target / STATE, state.model_dump(exclude_unset=True))
        (run / "checkpoints" / LATEST).write_text(NAME + "\n")
        write_config(run / "config.yaml", whole)
    except OSError:
        remove_folder(run)
        raise
    print(run)


if __name__ == "__main__":
    command.run(main)
