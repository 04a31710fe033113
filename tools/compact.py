"""Program: a model's weights in one file, of sparse matrices what is not zero and where it is.

    NAME.values  weights of A, by unit: [k, side, side] of blocks, [k] of single ones
    NAME.index   numbers of the units, row by row, int32

and everything else by its own name. The shapes are in the file's metadata.
"""

from pathlib import Path
from typing import Literal

from data.common import command
from data.common.outputs import check_output, writing


def main(
    run: Path,
    out: Path,
    form: Literal["dense", "sparse"] = "dense",
    checkpoint: str | None = None,
) -> None:
    """Write the weights that a trained model predicts with.

    Args:
        run: folder of the run.
        out: the file; it is replaced.
        form: dense has every matrix whole, zeros included; sparse has of sparse matrices the
            weights of the forward set and their places (tools/compact.py).
        checkpoint: name of the checkpoint, by default the newest.
    """
    from data.common.tensors import save_tensors
    from lm.inference.loading import load_run, load_trained, parts_of
    from tools.sparse_file import write_compact

    check_output(out, *parts_of(run))
    sparse = form == "sparse"
    model = load_trained(run, checkpoint) if sparse else load_run(run, checkpoint).model
    with writing(out) as place:
        if sparse:
            write_compact(model, place)
        else:
            save_tensors({name: p.detach().cpu() for name, p in model.named_parameters()}, place)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    command.run(main)
