"""The benchmark of generation measures what it says: equal sizes, a cache that stays and one that
grows, both put back as they were.
"""

import json
from pathlib import Path

import pytest
import torch

from lm.model.model_config import ModelConfig
from tools.benchmarks import generate_speed as generate
from tools.benchmarks.building import BYTES

TINY = ModelConfig(
    layers=2, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=4, rate=2
)


def test_both_models_are_timed_at_every_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"figure": tmp_path / "plots" / "a.png", "json": tmp_path / "a.json"}
    generate.main(TINY, (5, 40), (1, 2), tokens=10, rounds=1, device="cpu", **files)
    result = json.loads(files["json"].read_text())
    assert len(result.pop("sha256")) == 64
    assert result == json.loads(capsys.readouterr().out)
    rows = result["rows"]
    assert [(row["batch"], row["history"]) for row in rows] == [(1, 5), (1, 40), (2, 5), (2, 40)]
    assert all(speed > 0 for row in rows for speed in row["tokens_per_second"].values())
    sizes = result["parameters"]
    assert abs(sizes["ours"] - sizes["gpt2"]) < 0.02 * sizes["ours"]
    ours, theirs = ([row["cache_mib"][name] for row in rows] for name in ("ours", "gpt2"))
    assert ours[0] == ours[1] and theirs[1] > theirs[0]
    assert files["figure"].stat().st_size > 1000


def test_a_cache_is_put_back_after_writing() -> None:
    """The same tokens come again, and the history is as long as before."""
    config = generate.CompressiveTransformerConfig.of(TINY, BYTES)
    ours = generate.CompressiveTransformerForCausalLM(config).eval()
    theirs = generate.gpt2(TINY, 64, generate.count(ours)).eval()
    ids = torch.randint(256, (2, 21))
    for model, cache in (
        (ours, generate.ours_after(ours, ids)),
        (theirs, generate.grown(theirs, 2, 20)),
    ):
        write = generate.writer(model, ids, cache, 10)
        write()
        assert cache.get_seq_length() == 20
    assert generate.size(generate.growing(cache)[0][0]) == 2 * 2 * 20 * 8 * 4


def test_the_crossing_is_the_first_length_at_which_ours_is_faster() -> None:
    rows = [
        {"batch": batch, "history": history, "tokens_per_second": {"ours": 5.0, "gpt2": other}}
        for batch, speeds in ((1, (9.0, 4.0, 3.0)), (2, (9.0, 8.0, 7.0)))
        for history, other in zip((10, 20, 30), speeds, strict=True)
    ]
    assert generate.crossing_point(rows, 1) == 20 and generate.crossing_point(rows, 2) is None
