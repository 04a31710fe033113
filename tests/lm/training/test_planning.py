"""Plans against live processes, real books and closed forms."""

import csv
import io
import json
import lzma
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from data.common.command import load_config
from data.shards import DOCUMENT_DTYPE, Shards, Split
from lm.inference.loading import load_run
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.readings_config import ReadingsConfig
from lm.objectives.teacher_config import TeacherConfig
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.topkast import sparsify
from lm.training import dist
from tests.processes import write_config
from tests.runs import with_training
from tools.cluster import SHAPES, Cluster, PlanConfig, shaped
from tools.planning import (
    activations,
    checkpoints,
    daly_interval,
    goodput,
    needed,
    saved_for_backward,
    size,
    speed,
    traffic,
)
from tools.stages import balance, divisors, plan, sentence, table

BOOKS = 28_602
TINY = ModelConfig(layers=2, width=32, heads=2, feedforward=64, segment=8, memory=8, compressed=4)


def grown(preset: Path) -> list[int]:
    """Bytes that each of two ranks has really grown by."""
    command = [sys.executable, "-m", "tests.measuring", str(preset)]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(dist.free_port())}
    # What is freed goes back to the system at once, so that the size tells what is held.
    world["MALLOC_MMAP_THRESHOLD_"] = "65536"
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        return [int(rank.communicate(timeout=600)[0].split()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


CASES: list[dict[str, Any]] = [
    {"zero": 0},
    {"zero": 1},
    {"zero": 2},
    {"zero": 3},
    {"zero": 0, "lanes": 32},
    {"zero": 0, "lanes": 32, "activation_checkpointing": True},
    {"zero": 0, "precision": "bf16"},
    {"zero": 1, "precision": "bf16"},
    {"zero": 2, "precision": "bf16"},
    {"zero": 3, "precision": "bf16"},
    {"zero": 0, "lanes": 32, "learn": "compression"},
    {"zero": 1, "lanes": 32, "learn": "compression"},
]


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_memory_is_that_of_live_processes(
    run_config: RunConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Of 20 million parameters on two ranks, in bytes that the kernel counts, to within 10 %."""
    half = changes.get("precision") == "bf16"
    model = ModelConfig(
        layers=6,
        width=512,
        heads=8,
        feedforward=1024,
        # bf16 is emulated on CPUs.
        segment=4 if half else 64,
        memory=4 if half else 64,
        compressed=4 if half else 32,
    )
    config = with_training(replace(run_config, model=model), **{"lanes": 2} | changes)
    planned = needed(config, 256, ranks=2, device="cpu")["total"]
    for measured in grown(write_config(config, tmp_path)):
        assert measured == pytest.approx(planned, rel=0.1)


def test_every_book_of_pg19_is_read_once_by_1024_ranks(real_text: Path) -> None:
    with lzma.open(real_text / "pg19-official-splits.csv.xz") as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    sizes = np.array([int(row["official_bytes"]) for row in rows if row["split"] == "train"])
    split = Split(Path(), "train", int(sizes.sum()), 0, "word_perplexity", None, "", None)  # type: ignore[arg-type]
    documents = np.zeros(len(sizes), DOCUMENT_DTYPE)
    documents["tokens"], documents["offset"] = sizes, np.cumsum(sizes) - sizes
    vars(split)["documents"] = documents
    dealt = balance(split, lanes=1024, segment=512)
    # One official book is empty: there is nothing of it to read.
    assert len(sizes) == BOOKS and dealt["documents"] == np.count_nonzero(sizes) == BOOKS - 1
    assert dealt["least_often"] == dealt["most_often"] == 1
    # The longest book, of 29 MB, is two and a half lanes long; no lane waits for the one it is in.
    assert dealt["most_tokens"] - dealt["least_tokens"] <= sizes.max()
    assert dealt["least_tokens"] > 0.95 * dealt["mean_tokens"] and dealt["even_lanes"] > 0.9
    assert "91% of the lanes" in sentence(dealt)


def test_sizes_are_the_models() -> None:
    for config in (TINY, replace(TINY, tied=False, cutoffs=(50,), compressed=0)):
        model = CompressiveTransformer(config, 100)
        counted = size(config, 100, SparseConfig())
        assert counted.parameters == sum(p.numel() for p in model.parameters())
        layers = [sum(p.numel() for p in block.parameters()) for block in model.layers]
        assert (counted.block, counted.indices) == (max(layers), 0)


def test_sparse_sizes_are_the_sparse_models() -> None:
    sparse = SparseConfig(density=0.25, exploration=0.25, by_kind=(("attention", 0.5, 0.0),))
    model = CompressiveTransformer(TINY, 100)
    sparsify(model, sparse, PowerConfig(), 0)
    counted = size(TINY, 100, sparse)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.indices == size(TINY, 100, SparseConfig(density=0.5)).indices


def test_activations_on_the_meta_device_are_those_of_the_same_backend() -> None:
    # The reconstruction loss goes through attention kernels that differ.
    config = replace(TINY, reconstruction="none", backend="shift")
    assert saved_for_backward(config, 50, 3, "meta") == saved_for_backward(config, 50, 3, "cpu") > 0


@pytest.mark.parametrize("every", [1, 3])
def test_further_readings_are_planned(run_config: RunConfig, every: int) -> None:
    """What is kept of a layer and a lane is multiplied; operations count the lanes."""
    readings = ReadingsConfig(local="segment", far=True, agreement=0.1, every=every)
    model = replace(TINY, layers=4, backend="shift")
    plain = with_training(replace(run_config, model=model), lanes=12)
    config = with_training(plain, readings=readings)
    counted = saved_for_backward(model, 50, 12, "meta", readings=readings)
    assert activations(config, 50, 12) == pytest.approx(counted, rel=1e-9)
    assert activations(config, 50, 12) > (1 + 2 / every) * activations(plain, 50, 12)
    one = Cluster(1, 1)
    ratio = speed(config, 50, one).compute / speed(plain, 50, one).compute
    assert ratio == pytest.approx(1 + 2 / every, rel=0.05)


def test_a_teacher_is_planned(run_config: RunConfig, trained_run: Path) -> None:
    """Its weights and what it remembers, keys included, and what it costs to read."""
    taught = with_training(run_config, teacher=TeacherConfig(trained_run))
    plain, more = (needed(config, 256, ranks=2) for config in (run_config, taught))
    loaded = load_run(trained_run)
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    state = loaded.predictor.begin(2).tensors()
    kept = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    assert more["weights"] - plain["weights"] == 4 * weights
    assert more["memory"] - plain["memory"] == 2 * 4 * kept
    one = Cluster(1, 1)
    ratio = speed(taught, 256, one).compute / speed(run_config, 256, one).compute
    assert 1.2 < ratio < 1.45
    gone = with_training(run_config, teacher=TeacherConfig(trained_run / "gone"))
    with pytest.raises(ValueError, match="holds no run; give the folder of one"):
        needed(gone, 256, ranks=2)


@pytest.mark.parametrize("stall", [1.0, 60.0, 600.0])
def test_no_interval_is_much_better_than_dalys(stall: float) -> None:
    failure = 6 * 3600.0
    best = max(goodput(interval, stall, 300.0, failure) for interval in np.geomspace(10, 1e5, 2000))
    assert best - goodput(daly_interval(stall, failure), stall, 300.0, failure) < 1e-4
    assert goodput(3600.0, 0.0, 0.0, 1e12) == pytest.approx(1.0)


def test_failures_agree_with_a_simulation() -> None:
    """Segments of work with their checkpoint, begun again after each failure until one is done."""
    interval, stall, restart, failure = 1800.0, 60.0, 600.0, 3600.0
    random = np.random.default_rng(0)
    spent = 0.0
    for _ in range(4000):
        needed_time = interval + stall
        while (life := random.exponential(failure)) < needed_time:
            spent += life
            # A restart may fail too.
            while (life := random.exponential(failure)) < restart:
                spent += life
            spent += restart
        spent += needed_time
    assert goodput(interval, stall, restart, failure) == pytest.approx(
        4000 * interval / spent, 0.05
    )


def test_higher_stages_need_less_and_move_more(run_config: RunConfig) -> None:
    medium = replace(run_config, model=ModelConfig(segment=64, memory=64, compressed=64))
    stages = [with_training(medium, zero=zero, lanes=64) for zero in range(4)]
    sizes = [needed(config, 256, ranks=16)["total"] for config in stages]
    of = size(medium.model, 256, SparseConfig())
    moved = [traffic(config, of, ranks=16) for config in stages]
    whole = 4 * of.parameters * 15 / 16
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[3] < sizes[1]
    assert moved == [2 * whole, 3 * whole, 2 * whole, 3 * whole]
    with pytest.raises(ValueError, match="multiple of 48 ranks"):
        needed(stages[0], 256, ranks=48)


def test_speed_follows_from_operations_and_links(run_config: RunConfig) -> None:
    config = with_training(run_config, lanes=64)
    fast = speed(config, 256, Cluster(nodes=2, gpus=8))
    again = speed(with_training(config, activation_checkpointing=True), 256, Cluster(2, 8))
    slow = speed(config, 256, Cluster(2, 8, tflops=989 / 2, between=4.0))
    assert fast.tokens == 64 * 8
    assert again.compute == pytest.approx(4 / 3 * fast.compute)
    assert slow.compute == pytest.approx(2 * fast.compute)
    assert slow.communication == pytest.approx(100 * fast.communication)
    saving = checkpoints(config, 256, Cluster(2, 8))
    assert saving.interval >= saving.write and 0.9 < saving.goodput < 1


def test_a_plan_takes_the_lowest_stage_and_fewest_micro_batches_that_fit(
    run_config: RunConfig, shards: Shards
) -> None:
    config = with_training(replace(run_config, model=ModelConfig()), lanes=64)
    roomy = plan(config, 256, Cluster(1, 4), 1e6)
    assert (roomy["fits"], roomy["zero"], roomy["micro_batches"]) == (True, 0, 1)
    tight = plan(config, 256, Cluster(1, 4, memory=5.0), 1e6)
    assert tight["fits"] and tight["stages"][0]["micro_batches"] > 1
    none = plan(config, 256, Cluster(1, 4, memory=0.1), 1e6)
    assert not none["fits"]
    lines = table([roomy, tight, none])
    assert "too much" in lines[2] and "micro-batches" in lines[2] and "none fits" in lines[6]
    dealt = balance(shards.split("train"), lanes=4, segment=8)
    assert dealt["least_often"] == dealt["most_often"] == 1


def test_the_papers_model_is_planned_from_its_preset() -> None:
    config = load_config(RunConfig, Path("configs/pg19-36.yaml"))
    planned = plan(config, 32_000, Cluster(nodes=8), 1e11)
    assert planned["gpus"] == 64 and planned["fits"]
    assert planned["parameters"] == size(config.model, 32_000, SparseConfig()).parameters


@pytest.mark.parametrize(
    ("name", "base"),
    [("smollm2-135m", 134_515_008), ("llama-1b", 1_235_814_400), ("llama-8b", 8_030_261_248)],
)
def test_trained_models_have_their_parameters_and_compression_beside(name: str, base: int) -> None:
    vocabulary, model = shaped(name, ModelConfig())
    of = size(model, vocabulary, SparseConfig(), "compression")
    assert of.parameters - of.trained == base
    assert of.trained < base / 3 and model.compression_initial == "mean"
    assert size(model, vocabulary, SparseConfig()).trained == of.parameters
    plain = replace(ModelConfig(), compression="mean", reconstruction="none")
    assert size(shaped(name, plain)[1], vocabulary, SparseConfig(), "compression").trained == 0


def test_a_memory_beyond_a_trained_models_positions_has_no_plan() -> None:
    with pytest.raises(ValueError, match="max_positions is 8,192, the context"):
        shaped("smollm2-135m", ModelConfig(compressed=4096))
    with pytest.raises(ValueError, match="no effect with shape llama-8b: leave it out"):
        PlanConfig(shape="llama-8b", vocabulary=32_000)
    assert all(model["max_positions"] >= 8192 for _, model in SHAPES.values())


def test_fixed_weights_have_no_gradient_no_state_and_no_backward_pass(
    run_config: RunConfig,
) -> None:
    config = replace(run_config, model=replace(TINY, positions="rotary"))
    every = with_training(config, zero=1, lanes=8)
    alone = with_training(config, zero=1, lanes=8, learn="compression")
    of = size(config.model, 256, SparseConfig(), "compression")
    layers, rate, width = config.model.layers, config.model.rate, config.model.width
    assert of.trained == layers * rate * width**2
    whole, part = needed(every, 256, ranks=2), needed(alone, 256, ranks=2)
    assert whole["weights"] == part["weights"] == 4 * of.parameters
    assert part["optimiser"] == pytest.approx(whole["optimiser"] * of.trained / of.parameters)
    assert part["gradients"] == 4 * of.trained and part["activations"] < whole["activations"]
    cluster = Cluster(1, 2)
    assert speed(alone, 256, cluster).compute < 0.6 * speed(every, 256, cluster).compute
    # A likelihood that reaches the compression passes through all.
    through = with_training(config, zero=1, lanes=8, unroll=2, learn="compression")
    assert needed(through, 256, 2)["activations"] == 2 * whole["activations"]
    # The float32 copies of a run without ZeRO are of all weights.
    half = with_training(config, precision="bf16", lanes=8, learn="compression")
    assert needed(half, 256, 2)["optimiser"] == 4 * of.parameters + 8 * of.trained


def test_the_folder_of_a_model_is_planned_as_its_name_is(tmp_path: Path) -> None:
    vocabulary, model = SHAPES["smollm2-135m"]
    theirs = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=model["width"],
        intermediate_size=model["feedforward"],
        num_hidden_layers=model["layers"],
        num_attention_heads=model["heads"],
        num_key_value_heads=model["key_value_heads"],
        max_position_embeddings=model["max_positions"],
        rope_parameters={"rope_type": "default", "rope_theta": model["rotary_base"]},
        tie_word_embeddings=True,
    )
    theirs.save_pretrained(tmp_path)
    wanted = shaped("smollm2-135m", ModelConfig(sinks=4))
    for place in (tmp_path, tmp_path / "config.json"):
        read = shaped(str(place), ModelConfig(sinks=4))
        assert read[0] == wanted[0]
        counts = [
            size(config, vocabulary, SparseConfig()).parameters for _, config in (read, wanted)
        ]
        assert counts[0] == counts[1] and read[1].max_positions == 8192
    with pytest.raises(ValueError, match=r"shape must be smollm2-135m, .* the folder of a model"):
        shaped(str(tmp_path / "nowhere"), ModelConfig())


@pytest.mark.parametrize("changes", [{"nodes": 0}, {"efficiency": 1.5}, {"failure_hours": -1.0}])
def test_clusters_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Cluster(**changes)  # type: ignore[arg-type]


@pytest.mark.bad_input("tools.plan")
@pytest.mark.parametrize("lengths", [{"segment": 2**40}, {"segment": 2**50}])
def test_a_segment_that_no_number_counts_is_a_sentence(
    run_config: RunConfig, lengths: dict[str, int]
) -> None:
    config = replace(run_config, model=replace(TINY, memory_layers=None, **lengths))
    with pytest.raises(ValueError, match=r"^a segment of .* is larger than any machine; lower "):
        activations(config, 100, 1)


FIGURES = [name for name in vars(Cluster()) if name not in ("nodes", "gpus")]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 1e300])
def test_figures_of_no_cluster_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Cluster(**{name: value})


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", [1e-6, 1e-3, 1.0, 1e6, 1e12])
def test_the_strangest_clusters_have_a_plan_or_a_sentence(
    name: str, value: float, run_config: RunConfig
) -> None:
    """Whatever is in a plan can be written as JSON, which has no infinity."""
    if name == "efficiency" and value > 1:
        value = 1.0
    said = ""
    try:
        json.dumps(plan(run_config, 256, Cluster(gpus=2, **{name: value}), 1e9), allow_nan=False)
    except ValueError as error:
        said = str(error)
    assert not said or "no work lasts" in said


@pytest.mark.parametrize("nodes", [3, 5, 8, 10**6, 10**12])
def test_more_ranks_than_lanes_is_a_sentence(nodes: int, run_config: RunConfig) -> None:
    cluster = Cluster(nodes=nodes, gpus=1)
    with pytest.raises(ValueError, match=f"must be a multiple of {nodes:,} ranks, not 4"):
        plan(run_config, 256, cluster, 1e9)


def test_divisors() -> None:
    """A search over every number up to the lanes would not end where there are many."""
    for number in (1, 2, 12, 36, 97):
        assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]
    assert len(divisors(10**9)) == 100
