"""Scores of pruned models, and the figures of sparse results."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from safetensors.torch import load_file

from eval import prune, score
from eval.eval_config import ProgramConfig, PruneConfig
from tools import compact, plot


def test_scores_against_sparsity(
    trained_run: Path,
    sparse_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without zeros it is the run's score; a model whose matrices are zero is worse."""
    files = []
    for run in (trained_run, sparse_run):
        files.append(tmp_path / f"{run.name}.json")
        settings = PruneConfig(lanes=2, sparsities=(0.0, 0.5, 1.0))
        prune.main(run, settings, json=files[-1])
    plain, sparse = (json.loads(file.read_text()) for file in files)
    assert [point["zero"] for point in plain["pruning"]] == pytest.approx([0, 0.5, 1], abs=0.01)
    assert plain["alpha"] == 1 and sparse["alpha"] == 1.5
    # What the run left out is zero to begin with.
    assert sparse["pruning"][0]["zero"] == pytest.approx(0.3)
    whole = tmp_path / "score.json"
    score.main(trained_run, ProgramConfig(lanes=2), "validation", json=whole, compare=False)
    value = json.loads(whole.read_text())["value"]
    assert plain["pruning"][0]["value"] == value
    assert plain["pruning"][2]["value"] > value
    assert "50.0% zero" in capsys.readouterr().out
    plot.main(files[0], beside=[files[1]], out=tmp_path / "pruning.png")
    assert (tmp_path / "pruning.png").read_bytes().startswith(b"\x89PNG")
    drawn = {}

    def draw(results):
        drawn.update(results)
        return Figure()

    monkeypatch.setattr("tools.drawings.figure_of", draw)
    plot.main(files[0], beside=[files[1]], out=tmp_path / "named.png", labels=["plain", "powers"])
    for result in (plain, sparse, *drawn.values()):
        result.pop("sha256", None)
    assert drawn == {"plain": plain, "powers": sparse}
    with pytest.raises(ValueError, match="2 results need as many different labels"):
        plot.main(files[0], beside=[files[1]], labels=["plain", "plain"])


@pytest.mark.parametrize(
    "content",
    [
        {
            "memory": [
                {
                    "form": "dense",
                    **dict.fromkeys(("parameters", "gradients", "moments", "places"), 4.0),
                    **dict.fromkeys(("reservoir", "bits"), 1.0),
                }
            ]
        },
        {"matrix": [{"form": "blocks", "forward/backward": "0.1/0.2", "both x": 3.0}]},
        {"step": [{"form": "dense", "x": 1.0}, {"form": "blocks 32x32 0.1/0.2", "x": 2.0}]},
        [
            {"variant": "dense", "bits_per_byte": 2.0, "deviation": 0.1},
            {"variant": "sparse", "bits_per_byte": 2.1, "deviation": None},
        ],
    ],
)
def test_results_are_drawn(tmp_path: Path, content: object) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(content))
    plot.main(file)
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"eval\.prune"):
        plot.main(file)


def test_weights_are_written_as_one_file(sparse_run: Path, tmp_path: Path) -> None:
    sizes = {}
    for form in ("dense", "sparse"):
        file = tmp_path / f"{form}.safetensors"
        compact.main(sparse_run, file, form)
        sizes[form] = sum(tensor.numel() for tensor in load_file(file).values())
    assert sizes["sparse"] < 0.9 * sizes["dense"]
