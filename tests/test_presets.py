"""Presets: every one is a run that can be built, and the papers' have the papers' sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.common import command
from data.common.command import dump_config, load_config
from data.common.yamlfile import read_yaml
from lm import train
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import RunConfig

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
WORDS = {"enwik8": 256, "wikitext": 267_735, "pg19": 32_000, "pystdlib": 256}
"""Sizes of the corpora's own vocabularies."""
PARAMETERS = {
    "enwik8-12": 56_829_184,
    "enwik8-12-fast": 51_324_160,
    "enwik8-12-xl": 41_094_400,
    "enwik8-24": 378_022_144,
    "enwik8-24-xl": 277_334_272,
    "pg19-36": 637_224_192,
    "pg19-36-xl": 523_941_120,
    "wikitext103-18": 377_844_554,
    "wikitext103-18-xl": 283_454_282,
}


def preset(name: str) -> RunConfig:
    sections = read_yaml(CONFIGS / f"{name}.yaml")
    sections.pop("sampling", None)
    return load_config(RunConfig, sections)


def parameters(config: RunConfig) -> int:
    with torch.device("meta"):
        vocabulary = 256 if config.data.vocabulary == "bytes" else WORDS[config.data.corpus]
        size = config.data.vocabulary_size or vocabulary
        model = CompressiveTransformer(config.model, size)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_prints(name, capsys):
    config = preset(name)
    count = parameters(config)
    assert count == PARAMETERS.get(name, count)
    command.run(train.main, argv=["--config", str(CONFIGS / f"{name}.yaml"), "--print_config"])
    assert dump_config(config) in capsys.readouterr().out


def test_no_size_is_of_a_preset_that_is_gone():
    assert PARAMETERS.keys() <= set(PRESETS)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-xl")])
def test_a_baseline_differs_in_its_memory_alone(name):
    ours, baseline = preset(name.removesuffix("-xl")), preset(name)
    slots = ours.model.memory + ours.model.compressed
    same = replace(baseline.model, memory=ours.model.memory, compressed=ours.model.compressed)
    assert baseline.model.memory == slots and not baseline.model.compressed
    assert replace(same, rate=ours.model.rate) == ours.model
    assert (baseline.data, baseline.optim, baseline.training) == (
        ours.data,
        ours.optim,
        ours.training,
    )


def test_no_preset_asks_a_processor_for_bfloat16_that_may_not_have_it() -> None:
    """What a preset of one processor states holds for every processor: most emulate bfloat16."""
    small = [*CONFIGS.glob("*small*.yaml"), *CONFIGS.glob("experiments/*.yaml")]
    small += [CONFIGS / "quickstart.yaml"]
    assert len(small) > 10
    asked = {path.name: read_yaml(path)["training"].get("precision", "float32") for path in small}
    assert set(asked.values()) <= {"float32", "auto"}, asked
