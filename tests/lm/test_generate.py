"""The generating program: equal to teacher forcing, reproducible, and plain about mistakes."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.command import dump_config, load_config
from data.shards import Shards
from lm import generate
from lm.generate import read_prompt
from lm.loading import Lengths, LoadedRun, load_run
from lm.sampling import SamplingConfig
from lm.training.config import RunConfig


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> LoadedRun:
    return load_run(trained_run)


def test_logits_equal_teacher_forcing_after_a_prompt_longer_than_memory(
    loaded: LoadedRun, shards: Shards
) -> None:
    """Prompt and continuation through more than ten compressions."""
    text = bytes(np.asarray(shards.split("test").tokens[:150], dtype=np.uint8))
    reader = read_prompt(loaded, text[:100])
    stepped = [reader.logits()]
    for token in text[100:-1]:
        reader.read(torch.tensor([[token]]))
        stepped.append(reader.logits())
    with torch.no_grad():
        ids = torch.tensor([loaded.vocabulary.start, *text[:-1]])
        memory, forced = loaded.model.empty_memory(1), []
        for part in ids[: len(ids) // 8 * 8].split(8):
            output = loaded.model(part[None], memory)
            memory = output.memory
            forced.append(output.predictions[0])
    expected = torch.cat(forced)[100:]
    ours = torch.cat(stepped)[: len(expected)]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def text_of(run: Path, capsys: pytest.CaptureFixture[str], **options: object) -> str:
    sampling = options.pop("sampling", SamplingConfig())
    generate.main(run, sampling, **options)  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_a_seed_is_a_text(
    trained_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = text_of(
        trained_run, capsys, prompt="the ", tokens=80, seed=3, out=tmp_path / "s" / "a.txt"
    )
    assert first == text_of(trained_run, capsys, prompt="the ", tokens=80, seed=3)
    assert first != text_of(trained_run, capsys, prompt="the ", tokens=80, seed=4)
    written = (tmp_path / "s" / "a.txt").read_bytes()
    assert written.startswith(b"the ") and len(written) == 84


def test_greedy_does_not_depend_on_the_seed(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = SamplingConfig(temperature=0)
    texts = {text_of(trained_run, capsys, sampling=greedy, tokens=30, seed=seed) for seed in (0, 1)}
    assert len(texts) == 1


def test_only_whole_characters_are_written(
    trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = iter("é→é".encode())
    monkeypatch.setattr(generate, "sample", lambda *_: torch.tensor([next(wanted)]))
    pieces: list[str] = []
    monkeypatch.setattr("builtins.print", lambda text, **_: pieces.append(text))
    generate.main(trained_run, SamplingConfig(), tokens=len("é→é".encode()))
    assert [piece for piece in pieces if piece] == ["é", "→", "é"]


def test_other_lengths_are_used_and_impossible_ones_refused(trained_run: Path) -> None:
    model = load_run(trained_run, lengths=Lengths(segment=6, memory=20, compressed=2)).model
    assert (model.config.segment, model.config.memory, model.config.compressed) == (6, 20, 2)
    with pytest.raises(ValueError, match="segment must be at least 1"):
        load_run(trained_run, lengths=Lengths(segment=0))


def test_weights_of_another_model_are_refused(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    config = load_config(RunConfig, copy / "config.yaml")
    other = replace(config, model=replace(config.model, layers=3))
    (copy / "config.yaml").write_text(dump_config(other))
    with pytest.raises(ValueError, match="another model"):
        load_run(copy)
    (copy / "config.yaml").write_text(dump_config(config))
    weights = copy / "checkpoints" / "step-00000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_run(copy)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prompt-file", "missing.txt"], "missing.txt"),
        (["--prompt-file", "{empty}"], "is empty"),
        (["--top-p", "1.5"], "top-p must be above 0"),
        (["--checkpoint", "step-1"], "there are: step-00000010, step-00000012"),
        (["--tokens", "0"], "tokens must be at least 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(
    trained_run: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    (tmp_path / "empty.txt").touch()
    options = [option.format(empty=tmp_path / "empty.txt") for option in options]
    command = [sys.executable, "-m", "lm.generate", "--run", str(trained_run), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout
