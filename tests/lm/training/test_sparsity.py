"""Sparse matrices in training: every stage against plain torch, resuming, and bytes counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.common.command import dump_config
from data.shards import Shards
from lm.inference.inference_config import ScoringConfig
from lm.inference.loading import load_run
from lm.runs.run_config import RunConfig
from lm.scoring import score
from lm.sparse.kernels import CsrDensePattern
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.sparse_linear import SparseLinear
from lm.training import dist, sparsity
from lm.training.trainer import Trainer
from tests.lm.sparse.cases import PlainStore
from tests.predictors import predictor
from tests.runs import saved

SPARSE = SparseConfig(0.3, 0.3, refresh=2, penalty=0.02)
POWER = PowerConfig(1.5)


pytestmark = pytest.mark.usefixtures("partition_everything")


def unseen(*_: Any) -> None:
    """Watches a step, and looks at nothing."""


def sparse_run(
    config: RunConfig, sparse: SparseConfig = SPARSE, power: PowerConfig = POWER, **training: Any
) -> RunConfig:
    """Without dropout, with decay, and with an epsilon that does not blow rounding up."""
    optim = replace(config.optim, eps=1e-4, weight_decay=0.1)
    if sparse.stop_exploration is not None:
        optim = replace(optim, weight_decay=0.0)
    return replace(
        config,
        model=replace(config.model, dropout=0.0),
        optim=optim,
        training=replace(config.training, **training),
        sparse=sparse,
        power=power,
    )


def reservoirs(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters of all weights, those of B from the masters."""
    weights = dict(trainer.engine.weights())
    found = {}
    for name, matrix in trainer.sparsity.topkast.matrices.items():
        units = matrix.reservoir.clone()
        rows = weights[name].view(-1, matrix.layout.size)
        units[matrix.module.index.long()] = rows
        found[name] = units
    return found


def plain_updates(trainer: Trainer, steps: int) -> None:
    """Train a stage-0 trainer's model by autograd, torch's optimiser and a refresh by hand."""
    module, optimizer = trainer.module, trainer.engine.optimizer
    for step in range(steps):
        if trainer.sparsity.topkast.due(step):
            trainer.sparsity.topkast.refresh(step, PlainStore(trainer.model, optimizer))
        reads = [trainer.lanes.next() for _ in range(2)]
        tokens = sum(scored for _, scored in reads)
        for segment, _ in reads:
            losses, _, trainer.memory = module([segment], trainer.memory)
            loss = losses["nats"][0] / tokens
            for name in ("reconstruction", "penalty"):
                total, count, _ = losses[name]
                loss = loss + total / (2 * count.clamp(min=1))
            loss.backward()
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = trainer.lrs[step]
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("zero", "offload"), [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)])
def test_updates_equal_plain_torch(
    run_config: RunConfig, shards: Shards, world: dist.World, zero: int, offload: int
) -> None:
    """Two accumulated back-propagations, of two micro-batches each, and three refreshes."""
    config = sparse_run(
        run_config,
        zero=zero,
        offload=bool(offload),
        accumulate=((0, 2),),
        micro_batches=2,
        activation_checkpointing=zero == 2,
    )
    trainer = Trainer(config, shards, world)
    results = [trainer.train_step(12, unseen) for _ in range(7)]
    plain = Trainer(sparse_run(run_config), shards, world)
    start = reservoirs(plain)
    plain.lrs = [result["lr"] for result in results]
    plain_updates(plain, 7)
    assert {"penalty", "sparse_changed", "sparse_ever_active"} <= results[-1].keys()
    assert 0 < results[-1]["sparse_changed"] < 0.5
    mine, theirs = reservoirs(trainer), reservoirs(plain)
    for name, matrix in plain.sparsity.topkast.matrices.items():
        moved = (theirs[name] - start[name]).norm()
        assert (mine[name] - theirs[name]).norm() < 1e-3 * moved, name
        ours = trainer.sparsity.topkast.matrices[name]
        assert torch.equal(ours.module.index, matrix.module.index)
        assert torch.equal(ours.ever.packed, matrix.ever.packed)


@pytest.mark.parametrize(
    ("sparse", "training"),
    [
        (SPARSE, {"zero": 0}),
        (replace(SPARSE, explored="random"), {"zero": 0, "precision": "bf16"}),
        (replace(SPARSE, granularity="block", block=4), {"zero": 1}),
        (replace(SPARSE, stop_exploration=5), {"zero": 2}),
        (replace(SPARSE, density=0.5, exploration=0.25, granularity="2:4"), {"zero": 3}),
        (SPARSE, {"zero": 3, "precision": "bf16"}),
    ],
    ids=str,
)
def test_resume_is_bitwise(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    sparse: SparseConfig,
    training: dict[str, Any],
) -> None:
    """From a second checkpoint, which shares the reservoir's base with the first: losses, sets,
    statistics, and every tensor of a third."""
    config = sparse_run(run_config, sparse, **training)
    whole_run = Trainer(config, shards, world)
    for _ in range(2):
        whole_run.train_step(12)
    first = saved(whole_run, tmp_path)
    for _ in range(3):
        whole_run.train_step(12)
    folder = saved(whole_run, tmp_path)
    base = folder / "reservoir-00000002.safetensors"
    assert base.samefile(first / base.name)
    expected = [whole_run.train_step(12, unseen) for _ in range(4)]
    again = Trainer(config, shards, world, folder)
    assert [again.train_step(12, unseen) for _ in range(4)] == expected
    mine, theirs = reservoirs(again), reservoirs(whole_run)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name, tensors in whole_run.snapshot(folder).files.items():
        for key, tensor in again.snapshot(folder).files[name].items():
            assert torch.equal(tensor, tensors[key]), key


def test_another_stage_continues_a_run(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    first = Trainer(sparse_run(run_config, zero=3), shards, world)
    for _ in range(3):
        first.train_step(12)
    folder = saved(first, tmp_path)
    second = Trainer(sparse_run(run_config, zero=0), shards, world, folder)
    for _ in range(4):
        mine, theirs = second.train_step(12, unseen), first.train_step(12, unseen)
        assert mine == pytest.approx(theirs, rel=1e-4)
    ours, other = reservoirs(second), reservoirs(first)
    for name in ours:
        torch.testing.assert_close(ours[name], other[name], rtol=1e-4, atol=1e-5)


def size(tensors: dict[str, Tensor] | list[Tensor]) -> int:
    values = tensors.values() if isinstance(tensors, dict) else tensors
    return sum(tensor.numel() * tensor.element_size() for tensor in values)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_bytes_are_those_of_the_backward_set(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path, zero: int
) -> None:
    """Parameters, gradients, moments and checkpoint files, of the matrices that are sparse."""
    sparse = SparseConfig(0.1, 0.1, refresh=2)
    trainer = Trainer(sparse_run(run_config, sparse, PowerConfig(), zero=zero), shards, world)
    matrices = trainer.sparsity.topkast.matrices
    dense = sum(4 * matrix.reservoir.numel() for matrix in matrices.values())
    share = pytest.approx(0.2 * dense, rel=0.01)
    gradients: dict[str, int] = {}
    for name in matrices:
        parameter = dict(trainer.model.named_parameters())[name]
        parameter.register_hook(lambda g, name=name: gradients.update({name: size([g])}))
    trainer.train_step(12)
    assert sum(gradients.values()) == share
    assert sum(matrix.module.index.numel() * 4 for matrix in matrices.values()) == share
    others = size([p for n, p in dense_parameters(trainer)])
    state = [
        value
        for entries in trainer.engine.optimizer.state.values()
        for key, value in entries.items()
        if key != "step"
    ]
    assert size(state) == pytest.approx(2 * (others + 0.2 * dense), rel=0.01)
    saved(trainer, tmp_path)
    for _ in range(6):
        trainer.train_step(12)
    folder = saved(trainer, tmp_path)
    files = [path for path in folder.glob("*.safetensors") if path.stat().st_nlink == 1]
    assert len(files) == 4
    own = sum(map(payload, files))
    # Values, two moments, indices and bits; what has left B since; and what is not of matrices.
    matrices_file = size(trainer.snapshot(folder).files["sparse.safetensors"])
    left = sum(
        (m.changed.flags().sum().item() - m.module.index.numel()) * 8 for m in matrices.values()
    )
    assert left < 0.05 * dense
    assert matrices_file == pytest.approx(0.2 * dense + dense / 32 + left, rel=0.02)
    rest = 3 * others + payload(folder / "rank-0.safetensors")
    assert own - rest == pytest.approx(3 * 0.2 * dense + matrices_file, rel=0.02)


def payload(path: Path) -> int:
    """Bytes of a safetensors file without its header."""
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


def dense_parameters(trainer: Trainer) -> list[tuple[str, Tensor]]:
    """Whole parameters that are not sparse."""
    sparse = trainer.sparsity.topkast.matrices.keys()
    return [kv for kv in trainer.engine.weights() if kv[0] not in sparse]


def test_settings_that_do_not_go_together_are_refused(run_config: RunConfig) -> None:
    muon = replace(run_config.optim, name="muon", muon_lr=0.01)
    with pytest.raises(ValueError, match=r"sparse needs optim\.name adamw"):
        replace(run_config, optim=muon, sparse=SPARSE)
    with pytest.raises(ValueError, match=r"power needs optim\.name adamw"):
        replace(run_config, optim=muon, power=POWER)
    with pytest.raises(ValueError, match=r"needs optim\.weight_decay 0"):
        replace(
            run_config,
            optim=replace(run_config.optim, weight_decay=0.1),
            sparse=replace(SPARSE, stop_exploration=5),
        )


def test_the_route_is_remembered(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that continues computes with the kernels it began with, whatever is faster now."""
    names = [f"blocks.{i}.feedforward.{part}" for i in range(2) for part in ("inner", "outer")]
    choice = {names[0]: "csr", names[1]: "csr_dense", names[2]: "dense", names[3]: "csr"}
    monkeypatch.setattr(sparsity, "measured", lambda *_: choice)
    config = sparse_run(run_config, replace(SPARSE, kinds=("feedforward",)), PowerConfig())
    trainer = Trainer(config, shards, world)
    for _ in range(3):
        trainer.train_step(12)
    folder = saved(trainer, tmp_path)
    monkeypatch.setattr(sparsity, "measured", lambda *_: dict.fromkeys(names, "dense"))
    again = Trainer(config, shards, world, folder)
    assert again.sparsity.routes == choice
    assert again.model.get_submodule(names[1]).make_pattern is CsrDensePattern
    expected = [trainer.train_step(12) for _ in range(3)]
    assert [again.train_step(12) for _ in range(3)] == expected
    dense = replace(config, sparse=replace(config.sparse, route="dense"))
    other = Trainer(dense, shards, world, folder)
    assert [other.train_step(12)["nats"] for _ in range(3)] == pytest.approx(
        [result["nats"] for result in expected], rel=1e-5
    )
    wrong = replace(config, sparse=replace(config.sparse, route="blocks"))
    with pytest.raises(ValueError, match=r"sparse\.route blocks does not go with"):
        Trainer(wrong, shards, world)


def test_a_copy_of_the_weights_has_no_sets(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    """The masters of bf16 weights do not double what a sparse matrix needs."""
    trainer = Trainer(sparse_run(run_config, precision="bf16"), shards, world)
    assert trainer.engine.masters is not None
    modules = list(trainer.engine.masters.module.modules())
    assert any(isinstance(module, SparseLinear) for module in modules)
    assert not any(module._buffers for module in modules)


def test_prediction_uses_the_forward_set_alone(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    """A run that is loaded gives the trainer's score, from matrices that are zero outside A."""
    config = sparse_run(run_config)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "vocabulary").mkdir()
    shards.vocabulary.save(tmp_path / "vocabulary")
    trainer = Trainer(config, shards, world)
    for _ in range(5):
        trainer.train_step(12)
    saved(trainer, tmp_path)
    model = load_run(tmp_path).model
    loaded, own = (
        score(
            predictor(each),
            shards.split("validation"),
            ScoringConfig(lanes=8),
            limit=4,
        ).bits_per_byte
        for each in (model, trainer.model)
    )
    assert loaded == pytest.approx(own, rel=1e-5)
    matrix = model.get_submodule("blocks.1.feedforward.outer").weight
    assert (matrix != 0).double().mean() == pytest.approx(0.3, abs=0.01)
