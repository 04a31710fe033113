"""A model that was adopted, trained on from, and given back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lm.train
from lm import adopt, export, import_folder
from lm.inference.loading import load_run
from lm.model.model_config import ModelConfig
from lm.runs.run_config import RunConfig
from tests.lm.pretrained import SHORT, TOKENS, by_segments, same, weights_of
from tests.runs import train_here, with_training


@pytest.fixture(scope="module")
def adopted(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a memory; tests must not change it."""
    run = tmp_path_factory.mktemp("adopted") / "run"
    adopt.main(str(models["Llama"]), run, SHORT)
    return run


def on_from(config: RunConfig, source: Path) -> RunConfig:
    """A short run with the model's settings that `--from` gives where none are stated."""
    values = lm.train.inherited({"from": source})
    model = ModelConfig(**{name.removeprefix("model."): value for name, value in values.items()})
    assert model == load_run(source).config.model
    return replace(with_training(config, steps=3), model=model)


def test_training_compression_gives_the_plain_model_back_bit_for_bit(
    models: dict[str, Path], adopted: Path, run_config: RunConfig, tmp_path: Path
) -> None:
    config = with_training(on_from(run_config, adopted), learn="compression")
    assert train_here(config, tmp_path / "run", source=adopted) == 0
    before, after = (load_run(run).model.state_dict() for run in (adopted, tmp_path / "run"))
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in after if ".compression." in name}
    export.main(tmp_path / "run", tmp_path / "plain", plain=True)
    assert same(weights_of(tmp_path / "plain"), weights_of(models["Llama"]))


def test_adapters_are_merged_into_exports(
    models: dict[str, Path], adopted: Path, run_config: RunConfig, tmp_path: Path
) -> None:
    """With memory and as the plain model."""
    pytest.importorskip("peft")
    config = with_training(on_from(run_config, adopted), learn="lora")
    assert train_here(config, tmp_path / "run", source=adopted) == 0
    export.main(tmp_path / "run", tmp_path / "plain", plain=True)
    export.main(tmp_path / "run", tmp_path / "out")
    old, plain = weights_of(models["Llama"]), weights_of(tmp_path / "plain")
    assert old.keys() == plain.keys()
    moved = {name for name in old if not torch.equal(old[name], plain[name])}
    assert moved == {name for name in old if "_proj" in name}
    loaded = load_run(tmp_path / "run")
    weights = loaded.model.state_dict()
    width = loaded.model.config.width
    query = plain["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(query, weights["blocks.0.attention.query_key_value.weight"][:width])
    import_folder.main(tmp_path / "out", tmp_path / "again")
    ids = torch.randint(256, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    ours, theirs = (by_segments(each, ids, True) for each in (loaded, load_run(tmp_path / "again")))
    torch.testing.assert_close(ours, theirs)
