"""What learns: compression functions or adapters alone, while all else stays what it is, bit for
bit.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.shards import Shards
from lm.inference.loading import load_run
from lm.model.incremental import Reader
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.teacher_config import TeacherConfig
from lm.runs.adapters import LoraConfig
from lm.runs.gating import GateConfig
from lm.runs.merging import merged
from lm.runs.run_config import OptimConfig, RunConfig, write_config
from lm.sparse.sparse_config import PackingConfig, SparseConfig
from lm.training import dist, learning
from lm.training.learning import adapt, choose_learning
from lm.training.tasks import learn_all
from lm.training.trainer import Trainer
from tests.runs import saved, with_training
from tools.planning import size, sized

pytestmark = pytest.mark.usefixtures("partition_everything")
COMPRESSION = {"learn": "compression"}
LORA = {"learn": "lora", "lora": LoraConfig(rank=3, alpha=5.0)}


def hash_of(weights: Iterable[tuple[str, Tensor]], ours: bool) -> str:
    """Of the weights that learn (ours), or of those that do not, whatever adapters are called."""
    digest = hashlib.sha256()
    for name, weight in sorted((n.replace(".base_layer", ""), w) for n, w in weights):
        if ours == (".compression." in name or "lora_" in name):
            digest.update(f"{name} {weight.dtype}".encode() + weight.cpu().numpy().tobytes())
    return digest.hexdigest()


STAGES = [
    {"zero": 0},
    {"zero": 0, "precision": "bf16"},
    {"zero": 1},
    {"zero": 2},
    {"zero": 2, "precision": "bf16"},
    {"zero": 3},
    pytest.param({"zero": 3, "precision": "bf16"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("learn", [COMPRESSION, LORA], ids=["compression", "lora"])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_what_does_not_learn_stays_bit_for_bit_and_a_resume_is_bitwise(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    learn: dict[str, Any],
    stage: dict[str, Any],
) -> None:
    """At every stage; no gradient and no state of the optimiser is there for what is frozen."""
    if learn is LORA:
        pytest.importorskip("peft")
    config = with_training(run_config, **learn, **stage)
    torch.manual_seed(config.training.seed)
    plain = CompressiveTransformer(config.model, shards.vocabulary.size)
    trainer = Trainer(config, shards, world)
    engine = trainer.engine
    before, learnt = (hash_of(engine.weights(), ours) for ours in (False, True))
    assert before == hash_of(((n, p.detach()) for n, p in plain.named_parameters()), False)
    for _ in range(3):
        trainer.train_step(12)
    assert hash_of(engine.weights(), False) == before
    assert hash_of(engine.weights(), True) != learnt
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)
    assert {key.rpartition("/")[0] for key, _ in engine.state()} == set(engine.learning)
    if engine.training.zero:
        learnt_numbers = sum(math.prod(engine.shapes()[name]) for name in engine.learning)
        padded = sum(part.numel() for part in engine._partitions()) - learnt_numbers
        assert 0 <= padded <= 8
    folder = saved(trainer, tmp_path)
    expected = [trainer.train_step(12) for _ in range(2)]
    again = Trainer(config, shards, world, folder)
    assert [again.train_step(12) for _ in range(2)] == expected
    for name, tensors in trainer.snapshot().files.items():
        for key, tensor in again.snapshot().files[name].items():
            assert torch.equal(tensor, tensors[key]), key


def test_the_likelihood_needs_no_backward_pass_where_compression_learns_alone(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    trainer = Trainer(with_training(run_config, **COMPRESSION), shards, world)
    segments = [trainer.lanes.next()[0]]
    terms, _, _ = trainer.engine.forward(segments, trainer.memory, last=True)
    assert not terms["nats"].total.requires_grad
    assert terms["reconstruction"].total.requires_grad


def trained_adapters(model: CompressiveTransformer, lora: LoraConfig) -> CompressiveTransformer:
    """A model with adapters that do something, and the same with them merged."""
    plain = CompressiveTransformer(model.config, model.vocabulary).double().eval()
    plain.load_state_dict(model.state_dict())
    adapt(model, lora)
    model.double()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    have = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            place, _, last = name.rpartition(".")
            if f"{place}.base_layer.{last}" in have and last == "weight":
                ab = (have[f"{place}.lora_{x}.default.weight"] for x in "AB")
                weight.copy_(merged(weight, *ab, lora.scale))
    return plain


SHAPES = {
    "relative": {},
    "shift": {"backend": "shift", "compression": "most_used", "reconstruction": "none"},
    "fused": {"backend": "fused", "sinusoids": 4},
    "rotary": {
        "positions": "rotary",
        "norm_kind": "rms",
        "attention_bias": "all",
        "sinks": 2,
        "key_value_heads": 1,
        "activation": "swiglu",
        "query_key_norm": True,
    },
}


@pytest.mark.parametrize("targets", [("all-linear",), ("keys", "output")], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_with_adapters_is_the_one_with_merged_weights(
    run_config: RunConfig, shape: str, targets: tuple[str, ...]
) -> None:
    """Outputs and memory: in training's form with losses, with kept keys, and token by token."""
    pytest.importorskip("peft")
    torch.manual_seed(1)
    config: ModelConfig = replace(run_config.model, dropout=0.0, **SHAPES[shape])
    model = CompressiveTransformer(config, 50).eval()
    lora = LoraConfig(rank=3, alpha=5.0, targets=targets)
    plain = trained_adapters(model, lora)
    tokens = torch.randint(50, (2, 5 * config.segment))
    close = {"rtol": 0.0, "atol": 1e-12}
    for kept in (False, True):
        memories = [each.empty_memory(2) for each in (model, plain)]
        if kept:
            memories = [each.keep_keys(m) for each, m in zip((model, plain), memories, strict=True)]
        for segment in tokens.split(config.segment, dim=1):
            with torch.set_grad_enabled(not kept):
                ours, theirs = (
                    each(segment, memory, losses=not kept)
                    for each, memory in zip((model, plain), memories, strict=True)
                )
            torch.testing.assert_close(ours.predictions, theirs.predictions, **close)
            memories = [ours.memory.detach(), theirs.memory.detach()]
            for name, tensor in memories[0].tensors().items():
                torch.testing.assert_close(tensor, memories[1].tensors()[name], **close)
            for name, loss in ours.auxiliary.items():
                torch.testing.assert_close(loss.total, theirs.auxiliary[name].total, **close)
    readers = [Reader(each, each.empty_memory(2)) for each in (model, plain)]
    for token in tokens[:, : 3 * config.segment].split(1, dim=1):
        states = [reader.read(token) for reader in readers]
        torch.testing.assert_close(*states, **close)


def test_adapters_are_merged_for_whoever_loads_the_run(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    config = with_training(run_config, **LORA)
    trainer = Trainer(config, shards, world)
    for _ in range(3):
        trainer.train_step(12)
    saved(trainer, tmp_path)
    write_config(tmp_path / "config.yaml", config)
    (tmp_path / "vocabulary").mkdir(exist_ok=True)
    shards.vocabulary.save(tmp_path / "vocabulary")
    loaded = load_run(tmp_path).model
    tokens = torch.randint(50, (1, config.model.segment))
    trainer.model.eval()
    with torch.no_grad():
        ours, theirs = (m(tokens, m.empty_memory(1)) for m in (loaded, trainer.model))
    torch.testing.assert_close(ours.predictions, theirs.predictions)
    names = {name for name, _ in CompressiveTransformer(config.model, 50).named_parameters()}
    assert {name for name, _ in loaded.named_parameters()} == names


def test_adapters_of_queries_leave_keys_and_values_alone(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    """One map makes all three; rows of the others stay zero."""
    pytest.importorskip("peft")
    lora = LoraConfig(rank=2, targets=("queries", "feedforward"))
    optim = OptimConfig(lr=1e-2, warmup=0, weight_decay=0.1)
    config = replace(with_training(run_config, learn="lora", lora=lora), optim=optim)
    trainer = Trainer(config, shards, world)
    for _ in range(3):
        trainer.train_step(12)
    weights = dict(trainer.engine.weights())
    up = weights["blocks.0.attention.query_key_value.lora_B.default.weight"]
    width = config.model.width
    assert up[:width].abs().min() > 0 and not up[width:].any()
    assert any("feedforward.inner.lora_B" in name for name in weights)
    assert not any("output.lora" in name for name in weights)


@pytest.mark.bad_input("lm.train")
@pytest.mark.parametrize(
    ("training", "model", "message"),
    [
        (COMPRESSION, {"compressed": 0}, "needs a compressed memory"),
        (
            COMPRESSION,
            {"compression": "mean", "reconstruction": "none"},
            "compression mean, which has no weights; set that to conv or dilated",
        ),
        (COMPRESSION, {"reconstruction": "none"}, "needs something that teaches it"),
        ({"lora": LoraConfig(rank=2)}, {}, "no effect with training.learn all"),
        (
            COMPRESSION | {"gate": GateConfig("sign", ("reconstruction",))},
            {},
            r"training\.gate teaches compression nothing .* set training\.unroll above 1",
        ),
        (
            COMPRESSION | {"teacher": TeacherConfig(Path("run"))},
            {},
            r"training\.teacher teaches compression nothing .* set training\.unroll above 1",
        ),
    ],
    ids=["no memory", "no weights", "no teacher", "no adapters", "a gate", "a teacher"],
)
def test_nothing_to_learn_is_refused(
    run_config: RunConfig, training: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(
            run_config,
            model=replace(run_config.model, **model),
            training=replace(run_config.training, **training),
        )


@pytest.mark.bad_input("lm.train")
@pytest.mark.parametrize("targets", [("query",), (), ("keys", "keys"), ("keys", "all-linear")])
def test_targets_are_known_and_named_once(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"training\.lora\.targets"):
        LoraConfig(targets=targets)


@pytest.mark.bad_input("lm.train")
def test_adapters_without_peft_say_what_to_install(
    run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning.importlib.util, "find_spec", lambda _: None)
    model = CompressiveTransformer(run_config.model, 50)
    with pytest.raises(ValueError, match=r"needs peft, .* pip install 'peft"):
        choose_learning(model, with_training(run_config, learn="lora"))


@pytest.mark.bad_input("lm.continual")
def test_weights_that_are_packed_must_all_learn(run_config: RunConfig, tmp_path: Path) -> None:
    config = with_training(run_config, learn="compression")
    with pytest.raises(ValueError, match=r"training\.learn must be all, not compression"):
        learn_all(tmp_path, [], config, PackingConfig())


@pytest.mark.parametrize("targets", [("all-linear",), ("queries", "output")])
def test_a_plan_counts_adapters(run_config: RunConfig, targets: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    lora = LoraConfig(rank=3, targets=targets)
    config = with_training(run_config, learn="lora", lora=lora)
    model = CompressiveTransformer(run_config.model, 100)
    choose_learning(model, config)
    counted = sized(config, 100)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.trained == sum(trained)
    assert size(run_config.model, 100, SparseConfig(), "compression").trained < counted.trained
