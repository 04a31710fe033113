"""Program: a model's weights in one file, of sparse matrices what is not zero and where it is.

    NAME.values  weights of A, by unit: [k, side, side] of blocks, [k] of single ones
    NAME.index   numbers of the units, row by row, int32

and everything else by its own name. The shapes are in the file's metadata.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from data.common import command
from data.common.files import parse_json
from data.common.outputs import check_output, writing
from data.common.schema import Size, as_record
from data.common.tensors import TensorFile, save_tensors
from lm.inference.loading import load_run, load_trained, parts_of
from lm.sparse.layout import Layout
from lm.sparse.powerprop import PowerLinear
from lm.sparse.product import scattered
from lm.sparse.sparse_linear import SparseLinear

MEND = "write it again with python -m tools.compact"


@torch.no_grad()
def write_compact(model: nn.Module, file: Path) -> None:
    """Write a model whose sparse matrices are in sparse form; powers are written as the weights
    that they stand for.
    """
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, PowerLinear):
            tensors[f"{name}.weight"] = module.matrix()
        elif isinstance(module, SparseLinear):
            layout = module.layout
            weights = module.weights()[: module.active * layout.size]
            side = layout.block
            tensors[f"{name}.values"] = weights.view(-1, side, side) if side > 1 else weights
            tensors[f"{name}.index"] = module.index[: module.active]
            shapes[name] = [layout.out_features, layout.in_features, side]
    contiguous = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_tensors(contiguous, file, metadata={"shapes": json.dumps(shapes)})


class Shape(NamedTuple):
    """Rows, columns and side of a unit of a sparse matrix."""

    rows: Size
    columns: Size
    side: Size


def read_dense(file: Path) -> dict[str, Tensor]:
    """Weights of a file of `write_compact` by parameter of the dense model.

    Raises:
        ValueError: it is no such file, or it has changed since it was written.
    """
    stored = TensorFile(file, MEND)
    try:
        shapes = as_record(dict[str, Shape], parse_json(stored.about.get("shapes", "")))
    except ValueError as error:
        raise ValueError(f"{file} holds no sparse matrices ({error}); {MEND}") from None
    sparse = {f"{name}.{part}" for name in shapes for part in ("values", "index")}
    tensors = {name: stored[name] for name in sorted(set(stored) - sparse)}
    for name, (rows, columns, side) in shapes.items():
        layout = Layout(rows, columns, "block" if side > 1 else "unstructured", side)
        index = stored.take(f"{name}.index", torch.int32, (None,))
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < layout.units:
            raise ValueError(f"{file} chooses units of {name} that there are not; {MEND}")
        unit = (side, side) if side > 1 else ()
        values = stored.take(f"{name}.values", None, (len(index), *unit)).flatten()
        tensors[f"{name}.weight"] = scattered(values, index, layout)
    return tensors


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
