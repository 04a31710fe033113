"""Experiments: a few tiny runs from a file to a table."""

import json

import pytest

from data.common.command import dump_config
from data.common.locks import alone
from data.common.yamlfile import dump_yaml, read_yaml
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
    missing = tmp_path / "missing"
    with pytest.raises(SystemExit) as stopped:
        main(file(variants={"a": {}}, seeds=[0]), tmp_path / "out", shards=missing)
    assert stopped.value.code == 2
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith(f"experiments: error: {missing} holds no shards")
    assert not list((tmp_path / "out").glob("*/*/result.json"))


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
