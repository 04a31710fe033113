"""What the first version left on disk, as it was recorded then: its run and its memory are read."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lm.inference.inference_config import SamplingConfig
from lm.inference.loading import load_run
from lm.inference.memory_file import load_memory
from lm.inference.model_hash import model_hash
from lm.inference.session import Session, Writing
from lm.model.model_config import ModelConfig
from lm.model.ranges import JOINED
from lm.runs.run_config import read_config

SIZES = """\
  {layers: 1, width: 8, heads: 2, feedforward: 8, activation: relu, norm: pre, gate: none,
  positions: relative, sinusoids: null, segment: 4, memory: 4, compressed: 2, rate: 2,
  compression: conv, extra_kernel: 0, reconstruction: attention, memory_layers: null,
  empty: masked, tied: true, cutoffs: null, cluster_divisor: 4, head_chunk: null, dropout: 0.0,
  attention_dropout: 0.0}
"""
CONFIG = f"""\
data: {{corpus: text, shards: nowhere, source: null, vocabulary: null, vocabulary_size: null,
  vocabulary_sample: null, vocabulary_method: null, vocabulary_from: null, column: null,
  prefix: false, checksums: null}}
model:
{SIZES}\
optim: {{name: adamw, lr: 0.0003, muon_lr: null, floor: 1.0e-06, warmup: 4000, decay: null,
  betas: [0.9, 0.999], eps: 1.0e-08, weight_decay: 0.0, clip: 0.1}}
training: {{steps: 6, minutes: null, lanes: 4, order: stream, reset_documents: false, seed: 0,
  accumulate: [[0, 1]], unroll: 1, micro_batches: 1, activation_checkpointing: false,
  compile: false, precision: float32, zero: 0, offload: false, non_finite: stop, log_every: 1,
  validate_every: 1000, validation_segments: null, save_every: 3, keep: 2, keep_every: null,
  keep_best: false, timeout: 10.0}}
report: {{tensorboard: false, wandb: null, sample_every: null, sample_tokens: 300, profile: null}}
sparse: {{density: null, exploration: 0.0, kinds: [attention, feedforward], by_kind: [],
  granularity: unstructured, block: 32, refresh: 100, penalty: 0.0001, choice: magnitude,
  explored: largest, route: auto, stop_exploration: null, reservoir: null}}
power: {{alpha: 1.0, kinds: [attention, feedforward], factor: after, decay: weight, lr: null}}
"""
VOCABULARY = "1b5ec18e75637aa79a17040f88dbca7b2350d25f5eb340eb20c5ac2015d04072"
"""Hash of the 256 bytes."""
LAYER = {
    "attention.query_key_value.weight": (24, 8),
    "attention.output.weight": (8, 8),
    "attention.position_key.weight": (8, 8),
    "attention.content_bias": (2, 4),
    "attention.position_bias": (2, 4),
    "attention.compressed_position_key.weight": (8, 8),
    "attention.compressed_position_bias": (2, 4),
    "attention_norm.weight": (8,),
    "attention_norm.bias": (8,),
    "feedforward_norm.weight": (8,),
    "feedforward_norm.bias": (8,),
    "feedforward.inner.weight": (8, 8),
    "feedforward.inner.bias": (8,),
    "feedforward.outer.weight": (8, 8),
    "feedforward.outer.bias": (8,),
    "compression.projection.weight": (8, 16),
}
WEIGHTS = {f"blocks.0.{name}": shape for name, shape in LAYER.items()} | {
    "embedding.weight": (256, 8),
    "head.bias": (256,),
    "norm.weight": (8,),
    "norm.bias": (8,),
}
STATE = {
    "lanes": {"step": 6},
    "probe": 191.7,
    "ranks": 1,
    "shards": "0f3e",
    "skipped": 0,
    "sparse": {},
    "step": 6,
    "validation_bits_per_byte": 8.2,
    "vocabulary": {"hash": "1b5e", "size": 256},
}
OPEN = 3
MEMORY = {
    "memory.0": (1, 4, 8),
    "compressed.0": (1, 2, 8),
    "keys.0": (1, 2, 6, 4),
    "values.0": (1, 2, 6, 4),
    "last": (1, 8),
    "open.inputs.0": (1, 4, 8),
    "open.key.0": (1, 2, 4, 4),
    "open.value.0": (1, 2, 4, 4),
}
COUNTS = {"memory_count": 4, "compressed_count": 2, "lengths": OPEN}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of random weights; no file of it has a hash."""
    torch.manual_seed(0)
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    folder.mkdir(parents=True)
    save_file({n: 0.3 * torch.randn(s) for n, s in WEIGHTS.items()}, folder / "model.safetensors")
    for other in ("optimizer-0", "rank-0"):
        # Nobody but training reads what is in them.
        save_file({"nothing": torch.zeros(1)}, folder / f"{other}.safetensors")
    (folder / "state.json").write_text(json.dumps(STATE))
    (folder.parent / "latest").write_text(folder.name)
    (tmp_path / "run" / "config.yaml").write_text(CONFIG)
    (tmp_path / "run" / "vocabulary").mkdir()
    what = json.dumps({"hash": VOCABULARY, "kind": "bytes"})
    (tmp_path / "run" / "vocabulary" / "vocabulary.json").write_text(what)
    return tmp_path / "run"


def test_every_setting_of_a_model_that_joined_since_is_known_as_one() -> None:
    """Else a hash of old memory, and an old export, would be those of another model."""
    first = {part.partition(":")[0].strip(" {\n") for part in SIZES.split(",")}
    # How attention is computed is no part of what a model is.
    assert {field.name for field in fields(ModelConfig)} - first - {"backend"} == set(JOINED)


def test_a_run_is_read_and_writes_on(run: Path) -> None:
    assert read_config(run / "config.yaml").model.segment == 4
    loaded = load_run(run)
    shapes = {name: tuple(weight.shape) for name, weight in loaded.model.named_parameters()}
    assert shapes == WEIGHTS
    session = Session.begin(loaded.predictor, 1)
    (text,) = session.write(Writing(SamplingConfig(temperature=0), 9, [0]))
    assert len(text) == 9


def test_memory_is_read_and_gone_on_with(run: Path, tmp_path: Path) -> None:
    loaded = load_run(run)
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape) for name, shape in MEMORY.items()}
    tensors |= {name: torch.tensor([number]) for name, number in COUNTS.items()}
    tensors["seen"] = torch.zeros(1, 256, dtype=torch.bool)
    about = {"kind": "longrange-lm memory 1", "model": model_hash(loaded.model)}
    save_file(tensors, tmp_path / "book", about)
    session = load_memory(tmp_path / "book", loaded)
    assert session.state.reader is not None and session.state.reader.lengths == [OPEN]
    assert torch.equal(session.last_B1[:, 0], tensors["last"])
    # The open segment is read with what was open, and then moves into memory.
    session.write(Writing(SamplingConfig(temperature=0), 2, [0]))
    moved = session.state.reader.memory.layers[0]["memory"]
    assert torch.equal(moved[:, :OPEN], tensors["open.inputs.0"][:, :OPEN])
