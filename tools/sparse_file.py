"""Weights in one file, of sparse matrices what is not zero and where it is."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.common.files import parse_json
from data.common.schema import Size, as_record
from data.common.tensors import TensorFile, save_tensors
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
