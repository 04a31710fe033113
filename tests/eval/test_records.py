"""Results and logs are read back whole or not at all, and then every page and figure of them is."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.common.files import write_json
from eval import breakdown, dynamic, report, score
from eval.eval_config import BreakdownConfig, DynamicConfig, ProgramConfig, SweepConfig
from eval.logs import step_of, trained, training_log
from eval.results import Bayes, Breakdown, Compressed, Distance, Dynamic, read_result
from eval.score_record import Score
from tools import evaluate, plot

NAMES = {
    "score-test.json": Score,
    "breakdown-validation.json": Breakdown,
    "dynamic-validation.json": Dynamic,
    "distance-test.json": Distance,
    "bayes-test.json": Bayes,
    "compress-test.json": Compressed,
}


@pytest.fixture(scope="module")
def whole_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a result of every kind; tests must not change it."""
    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("whole") / "run")
    lists = SweepConfig(memory=(8,))
    score.main(run, ProgramConfig(lanes=2, sweep=lists), json=run / "score-test.json")
    how = BreakdownConfig(lanes=2, edges=(100,), ablations=("intact", "exchanged"))
    breakdown.main(run, how)
    dynamic.main(run, DynamicConfig(lanes=2, limit=6, lrs=(1e-3,)), split="validation")
    result = read_result(run / "score-test.json")
    answers = {"from": 16, "to": 32, "answers": 2, "bytes": 9, "accuracy": 1.0, "whole": 0.0}
    result["distance"] = {"reach": {"segment": 8}, "buckets": [answers]}
    write_json(run / "distance-test.json", result)
    del result["distance"]
    nats = {"nats": 0.6, "regret": 0.1, "segment": 0.2, "memory": 0.1, "compressed": 0.0}
    result["bayes"] = {
        "source": {"task": "markov", "symbols": 2, "prior": 1.0, "hazard": None},
        "episodes": 4,
        "length": 16,
        "reach": {"segment": 8, "memory": 16, "compressed": 24},
        "places": [nats | {"from": 0, "to": 16}],
        "last": nats | {"deviation": 0.01},
        "total": nats | {"deviation": 0.01},
    }
    write_json(run / "bayes-test.json", result)
    packed = {"bytes": 100, "bits_per_byte": {"this model": 2.0}}
    write_json(run / "compress-test.json", packed)
    return run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(whole_run, tmp_path / "run")


def broken(value: Any) -> Iterator[tuple[str, Any]]:
    """A JSON value with each of its parts gone, of another type or beyond all ranges, one a time;
    of several alike in a list only the first.
    """
    for path, part in parts(value, ()):
        *above, last = path
        for what, new in (("gone", None), ("text", "x"), ("list", [[]]), ("number", -(10**30))):
            changed = copy.deepcopy(value)
            place = changed
            for key in above:
                place = place[key]
            if what == "gone":
                del place[last]
            elif isinstance(part, str) and what == "text":
                continue
            else:
                place[last] = new
            yield f"{'.'.join(map(str, path))} {what}", changed


def parts(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    children = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, child in children:
        yield (*path, key), child
        if isinstance(child, dict | list):
            yield from parts(child, (*path, key))


@pytest.mark.parametrize("name", NAMES)
def test_results_with_any_part_damaged_are_a_sentence_or_a_report(
    whole_run: Path, tmp_path: Path, name: str
) -> None:
    kind, file = NAMES[name], tmp_path / "result.json"
    result = read_result(whole_run / name, kind)
    refused, taken = [], []
    for what, changed in broken(result):
        file.write_text(json.dumps(changed))
        try:
            read_result(file, kind)
        except ValueError as error:
            refused.append(str(error))
        else:
            taken.append(what)
    assert all("\n" not in line and "remove it and make it again" in line for line in refused)
    assert len(refused) > 5
    # What may be left out, any finite number, and layers that attend to nothing.
    assert all(what.endswith(("gone", "number")) or ".ages." in what for what in taken), taken


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"a": 1, "a": 2}', '{"value": NaN}'],
)
@pytest.mark.parametrize("name", ["score-test.json", "dynamic-validation.json"])
def test_files_that_are_no_results_are_a_sentence(
    run: Path, tmp_path: Path, name: str, text: str
) -> None:
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=r"not valid JSON|is not the result of") as error:
        report.main(run, out=tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_files_of_the_version_before_are_read(run: Path, tmp_path: Path) -> None:
    """Compressed files did not say of which weights they are."""
    report.main(run, out=tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    for title in ("Scores", "Training", "Recall (test)", "Compressed files", "Lengths of run"):
        assert f"## {title}\n" in text


def test_results_of_other_weights_are_not_shown_together(run: Path, tmp_path: Path) -> None:
    result = read_result(run / "breakdown-validation.json", Breakdown)
    result["checkpoint"] = {"name": "step-00000010", "sha256": "0" * 64}
    write_json(run / "breakdown-validation.json", result)
    with pytest.raises(ValueError, match=r"different weights \(step-00000012 and step-00000010\)"):
        report.main(run, out=tmp_path / "out")
    report.main(run, out=tmp_path / "out", anyway=True)
    config = evaluate.EvaluateConfig(lanes=2)
    with pytest.raises(ValueError, match=r"validation\.json is of other weights .*; remove it"):
        evaluate.main([run], tmp_path / "e", config)


def test_runs_that_were_cut_otherwise_stand_in_their_own_columns(
    run: Path, whole_run: Path, tmp_path: Path
) -> None:
    """Other frequencies, other changes of memory, other distances."""
    other = run.rename(tmp_path / "other")
    result = read_result(other / "breakdown-validation.json", Breakdown)
    result["frequency"] = [{"name": "new", "words": 2, "nats": 1.0, "perplexity": None}]
    result["ablation"] = {"absent": 3.0}
    write_json(other / "breakdown-validation.json", result)
    result = read_result(other / "distance-test.json", Distance)
    result["distance"]["buckets"][0] |= {"from": 64, "to": 128, "accuracy": 0.25}
    write_json(other / "distance-test.json", result)
    report.main(whole_run, [other], out=tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "| other |  |  | over 1e308 |" in text
    assert "| run | 100.0% |  |\n| other |  | 25.0% |" in text
    assert "| other |  |  |  | 3.0000 |" in text


LOGS = {
    "empty": "",
    "half a line": '{"step": 1, "lo',
    "garbage": "\x00\x01garbage\n",
    "not utf-8": b"\xff\xfe\n{}\n",
    "a list": "[1, 2]\n",
    "text for a loss": '{"step": 1, "loss": "x"}\n',
    "no step": '{"loss": 2.0}\n',
    "a step below zero": '{"step": -1, "loss": 2.0}\n',
    "only validation": '{"step": 1, "validation_bits_per_byte": 2.0}\n',
    "only what is no number": '{"step": 1, "loss": NaN}\n',
    "deep": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_a_damaged_log_is_a_sentence(run: Path, tmp_path: Path, name: str) -> None:
    text = LOGS[name]
    (run / "metrics.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    programs: list[Callable[[], None]] = [
        lambda: report.main(run),
        lambda: report.main(run, out=tmp_path / "out"),
        lambda: plot.main(run),
        lambda: plot.main(run, beside=[run], out=tmp_path / "two.png", labels=["a", "b"]),
    ]
    for program in programs:
        with pytest.raises(ValueError, match=r"metrics\.jsonl") as error:
            program()
        assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not (run / "curve.png").exists()


def test_a_missing_log_is_a_sentence(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for program in (report.main, plot.main):
        with pytest.raises(ValueError, match="train it first"):
            program(run)


def test_what_a_log_lacks_is_left_out(run: Path, tmp_path: Path, capsys) -> None:
    """Records of a minimum, and numbers that are none, as earlier versions wrote them."""
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": 2.0, "mfu": Infinity}', '{"step": 3']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert training_log(run) == [{"step": 1}, {"step": 2, "loss": 2.0}]
    plot.main(run, out=tmp_path / "curve.svg")
    report.main(run, out=tmp_path / "out")
    capsys.readouterr()
    report.main(run)
    assert "training" in (shown := capsys.readouterr().out) and "2 steps\n" in shown


def test_speed_and_its_share_are_of_the_same_steps_as_the_score(run: Path, capsys) -> None:
    """Medians of both, up to the weights that were scored, whatever was trained since."""
    records = [
        {"step": step, "loss": 2.0, "seconds": 60.0 * step, "tokens_per_second": s, "mfu": s / 1e3}
        for step, s in ((4, 100.0), (8, 300.0), (12, 200.0), (13, 9e5), (14, 9e5), (15, 9e5))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    report.main(run)
    assert "12 steps in 12.0 minutes, 200 tokens/s, 20% of the" in capsys.readouterr().out
    assert trained(training_log(run))["steps"] == 15
    assert step_of("step-00000012") == 12 and step_of("mine") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "at least 1 item"),
        ({}, "none of memory, step and matrix"),
        (3, "cannot be drawn"),
        ([{"variant": "a"}], "bits_per_byte must be given, or else bits_per_token"),
        ([{"variant": "a", "bits_per_byte": "x"}], "valid number"),
        ([{"variant": "a", "bits_per_byte": 1.0, "deviation": -1.0}], "greater than or equal"),
        ({"pruning": []}, "at least 1 item"),
        ({"pruning": [{"zero": 2}]}, "cannot be drawn"),
        ({"memory": []}, "at least 1 item"),
        ({"memory": [{"form": "dense"}]}, "parameters is missing"),
        ({"step": [{"form": "blocks 0.1"}]}, "x or both x must be given"),
        ({"step": [{"form": None}]}, "valid string"),
    ],
)
def test_results_that_cannot_be_drawn(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        plot.main(file)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("place", ["a.gif", "a", "missing/a.png", "run", "/dev/full", "run.png/x"])
def test_a_figure_that_cannot_be_written_is_found_first(
    run: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError("it was drawn first")

    monkeypatch.setattr("eval.figures.training_curves", drawn)
    with pytest.raises(ValueError, match=r"must end in|make it|name a|choose"):
        plot.main(run, out=tmp_path / place)


def test_a_figure_replaces_no_result_and_no_device(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.svg"
    file.write_text('[{"variant": "a", "bits_per_byte": 1.0}]')
    (tmp_path / "table.json").hardlink_to(file)
    with pytest.raises(ValueError, match="is what is read"):
        plot.main(tmp_path / "table.json", out=file)
    plot.main(tmp_path / "table.json", out=Path("/dev/null"))
    (tmp_path / "link.svg").symlink_to("real.svg")
    plot.main(run, out=tmp_path / "link.svg")
    assert (tmp_path / "link.svg").is_symlink() and "<svg" in (tmp_path / "real.svg").read_text()
    with pytest.raises(ValueError, match="as many different labels"):
        plot.main(run, beside=[run])
    with pytest.raises(ValueError, match="name only one kind"):
        plot.main(run, beside=[tmp_path / "table.json"])


@pytest.mark.parametrize("place", ["file", "file/x", "run/checkpoints", "run/config.yaml"])
def test_a_report_that_cannot_be_written_is_found_first(
    run: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"name a folder|is a file|another folder"):
        report.main(run, out=tmp_path / place)
    with pytest.raises(ValueError, match=r"name a folder|is a file|another folder"):
        evaluate.main([run], tmp_path / place, evaluate.EvaluateConfig())


@pytest.mark.parametrize("config", [{"lanes": 0}, {"segments": 0}, {"compressed_bytes": 0}])
def test_evaluation_of_nothing(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate.EvaluateConfig(**config)
