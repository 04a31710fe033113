"""One-shot pruning, and the file that has of sparse matrices what is not zero."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.common.tensors import TensorFile, save_tensors
from lm.inference.loading import load_run, load_trained
from lm.sparse.pruning import dense_matrices, largest, prune
from tests.damage import flips
from tests.lm.sparse.test_sparse_config import tiny
from tools.sparse_file import read_dense, write_compact


def test_the_largest_weights_stay() -> None:
    weights = {"a": torch.tensor([[3.0, -4.0], [1.0, 2.0]]), "b": torch.tensor([[0.5, -5.0]])}
    by_matrix = largest(weights, 0.5)
    assert by_matrix["a"].tolist() == [[True, True], [False, False]]
    assert by_matrix["b"].tolist() == [[False, True]]
    together = largest(weights, 0.5, "model")
    assert together["a"].tolist() == [[True, True], [False, False]]
    assert largest({"a": torch.ones(4)}, 0.5)["a"].tolist() == [True, True, False, False]
    assert largest(weights, 1 / 6, "model")["a"].sum() == 0


def test_pruning_zeroes_a_share_of_the_chosen_matrices() -> None:
    torch.manual_seed(0)
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert prune(model, 0.75, ("feedforward",)) == pytest.approx(0.75, abs=0.01)
    for name, parameter in model.named_parameters():
        if "feedforward.inner.weight" in name or "feedforward.outer.weight" in name:
            kept = parameter != 0
            assert kept.double().mean() == pytest.approx(0.25, abs=0.01)
            assert torch.equal(parameter[kept], before[name][kept])
            assert before[name][~kept].abs().max() <= before[name][kept].abs().min()
        else:
            assert torch.equal(parameter, before[name])
    with pytest.raises(ValueError, match="no matrix of the kinds gates"):
        prune(model, 0.5, ("gates",))
    with pytest.raises(ValueError, match="between 0 and 1"):
        prune(model, 1.5, ("feedforward",))


def test_a_compact_file_gives_the_loaded_model(sparse_run: Path, tmp_path: Path) -> None:
    """Blocks and powers included; it is smaller by what is zero."""
    file = tmp_path / "sparse.safetensors"
    write_compact(load_trained(sparse_run), file)
    dense = dict(load_run(sparse_run).model.cpu().named_parameters())
    tensors = read_dense(file)
    assert tensors.keys() == dense.keys()
    assert all(torch.equal(tensors[name], dense[name]) for name in dense)
    saved = sum(tensor.numel() * 4 for tensor in tensors.values()) - file.stat().st_size
    matrices = dense_matrices(load_run(sparse_run).model, ("feedforward",))
    weights = sum(linear.weight.numel() for linear in matrices.values())
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    # A block of 16 weights has one number.
    assert saved + header == pytest.approx(weights * 4 * (0.75 - 0.25 / 16), rel=0.01)


def test_a_flipped_bit_of_a_compact_file_is_not_read(sparse_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "sparse.safetensors"
    write_compact(load_trained(sparse_run), file)
    for _ in flips(file, 12):
        with pytest.raises(ValueError, match=r"write it again with python -m tools\.compact"):
            read_dense(file)
    tensors, shapes = load_file(file), TensorFile(file, "").about["shapes"]
    name = next(iter(json.loads(shapes)))
    index = tensors[f"{name}.index"]
    for changed, about in (
        ({f"{name}.index": index + 10**6}, shapes),
        ({f"{name}.index": index[:-1]}, shapes),
        ({f"{name}.index": index.float()}, shapes),
        ({}, json.dumps({name: [1, 2]})),
        ({}, json.dumps({name: [0, 8, 4]})),
        ({}, json.dumps({"other": [8, 8, 4]})),
        ({}, "["),
    ):
        save_tensors(tensors | changed, file, {"shapes": about})
        with pytest.raises(ValueError, match=r"write it again with python -m tools\.compact"):
            read_dense(file)
