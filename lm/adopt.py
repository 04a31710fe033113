"""Program: make a run of a pretrained model of transformers, with a memory that it did not have."""

from pathlib import Path
from typing import Literal

from data.common import command
from data.common.locks import new_folder
from data.common.outputs import check_folder
from lm.runs.adopted_config import MemoryShape


def main(
    model: str,
    run: Path,
    shape: MemoryShape,
    gguf: str | None = None,
    vocabulary: Path | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    check: bool = False,
) -> None:
    """Make a run of a Llama, Mistral, Qwen2 or Qwen3: its weights as they are, and a memory.

    The run is scored, written with, compressed with and exported like any other; its compression
    function begins as the mean and may be trained, while the model stays what it is.

    Args:
        model: folder that transformers saved, or the model's name on the Hugging Face hub.
        run: folder to write; it must not exist.
        shape: the memory that the model gets.
        gguf: name of a GGUF file in the folder, which holds the model instead of safetensors.
        vocabulary: folder of its tokenizer, if that is not in the model's.
        precision: how weights are stored; none: as the model has them, float16 as float32.
        check: also compare with transformers: the largest difference of logits on a text of several
            segments that memory covers.
    """
    from lm.hub.adopting import adopt
    from lm.hub.comparing import check_run
    from lm.hub.exporting import quiet_deepspeed
    from lm.hub.pretrained import open_source, open_vocabulary

    check_folder(run)
    quiet_deepspeed()
    source = open_source(model, gguf)
    words = open_vocabulary(source, vocabulary)
    with new_folder(run, "--run") as place:
        config = adopt(source, shape, words, place, precision)
        said = check_run(source, place, config.model) if check else None
    print(run)
    if said is not None:
        print(said)


if __name__ == "__main__":
    command.run(main, section="shape")
