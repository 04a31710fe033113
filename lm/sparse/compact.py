"""A model's weights as a file that has of each sparse matrix what is not zero, and where it is.

    NAME.values  weights of A, by unit: [k, side, side] of blocks, [k] of single ones
    NAME.index   numbers of the units, row by row, int32

and everything else by its own name. The shapes are in the file's metadata.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from data.common.tensors import save_tensors
from lm.sparse.layout import Layout
from lm.sparse.linear import SparseLinear
from lm.sparse.powerprop import PowerLinear
from lm.sparse.product import scattered


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


def read_dense(file: Path) -> dict[str, Tensor]:
    """Weights of a file of `write_compact` by parameter of the dense model."""
    tensors = {}
    with safe_open(file, framework="pt") as stored:
        shapes = json.loads(stored.metadata()["shapes"])
        sparse = {f"{name}.{part}" for name in shapes for part in ("values", "index")}
        for name in sorted(set(stored.keys()) - sparse):
            tensors[name] = stored.get_tensor(name)
        for name, (rows, columns, side) in shapes.items():
            layout = Layout(rows, columns, "block" if side > 1 else "unstructured", side)
            values = stored.get_tensor(f"{name}.values").flatten()
            tensors[f"{name}.weight"] = scattered(
                values, stored.get_tensor(f"{name}.index"), layout
            )
    return tensors
