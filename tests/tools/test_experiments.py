"""Experiments: a few tiny runs from a file to a table."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.common.command import dump_config
from data.common.integrity import write_sealed
from data.common.locks import alone
from data.common.yamlfile import dump_yaml, read_yaml
from lm.training.stopping import STOPPED
from tools import experiments
from tools.experiments import Experiment, main


@pytest.fixture
def file(tmp_path, run_config):
    """Function that writes an experiment file around the tiny run, two steps long."""
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump_config(run_config))
    content = read_yaml(preset)
    content["training"].update(steps=2, validate_every=2, save_every=2)

    def write(**more):
        path = tmp_path / "experiment.yaml"
        path.write_text(dump_yaml(content | more))
        return path

    return write


@pytest.mark.slow
def test_every_variant_and_seed_is_trained_once_and_tabled(file, tmp_path, capfd):
    variants = {"conv": {}, "mean": {"model.compression": "mean", "model.reconstruction": "none"}}
    path, out = file(variants=variants, seeds=[0, 1], paper={"mean": 0.982}), tmp_path / "out"
    other = out / "another-program" / "seed-1" / "result.json"
    other.parent.mkdir(parents=True)
    result = {"bits_per_byte": 1.5, "parameters": 7, "steps": 2, "tokens_per_second": 10.0}
    other.write_text(json.dumps(result))
    main(path, out)
    first = capfd.readouterr()
    rows = json.loads((out / "table.json").read_text())
    assert [(row["variant"], row["seeds"]) for row in rows] == [
        ("conv", 2),
        ("mean", 2),
        ("another-program", 1),
    ]
    conv, mean, foreign = rows
    assert conv["difference"] is None and mean["paper"] == 0.982
    assert mean["difference"] == pytest.approx(mean["bits_per_byte"] - conv["bits_per_byte"])
    seed = json.loads((out / "conv" / "seed-1" / "result.json").read_text())
    assert foreign["difference"] == pytest.approx(1.5 - seed["bits_per_byte"])
    assert conv["parameters"] > mean["parameters"] > 0
    main(path, out)
    second = capfd.readouterr()
    assert second.out == first.out and "seed 1" in first.err and not second.err


def test_results_of_another_config_are_not_mixed_in(file, tmp_path):
    out = tmp_path / "out"
    main(file(variants={"a": {}}, seeds=[0]), out)
    with pytest.raises(ValueError, match="another config"):
        main(file(variants={"a": {"optim.lr": 0.5}}, seeds=[0]), out)


def test_a_variant_begins_with_the_weights_of_another_run(file, tmp_path, trained_run):
    begun = tmp_path / "begun-0"
    begun.symlink_to(trained_run)
    path = file(variants={"on": {"from": str(tmp_path / "begun-{seed}")}}, seeds=[0])
    out = tmp_path / "out"
    main(path, out)
    origin = json.loads((out / "on/seed-0/origin.json").read_text())
    assert origin["run"] == str(begun)
    main(path, out)
    other = file(variants={"on": {"from": str(trained_run)}}, seeds=[0])
    with pytest.raises(ValueError, match=r"began with the weights of .*begun-0"):
        main(other, out)
    with pytest.raises(ValueError, match="result of another config"):
        main(file(variants={"on": {}}, seeds=[0]), out)
    with pytest.raises(ValueError, match="variant on: from names the folder of a run, not 3"):
        main(file(variants={"on": {"from": 3}}), out)


def test_mistakes_in_a_file_are_named_before_anything_is_trained(file, tmp_path):
    path = file(variants={"a": {}, "b": {"model.compresion": "mean"}})
    with pytest.raises(ValueError, match=r"variant b: .*did you mean .*compression"):
        main(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="needs variants"):
        Experiment.read(file())
    with pytest.raises(ValueError, match="folder"):
        Experiment.read(file(variants={"a/b": {}}))


def test_a_mistake_found_by_training_is_one_sentence(file, tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(file(variants={"a": {"training.ranks": 2}}, seeds=[0]), tmp_path / "out")
    assert stopped.value.code == 2
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("experiments: error: ")
    assert not list((tmp_path / "out").glob("*/*/result.json"))


MISSING = {
    "shards": {"data.shards": "nowhere"},
    "weights": {"from": "nowhere"},
    "teacher": {"training.teacher.run": "nowhere", "training.teacher.weight": 1.0},
}


@pytest.mark.parametrize("part", MISSING)
def test_what_the_last_variant_lacks_is_told_before_the_first_is_trained(file, tmp_path, part):
    path, out = file(variants={"a": {}, "b": MISSING[part]}, seeds=[0]), tmp_path / "out"
    with pytest.raises(ValueError, match="variant b: nowhere holds no "):
        main(path, out)
    assert not out.exists()


def test_shards_of_a_variant_are_its_own(file, tmp_path):
    plan = Experiment.read(file(variants={"a": {}, "b": {"data.shards": "other"}}, seeds=[0]))
    shards = [run.config.data.shards for run in plan.runs(tmp_path, Path("moved"))]
    assert shards == [Path("moved"), Path("other")]


def test_a_table_is_of_the_file_s_own_results(file, tmp_path, capfd):
    """What has joined the settings since counts as it was; what was edited does not."""
    path, out = file(variants={"a": {}}, seeds=[0]), tmp_path / "out"
    with pytest.raises(ValueError, match="out is no folder of an experiment"):
        main(path, out, table=True)
    assert not out.exists()
    (run,) = Experiment.read(path).runs(out, None)
    stored = dump_config(run.config)
    assert "leaky_inputs: false\n" in stored
    older = "".join(line for line in stored.splitlines(True) if "leaky_inputs" not in line)
    facts = {"bits_per_byte": 1.5, "parameters": 7, "steps": 2, "tokens_per_second": 10.0}
    (out / "a/seed-0").mkdir(parents=True)
    write_sealed(out / "a/seed-0/result.json", facts | {"config": older})
    main(path, out, table=True)
    main(path, out)
    assert capfd.readouterr().out.count("| a | 1.5000 |") == 2
    edited = file(variants={"a": {"optim.lr": 0.5}}, seeds=[0])
    with pytest.raises(ValueError, match="another config"):
        main(edited, out, table=True)


@pytest.mark.parametrize(
    ("number", "passed_on", "status", "said"),
    [
        (signal.SIGTERM, True, STOPPED, ""),
        (signal.SIGKILL, False, 1, "was ended by SIGKILL; the same command goes on"),
    ],
)
def test_a_training_that_a_signal_ends(
    file, tmp_path, monkeypatch, capfd, number, passed_on, status, said
):
    (run,) = Experiment.read(file(variants={"a": {}}, seeds=[0])).runs(tmp_path / "out", None)

    class Ended:
        """Of a process, as much as is asked of it."""

        exitcode = -number

        def __init__(self, **_):
            pass

        def start(self):
            pass

        terminate = start

        def join(self):
            if passed_on:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(experiments, "get_context", lambda _: SimpleNamespace(Process=Ended))
    with pytest.raises(SystemExit) as stopped:
        experiments.train_apart(run, 1)
    err = capfd.readouterr().err
    assert stopped.value.code == status and said in err and bool(said) == bool(err)


BAD_FILES = {
    "no variants": ({}, "needs variants"),
    "empty variants": ({"variants": {}}, "needs variants"),
    "a list": ({"variants": ["a"]}, "variants should be a valid dictionary"),
    "names": ({"variants": {"a": "mean"}}, r"variants\.a should be a valid dictionary"),
    "a number": ({"variants": {1: {}}}, "variants.* should be a valid string"),
    "no seeds": ({"variants": {"a": {}}, "seeds": []}, "seeds list should have at least 1"),
    "a path": ({"variants": {"a": {}}, "seeds": ["../x"]}, r"seeds\.0 should be a valid integer"),
    "a seed twice": ({"variants": {"a": {}}, "seeds": [1, 1]}, "seeds must differ"),
    "one seed": ({"variants": {"a": {}}, "seeds": 3}, "seeds should be a valid list"),
    "papers": ({"variants": {"a": {}}, "paper": {"a": "good"}}, r"paper\.a should be a valid"),
    "a value": ({"variants": {"a": {"optim.lr.x": 1}}}, "lies in lr, which is no section"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_none_is_one_sentence(file, tmp_path, name):
    more, sentence = BAD_FILES[name]
    with pytest.raises(ValueError, match=sentence):
        main(file(**more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "a/b",
        "/etc",
        "../a",
        ".hidden",
        "~",
        "~root",
        "a\nb",
        "a\x1b[2Jb",
        "a\0",
        "é" * 150,
    ],
)
def test_variants_stay_in_their_folder(file, tmp_path, name):
    with pytest.raises(ValueError, match="must be a name that a folder can have") as refused:
        main(file(variants={"good": {}, name: {}}), tmp_path / "out")
    assert str(refused.value).isprintable()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_second_call_on_one_folder_is_told_so(file, tmp_path):
    path, out = file(variants={"a": {}}, seeds=[0]), tmp_path / "out"
    out.mkdir()
    with alone(out / ".lock", "this test"):
        with pytest.raises(ValueError, match=f"another process runs experiments in {out}: wait"):
            main(path, out)
        assert "variant" in (main(path, out, table=True) or (out / "table.md").read_text())
    assert sorted(p.name for p in out.iterdir()) == ["table.json", "table.md"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"bits_per_byte": "good"}', '{"bits_per_byte": NaN}']
)
def test_a_damaged_result_is_named(file, tmp_path, content):
    result = tmp_path / "out" / "a" / "seed-0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(content)
    with pytest.raises(ValueError, match=r"seed-0/result\.json.*; remove it"):
        main(file(variants={"a": {}}, seeds=[0]), tmp_path / "out")
    assert result.read_text() == content
