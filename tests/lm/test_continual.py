"""Several corpora in one model: earlier ones stay bit for bit what they were."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from data.common import locks
from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards
from data.stated import require_stated
from lm import continual
from lm.inference.inference_config import ScoringConfig
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.scoring import score
from lm.sparse.packnet import Capacity, Packed, compressed, expanded, fewest, largest_masks
from lm.sparse.sparse_config import PackingConfig, PowerConfig
from lm.training import tasks
from lm.training.tasks import data_of, load_packed
from tests.damage import flips, rewrite
from tests.lm.sparse.test_sparse_config import tiny
from tests.predictors import predictor


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte shards of digits."""
    folder = tmp_path_factory.mktemp("digits")
    rng = random.Random(1)
    for document in range(20):
        (folder / f"{document:02}.txt").write_text(str(rng.getrandbits(2000)) + "\n")
    target = tmp_path_factory.mktemp("shards") / "digits"
    prepare(DataConfig(corpus="text", source=str(folder), shards=target))
    return target


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_masks_come_back(rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.3
    assert torch.equal(expanded(compressed(mask), torch.tensor(mask.shape)), mask)


@settings(max_examples=20)
@given(st.integers(0, 4))
def test_the_sparsest_acceptable_masks_are_taken(good: int) -> None:
    """The first that is not acceptable ends the search; the model is whole again after it."""
    model = tiny()
    names = ["blocks.0.feedforward.inner", "blocks.1.feedforward.outer"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    asked = []

    def acceptable() -> bool:
        weight = model.get_submodule(names[0]).weight
        asked.append((weight != 0).double().mean().item())
        return len(asked) <= good

    densities = (0.8, 0.5, 0.25, 0.125)
    density, masks = fewest(model, names, densities, acceptable)
    assert density == (1.0, *densities)[good]
    assert asked == pytest.approx(densities[: good + 1], abs=0.01)
    expected = largest_masks(model, names, density)
    assert all(torch.equal(masks[name], expected[name]) for name in names)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_later_corpus_does_not_touch_an_earlier_one(
    run_config: RunConfig,
    shards: Shards,
    other_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    """Scores and weights of the first, rebuilt from what is stored after the second, are bitwise
    those from before; the second reuses claimed weights and claims others; sizes are fixed."""
    settings = {
        "model": run_config.model,
        "optim": run_config.optim,
        "training": replace(run_config.training, steps=8, save_every=8, precision=precision),
        "power": PowerConfig(1.375),
        "packing": PackingConfig(0.9, (0.5, 0.25)),
    }
    run, corpora = tmp_path / "run", [Path(shards.path), other_shards]
    continual.main(run, corpora[:1], **settings)
    first = run / f"0-{shards.path.name}"
    alone = dict(load_packed(first, [first]).named_parameters())
    files = {path: path.read_bytes() for path in first.glob("packed.*")}
    continual.main(run, corpora, **settings)
    assert files == {path: path.read_bytes() for path in first.glob("packed.*")}
    second = run / f"1-{other_shards.name}"
    after = load_packed(first, [first, second])
    assert all(torch.equal(p, alone[name]) for name, p in after.named_parameters())
    scores = json.loads((run / "scores.json").read_text())
    assert [entry["after_all"] for entry in scores] == [entry["packed"] for entry in scores]
    value = score(predictor(after), shards.split("validation"), ScoringConfig()).bits_per_byte
    assert value == scores[0]["packed"]
    assert scores[0]["packed"] <= scores[0]["trained"] / 0.9
    assert scores[1]["claimed_together"] == pytest.approx(
        scores[0]["claimed"] + scores[1]["claimed"]
    )
    assert 0 < scores[1]["claimed"] < scores[1]["density"] and scores[1]["claimed_together"] <= 1
    packed = [Packed.of_tensors(load_file(f / "packed.safetensors")) for f in (first, second)]
    name = "blocks.0.feedforward.inner"
    newest = checkpoints.newest(second)
    assert newest is not None
    trained = load_file(newest / "model.safetensors")[f"{name}.weight"]
    claimed = packed[0].masks[name]
    assert torch.equal(trained[claimed], alone[f"{name}.weight"][claimed])
    shared = claimed & packed[1].masks[name]
    assert shared.any()
    both = dict(load_packed(second, [first, second]).named_parameters())[f"{name}.weight"]
    assert torch.equal(both[shared], alone[f"{name}.weight"][shared])
    assert "the same score after all corpora" in capsys.readouterr().out
    changed = settings | {"optim": replace(run_config.optim, lr=1e-3)}
    with pytest.raises(ValueError, match=r"was learnt with optim\.lr 0\.003, not 0\.001: give"):
        continual.main(run, corpora, **changed)
    refused = pytest.raises(ValueError, match="another process trains in")
    with locks.alone(run / ".lock", "this test"), refused:
        continual.main(run, corpora, **settings)
    for _ in flips(first / "packed.safetensors", 6):
        with pytest.raises(ValueError, match=r"packed\.safetensors .*learnt anew"):
            load_packed(second, [first, second])
    for change in ({"trained": "low"}, {"density": None}, {"more": 1}, {"mask_bytes": -1}):
        whole = (first / "packed.json").read_bytes()
        rewrite(first / "packed.json", **change)
        with pytest.raises(ValueError, match=r"packed\.json: .*learnt anew"):
            continual.main(run, corpora, **settings)
        (first / "packed.json").write_bytes(whole)
    small = Capacity({name: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"packed as another matrix than there is; .* anew"):
        tasks.add_packed(first, small)


@pytest.mark.parametrize(
    "change",
    [
        {"shape/a": None},
        {"mask/a": None},
        {"claimed/a": None},
        {"mask/a": torch.zeros(5, dtype=torch.uint8)},
        {"shape/a": torch.tensor([9, 9])},
    ],
)
def test_what_is_not_packed_so_is_refused(change: dict[str, torch.Tensor | None]) -> None:
    mask = torch.rand(5, 7) < 0.5
    tensors = Packed({"a": mask}, {"a": torch.ones(int(mask.sum()))}, {}).tensors()
    changed = {name: t for name, t in (tensors | change).items() if t is not None}
    with pytest.raises(ValueError, match="mask"):
        Packed.of_tensors(changed)


def test_mistakes(run_config: RunConfig, shards: Shards, tmp_path: Path) -> None:
    rest = {"power": PowerConfig(), "packing": PackingConfig()}
    for optim, training in (
        (replace(run_config.optim, weight_decay=0.1), run_config.training),
        (run_config.optim, replace(run_config.training, zero=1)),
    ):
        with pytest.raises(ValueError, match=r"lm\.continual needs"):
            continual.main(
                tmp_path,
                [Path(shards.path)],
                model=run_config.model,
                optim=optim,
                training=training,
                **rest,
            )
    gates = {"power": PowerConfig(), "packing": PackingConfig(kinds=("attention", "gates"))}
    with pytest.raises(ValueError, match=r"packing\.kinds names gates, which this model has no"):
        continual.main(
            tmp_path / "gates",
            [Path(shards.path)],
            model=run_config.model,
            optim=run_config.optim,
            training=run_config.training,
            **gates,
        )
    with pytest.raises(ValueError, match=r"packing\.kinds must name some kinds once each"):
        PackingConfig(kinds=())
    with pytest.raises(ValueError, match="must fall"):
        PackingConfig(densities=(0.2, 0.5))
    with pytest.raises(ValueError, match="accepted"):
        PackingConfig(accepted=1.5)


@pytest.mark.parametrize("vocabulary", ["words", "bytes"])
def test_a_run_says_what_its_shards_are(tmp_path: Path, vocabulary: str) -> None:
    """A benchmark's name on its shards is not that of its reader."""
    (tmp_path / "source").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "source" / f"wiki.{split}.tokens").write_text(" \n = A = \n \n a b \n")
    asked = DataConfig("wikitext", tmp_path / "s", str(tmp_path / "source"), vocabulary)
    made = prepare(asked, workers=1)
    assert made.corpus not in ("wikitext", "text")
    data = data_of(made)
    assert (data.corpus, data.kind, data.shards) == ("wikitext", vocabulary, made.path)
    require_stated(data, made)
