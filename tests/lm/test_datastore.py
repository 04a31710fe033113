"""A datastore of hidden states: what it holds, what it finds, and kNN-LM with it against a loop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("faiss", reason="the extra `datastore` is not installed")

from data.shards import Shards
from eval import adapt
from eval.eval_config import AdaptConfig
from lm import datastore
from lm.datastore import DatastoreConfig
from lm.hidden import states
from lm.inference.adapted import AdaptedPredictor
from lm.inference.inference_config import LookupConfig
from lm.inference.ivf import Datastore, exact, usual_lists
from lm.inference.loading import LoadedRun, load_run
from lm.inference.model_hash import model_hash
from tests.damage import flips

CONFIG = DatastoreConfig(lanes=2, limit=60, lists=4, probes=4, queries=40)


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> LoadedRun:
    return load_run(trained_run)


@pytest.fixture(scope="module")
def made(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datastore in which every list is searched; tests must not change it."""
    folder = tmp_path_factory.mktemp("datastore") / "store"
    datastore.main(trained_run, folder, CONFIG)
    return folder


def entries(loaded: LoadedRun, shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """All that the datastore was made of."""
    read = list(states(loaded.predictor, shards.split("train"), CONFIG, CONFIG.limit))
    return np.concatenate([keys for keys, _ in read]), np.concatenate([each for _, each in read])


def test_states_are_those_of_the_score_and_their_successors(
    loaded: LoadedRun, shards: Shards
) -> None:
    split = shards.split("train")
    config = replace(CONFIG, lanes=1)
    keys, values = next(iter(states(loaded.predictor, split, config)))
    text = torch.from_numpy(split.tokens[:8].astype(np.int64))
    inputs = torch.cat([torch.tensor([split.vocabulary.start]), text[:-1]])
    hidden, _ = loaded.predictor.read(inputs[None], loaded.predictor.begin(1))
    np.testing.assert_array_equal(values, text)
    np.testing.assert_allclose(keys, hidden[0], rtol=1e-6)


def test_it_finds_the_true_neighbours_when_all_lists_are_searched(
    loaded: LoadedRun, shards: Shards, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, values = entries(loaded, shards)
    store = Datastore(made, model_hash(loaded.model))
    assert store.made.entries == len(keys) and store.made.lists == 4
    assert [(each.probes, each.recall) for each in store.made.recall][-1] == (4, 1.0)
    assert store.made.recall[0].recall <= 1.0
    random = np.random.default_rng(0)
    queries = keys[random.integers(len(keys), size=9)] + 0.1
    squares, found, live = store.nearest(torch.from_numpy(queries).view(3, 3, -1), 5)
    assert squares.shape == found.shape == (3, 3, 5) and live.all()
    # By comparing with all, one after the other.
    for query, near, square in zip(queries, found.view(9, 5), squares.view(9, 5), strict=True):
        distance = np.square(keys - query).sum(axis=1)
        order = distance.argsort(kind="stable")[:5]
        np.testing.assert_allclose(square, distance[order], rtol=1e-3)
        assert sorted(near.tolist()) == sorted(values[order].tolist())
    np.testing.assert_array_equal(
        np.sort(exact(keys, queries, 3)),
        np.sort([np.square(keys - q).sum(axis=1).argsort()[:3] for q in queries]),
    )


def test_knn_mixes_what_both_say(loaded: LoadedRun, shards: Shards, made: Path) -> None:
    keys, values = entries(loaded, shards)
    config = LookupConfig("knn", 20, 3, temperature=0.5, share=0.4, datastore=made)
    adapted = AdaptedPredictor(loaded.predictor, config)
    text = torch.tensor([list(b"the long book of the long")])
    logits, _ = adapted.read(text, adapted.begin(1))
    hidden, _ = loaded.predictor.read(text, loaded.predictor.begin(1))
    plain = loaded.predictor.logits(hidden)[0].softmax(-1)
    width = hidden.shape[-1]
    for place in (0, 1, 9, 24):
        query, near = hidden[0, place].numpy(), []
        own = [
            (hidden[0, at].numpy(), int(text[0, at + 1])) for at in range(max(0, place - 20), place)
        ]
        for pool in (own, list(zip(keys, values, strict=True))):
            measured = sorted((float(np.square(query - k).sum()), int(v)) for k, v in pool)
            near += measured[:3]
        weights = np.exp(-np.array([square for square, _ in near]) / width / 0.5)
        expected = 0.6 * plain[place]
        for weight, (_, value) in zip(weights / weights.sum(), near, strict=True):
            expected[value] += 0.4 * weight
        torch.testing.assert_close(logits[0, place].softmax(-1), expected, rtol=2e-3, atol=2e-5)


def test_ways_are_compared_with_it(trained_run: Path, made: Path, tmp_path: Path) -> None:
    config = AdaptConfig(
        lanes=2,
        methods=("knn",),
        capacity=(20,),
        neighbours=(2,),
        temperature=(0.5,),
        share=(0.1,),
        datastore=made,
        limit=9,
    )
    adapt.main(trained_run, config, json=tmp_path / "adapt.json")
    assert str(made) in (tmp_path / "adapt.json").read_text()
    with pytest.raises(ValueError, match="datastore has no effect without method knn"):
        replace(config, methods=("cache",))


def test_damage_and_other_models_are_refused(
    trained_run: Path, loaded: LoadedRun, made: Path, tmp_path: Path
) -> None:
    model = model_hash(loaded.model)
    with pytest.raises(ValueError, match="of another model, checkpoint or other lengths"):
        Datastore(made, "0" * 64)
    with pytest.raises(ValueError, match="is no datastore; make one"):
        Datastore(tmp_path, model)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    for name in ("index.faiss", "values.npy", "datastore.json"):
        for _ in flips(copy / name, 4):
            with pytest.raises(ValueError, match="longrange datastore"):
                Datastore(copy, model)
    assert {path.name for path in made.iterdir()} == {
        "SHA256SUMS",
        "index.faiss",
        "values.npy",
        "datastore.json",
    }
    with pytest.raises(ValueError, match="store exists; give a folder that does not"):
        datastore.main(trained_run, made, CONFIG)


def test_lists_are_few_enough_to_be_learnt() -> None:
    assert usual_lists(1_000_000) == 4096
    assert usual_lists(100) == 2
    assert usual_lists(1) == 1
