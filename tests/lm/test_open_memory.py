"""A memory of another kind moves in from outside: it is written here, named in the config, and
trains, resumes bit for bit, goes to disk and generates with nothing else changed.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.shards import Shards
from lm.inference.inference_config import SamplingConfig
from lm.inference.loading import load_run
from lm.inference.memory_file import load_memory, save_memory
from lm.inference.session import Session, Writing, encode
from lm.model.incremental import Reader
from lm.model.memory import LayerMemory, MemoryState
from lm.model.model_config import ModelConfig
from lm.model.pinned import PINNED, PinnedMemory
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.trainer import Trainer
from tests.lm.model.cases import TINY, build, run, stream
from tests.runs import finished, saved


class RunningMean(PinnedMemory):
    """One slot a layer: the mean of all inputs that a lane has read."""

    number = 1

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def init(self, like_BD: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(like_BD)}

    def live(self, counts: Mapping[str, Tensor]) -> Tensor:
        return (counts["read"] > 0)[:, None]

    def read(self, kept: LayerMemory, lanes: int) -> Tensor:
        return kept["mean"][:, None]

    def commit(
        self, kept: LayerMemory, counts: Mapping[str, Tensor], inputs_BTD: Tensor
    ) -> dict[str, Tensor]:
        read = counts["read"][:, None]
        total = torch.where(read > 0, kept["mean"] * read, 0.0) + inputs_BTD.sum(dim=1)
        return {"mean": total / (read + inputs_BTD.shape[1])}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PINNED, "running_mean", RunningMean)


@pytest.fixture
def config(run_config: RunConfig) -> RunConfig:
    return replace(run_config, model=replace(run_config.model, memories=("running_mean",)))


def inputs_of(model: CompressiveTransformer, tokens: Tensor) -> list[Tensor]:
    """What the first layer stored, segment by segment."""
    memory, stored = model.empty_memory(len(tokens)), []
    for part in tokens.split(model.config.segment, dim=1):
        stored.append(model.layers[0].inputs(model.embedding(part)))
        memory = model(part, memory).memory.detach()
    mean = torch.cat(stored, dim=1).mean(dim=1)
    torch.testing.assert_close(memory.layers[0]["mean"], mean)
    return stored


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_it_remembers_and_matters(positions: str) -> None:
    shape = replace(TINY, memory=7, positions=positions, memories=("running_mean",))
    model, tokens = build(shape).eval(), stream(6, 2, shape)
    inputs_of(model, tokens)
    logits, memory = run(model, tokens)
    plain = CompressiveTransformer(replace(shape, memories=()), model.vocabulary).double().eval()
    plain.load_state_dict(model.state_dict())
    # Not to the bit: fused attention over one more slot sums in another order on some processors.
    first = slice(0, shape.segment)
    torch.testing.assert_close(run(plain, tokens)[0][:, first], logits[:, first])
    assert not torch.allclose(run(plain, tokens)[0], logits)
    # A few tokens at a time, and lanes moved about, give the same.
    reader = Reader(model, model.empty_memory(2))
    hidden = [reader.read(part) for part in tokens.split(3, dim=1)]
    torch.testing.assert_close(model.head(torch.cat(hidden, dim=1)), logits)
    reset = memory.reset(torch.tensor([False, True]))
    swapped = MemoryState.concatenate([reset.lane_slice(slice(1, 2)), reset.lane_slice(slice(1))])
    part = tokens[:, : shape.segment]
    after = model(part.flip(0), swapped)
    torch.testing.assert_close(after.predictions[0], logits[1, : shape.segment])
    torch.testing.assert_close(after.predictions[1], model(part, memory).predictions[0])


def test_it_trains_and_resumes_to_the_bit(
    config: RunConfig, shards: Shards, tmp_path: Path
) -> None:
    world = dist.join()
    whole = Trainer(config, shards, world)
    for _ in range(4):
        whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(3)]
    again = Trainer(config, shards, world, folder)
    assert [again.train_step(12) for _ in range(3)] == expected
    mine, theirs = again.memory.tensors(), whole.memory.tensors()
    assert "mean.0" in mine
    assert "read_count" in mine
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_it_goes_to_disk_and_writes_text(config: RunConfig, shards: Shards, tmp_path: Path) -> None:
    loaded = load_run(finished(config, shards, tmp_path))
    session = Session.begin(loaded.predictor, 1)
    session.read([encode(loaded.vocabulary, b"the book of memory and time was read", "it")])
    save_memory(tmp_path / "memory.safetensors", session)
    again = load_memory(tmp_path / "memory.safetensors", loaded)
    assert torch.equal(
        again.state.reader.memory.layers[1]["mean"], session.state.reader.memory.layers[1]["mean"]
    )
    how = Writing(SamplingConfig(temperature=0), tokens=30, seeds=[0])
    (text,), (same,) = session.write(how), again.write(how)
    assert text == same
    assert len(text) == 30


def test_a_kind_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="memories names 'mean'; known are running_mean"):
        build(replace(TINY, memories=("mean",)))
