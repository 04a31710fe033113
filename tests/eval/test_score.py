"""The scoring program's record, its table, and the report of a run."""

import bz2
import json
import lzma
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.lanes import Batch
from data.shards import Shards
from eval import report, score
from eval.eval_config import ProgramConfig
from eval.results import read_result
from eval.tables import require_comparable
from lm import scoring
from lm.scoring import Scorer
from tests.damage import flip, rewrite
from tools import plot


def test_the_record_says_everything(
    trained_run: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    score.main(trained_run, ProgramConfig(memory=16, lanes=2), json=file)
    result = json.loads(file.read_text())
    split = shards.split("test")
    protocol = result["protocol"]
    assert protocol == {
        "corpus": "text",
        "text": shards.manifest.source.sha256,
        "shards": shards.hash,
        "split": "test",
        "unit": "bits_per_byte",
        "denominator": split.bytes,
        "tokens": split.bytes,
        "segment": 8,
        "memory": 16,
        "compressed": 4,
        "lanes": 2,
        "warmup": 24,
        "reset_documents": False,
    }
    assert result["value"] == pytest.approx(result["nats"] / split.bytes / 0.693147, rel=1e-5)
    assert result["value"] == result["units"]["bits_per_byte"]
    assert result["interval"]["documents"] == len(split.documents) == 1
    assert result["interval"]["bounds"] == []
    assert result["words"] == split.words and result["official_words"] is False
    assert result["checkpoint"]["name"] == "step-00000012"
    assert len(result["checkpoint"]["sha256"]) == 64
    assert result["model"]["parameters"] > 1000
    text = bytes(split.tokens)
    assert result["compressors"] == {
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "bzip2 -9": 8 * len(bz2.compress(text, 9)) / len(text),
    }
    shown = capsys.readouterr().out
    assert f"{result['value']:.4f}" in shown and "warmup 24" in shown and "xz -9" in shown


def test_the_first_documents_alone(
    trained_run: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their bytes, words and compressors; each costs what it does in more of the split."""
    found, split = {}, shards.split("train")
    for number in (2, 3, 10**9):
        how = ProgramConfig(lanes=1, reset_documents=True, documents=number)
        reading = split.beginning(number)
        index = split.documents[:number]
        assert reading.bytes == index["bytes"].sum() and reading.words == index["words"].sum()
        if number > 3:
            # All of it is the split itself.
            assert number > len(split.documents) and reading is split
            continue
        file = tmp_path / f"{number}.json"
        score.main(trained_run, how, split="train", json=file)
        found[number] = result = json.loads(file.read_text())
        assert result["protocol"]["documents"] == number == len(result["documents"]["nats"])
        assert result["protocol"]["tokens"] == index["tokens"].sum() == result["bytes"]
        assert result["words"] == index["words"].sum() and not result["official_words"]
        text = bytes(split.tokens[: result["bytes"]])
        assert result["compressors"]["xz -9"] == 8 * len(lzma.compress(text, preset=9)) / len(text)
        assert f"documents {number}, segment 8" in capsys.readouterr().out
    nats = [found[number]["documents"]["nats"] for number in (2, 3)]
    assert nats[0] == pytest.approx(nats[1][:2], rel=1e-5)
    with pytest.raises(ValueError, match=r"documents 2 and 3|denominator"):
        require_comparable({"two": found[2], "three": found[3]})


def test_report_and_curve(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"eval\.score"):
        report.main(run)
    score.main(run, ProgramConfig(lanes=2), json=run / "score-test.json", compare=False)
    plot.main(run)
    plot.main(run, beside=[run], out=tmp_path / "both.svg", labels=["one", "two"])
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "both.svg").read_bytes()
    capsys.readouterr()
    report.main(run)
    shown = capsys.readouterr().out
    value = json.loads((run / "score-test.json").read_text())["value"]
    assert f"{value:.4f} bits per byte" in shown and "curve.png" in shown and "12 steps" in shown


def test_mistakes(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use train, validation, test"):
        score.main(trained_run, ProgramConfig(), split="tests")
    with pytest.raises(ValueError, match="holds no run"):
        score.main(tmp_path, ProgramConfig())
    with pytest.raises(ValueError, match="too few"):
        score.main(trained_run, ProgramConfig(lanes=10_000))
    with pytest.raises(ValueError, match="train it first"):
        plot.main(tmp_path)


def test_a_score_goes_on_where_it_was_interrupted(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ProgramConfig(lanes=2)
    score.main(trained_run, config, json=tmp_path / "whole.json", compare=False)
    advance, seen = Scorer.advance, []

    def interrupted(self: Scorer) -> Batch:
        if len(seen) == 20:
            raise KeyboardInterrupt
        seen.append(self.step)
        return advance(self)

    monkeypatch.setattr(Scorer, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score.main(trained_run, config, keep=tmp_path / "kept")
    monkeypatch.setattr(Scorer, "advance", lambda self: seen.append(self.step) or advance(self))
    seen.clear()
    score.main(
        trained_run, config, json=tmp_path / "on.json", compare=False, keep=tmp_path / "kept"
    )
    assert seen[0] == 20
    whole, on = (read_result(tmp_path / f"{name}.json") for name in ("whole", "on"))
    assert whole.pop("speed")["tokens_per_second"] > 0 < on.pop("speed")["tokens_per_second"]
    assert on == whole
    with pytest.raises(ValueError, match="another score"):
        score.main(trained_run, ProgramConfig(lanes=4), keep=tmp_path / "kept")
    (tmp_path / "kept/state-0.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"cannot be read .*; remove it"):
        score.main(trained_run, config, keep=tmp_path / "kept")


def test_nothing_half_counted_is_kept(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while a segment's costs are counted: the next start reads from what is whole."""
    config, arriving, calls = ProgramConfig(lanes=2), scoring.arriving, [0]
    score.main(trained_run, config, json=tmp_path / "whole.json", compare=False)

    def interrupted(tensor: torch.Tensor) -> Any:
        arrived = arriving(tensor)

        def counted() -> torch.Tensor:
            calls[0] += 1
            if calls[0] == 20:
                raise KeyboardInterrupt
            return arrived()

        return counted

    monkeypatch.setattr(scoring, "arriving", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score.main(trained_run, config, keep=tmp_path / "kept")
    score.main(
        trained_run, config, json=tmp_path / "on.json", compare=False, keep=tmp_path / "kept"
    )
    whole, on = (read_result(tmp_path / f"{name}.json") for name in ("whole", "on"))
    assert on["nats"] == whole["nats"] and on["documents"] == whole["documents"]


def read_or_none(file: Path) -> Any:
    """A file's JSON, or None where it is none, as with a number that begins with 0."""
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError:
        return None


def test_a_result_that_is_not_whole_is_refused_in_a_sentence(
    trained_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "score.json"
    score.main(trained_run, ProgramConfig(lanes=2), json=file, compare=False)
    text = file.read_text()
    assert read_result(file)["value"] > 0
    file.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"is not valid JSON .*eval\.score --json"):
        read_result(file)
    for wrong in ("[]", "{}", json.dumps({"value": 1})):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="not the result of a score"):
            read_result(file)
    file.write_text(text)
    # Without the name of its hash a file is one of an earlier version, which a line says.
    digits = [m.start() for m in re.finditer(r"\d(?!\w*\":)", text)]
    for digit in random.Random(0).sample(digits, 20):
        # Another digit in place of this one.
        whole = flip(file, 8 * digit)
        # The seventeenth digit of a number may say nothing.
        if read_or_none(file) != json.loads(text):
            with pytest.raises(ValueError, match=r"score\.json .*eval\.score --json"):
                read_result(file)
        file.write_bytes(whole)
    rewrite(file, format=1)
    with pytest.raises(ValueError, match="another version"):
        read_result(file)
    with pytest.raises(ValueError, match="is not there"):
        read_result(tmp_path / "none.json")


def test_other_protocols_are_not_compared_unless_asked(trained_run: Path, tmp_path: Path) -> None:
    files = {}
    for name, memory in (("a", 8), ("b", 8), ("c", 16)):
        files[name] = tmp_path / f"{name}.json"
        score.main(
            trained_run, ProgramConfig(memory=memory, lanes=2), json=files[name], compare=False
        )
    results = {name: read_result(file) for name, file in files.items()}
    require_comparable({name: results[name] for name in "ab"})
    with pytest.raises(ValueError, match=r"a and c .*\(memory 8 and 16\).*--anyway"):
        require_comparable(results)
    require_comparable(results, anyway=True)


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_give_the_same_number(trained_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "--", "eval.score", "--run", str(trained_run)]
    command += ["--lanes", "4", "--compare", "false", "--json", str(tmp_path / "two.json")]
    command += ["--split", "train"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("bits per character") == 1
    config, one_file = ProgramConfig(lanes=4), tmp_path / "one.json"
    score.main(trained_run, config, split="train", json=one_file, compare=False)
    two, one = (read_result(tmp_path / f"{name}.json") for name in ("two", "one"))
    assert two["nats"] == pytest.approx(one["nats"], rel=1e-6)
    assert two["protocol"] == one["protocol"]
    low, high = one["interval"]["bounds"]
    assert low < one["value"] < high
    assert two["interval"]["bounds"] == pytest.approx(one["interval"]["bounds"], rel=1e-6)
