"""Plans stage by stage: what no run can have is told, and every preset has one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.common.command import PRESETS, load_config
from data.common.yamlfile import read_yaml
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import RunConfig
from tools.cluster import Cluster
from tools.stages import plan, refusals, table

TINY = ModelConfig(layers=2, width=32, heads=2, feedforward=64, segment=8, memory=8, compressed=4)


def test_stages_that_no_run_takes_are_told(run_config: RunConfig) -> None:
    config = replace(run_config, optim=replace(run_config.optim, name="muon", muon_lr=0.02))
    planned = plan(config, 256, Cluster(gpus=2), 1e6)
    assert planned["zero"] == 0 and planned["fits"]
    assert ["refused" in stage for stage in planned["stages"]] == [False, True, True, True]
    assert "| memory at ZeRO 3 | not possible |" in table([planned])
    (why,) = refusals(planned)
    assert why.startswith("not possible at ZeRO 1, 2, 3: optim.name muon needs training.zero 0")
    none = plan(config, 256, Cluster(gpus=2, memory=1e-6), 1e6)
    assert not none["fits"] and none["zero"] == 0


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_has_a_plan(preset: Path) -> None:
    """Muon's, those with an adaptive softmax, those for an adopted model."""
    sections = {k: v for k, v in read_yaml(preset).items() if k != "report"}
    config = load_config(RunConfig, sections)
    planned = plan(config, 267_735, Cluster(gpus=1), 1e6)
    assert planned["stages"][0]["bytes"]["total"] > 0


def test_rare_words_are_planned_as_many_as_a_text_has() -> None:
    """By Zipf's law, of which real texts have about so many."""
    model = replace(TINY, cutoffs=(100, 1000))
    with torch.device("meta"):
        head = CompressiveTransformer(model, 10_000).head
        targets = torch.zeros(1200, dtype=torch.int64)
        shares = [len(head._inside(targets, *bounds)) for bounds in ((100, 1000), (1000, 10_000))]
    assert shares == [300, 300]
