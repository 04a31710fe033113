"""Models beside each other: intervals and differences against loops, and what is refused."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.common.files import write_json
from data.shards import Shards
from eval import compare, score
from eval.comparison import compared, require_alike, require_same_vocabulary, table_of
from eval.eval_config import ProgramConfig
from eval.results import digits, read_result


@pytest.fixture(scope="module")
def record(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A score as eval.score writes it."""
    file = tmp_path_factory.mktemp("record") / "score.json"
    score.main(trained_run, ProgramConfig(lanes=2, frequency=True), json=file)
    return read_result(file)


def drawn(record: dict[str, Any], seed: int, **protocol: Any) -> dict[str, Any]:
    """The same with seven documents and costs of their own."""
    random, made = np.random.default_rng(seed), copy.deepcopy(record)
    size, words = np.arange(100, 800, 100), np.arange(20, 160, 20)
    nats = size * random.uniform(0.5, 2.0, 7)
    made["documents"] = {"nats": nats.tolist(), "bytes": size.tolist(), "words": words.tolist()}
    # A published count is not the documents' own.
    made |= {"nats": nats.sum(), "bytes": int(size.sum()), "words": 600}
    bits, perplexity = nats.sum() / math.log(2) / size.sum(), math.exp(nats.sum() / 600)
    made["units"] = {"bits_per_byte": bits, "word_perplexity": perplexity, "token_perplexity": 3.0}
    made["protocol"] |= protocol
    return made


def test_samples_are_compared_and_nothing_else_is_made_up(record: dict[str, Any]) -> None:
    """Recordings have neither bytes nor words of text; models without a common unit are refused."""
    results = {"a": drawn(record, 1, tokens=1400), "b": drawn(record, 2, tokens=1400)}
    for each in results.values():
        each["units"] = {"bits_per_sample": each["nats"] / math.log(2) / 1400}
        each["documents"]["words"], each["words"] = [0] * 7, 0
    found = compared(results)
    bits = [each["units"]["bits_per_sample"] for each in results.values()]
    low, high = found["a"].bounds["bits_per_sample"]
    assert low < bits[0] < high
    assert found["b"].difference == pytest.approx(bits[1] - bits[0])
    rows = table_of(results, per_token=False)
    assert any("bits per sample beside a" in str(row) for row in [rows.header, *rows.rows])
    results["b"]["units"] = {"token_perplexity": 3.0}
    with pytest.raises(ValueError, match="a, b have no unit in common"):
        compared(results)


def naive(nats: np.ndarray, size: np.ndarray, factor: float) -> list[float]:
    """Bounds of a mean by drawing documents one by one."""
    random, means = np.random.default_rng(0), []
    for _ in range(1000):
        picked = random.integers(7, size=7)
        means.append(sum(nats[d] for d in picked) / sum(size[d] for d in picked) / factor)
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def test_intervals_are_of_documents_and_differences_are_paired(record: dict[str, Any]) -> None:
    results = {"a": drawn(record, 1), "b": drawn(record, 2)}
    found = compared(results)
    nats = {name: np.array(r["documents"]["nats"]) for name, r in results.items()}
    size, words = (np.array(results["a"]["documents"][name]) for name in ("bytes", "words"))
    for name in "ab":
        low, high = naive(nats[name], size, math.log(2))
        assert found[name].bounds["bits_per_byte"] == pytest.approx((low, high))
        low, high = map(math.exp, naive(nats[name], words, 600 / words.sum()))
        assert found[name].bounds["word_perplexity"] == pytest.approx((low, high))
    assert found["a"].difference == 0 and found["a"].difference_bounds == (0, 0)
    gap = nats["b"] - nats["a"]
    assert found["b"].difference == pytest.approx(gap.sum() / math.log(2) / size.sum())
    assert found["b"].difference_bounds == pytest.approx(naive(gap, size, math.log(2)))


def test_what_is_not_alike_is_refused_with_the_entry(record: dict[str, Any]) -> None:
    a = drawn(record, 1)
    require_alike({"a": a, "b": drawn(record, 2, lanes=4, warmup=0, memory=99)}, anyway=False)
    for entry, value in [
        ("text", "other"),
        ("split", "train"),
        ("unit", "word_perplexity"),
        ("denominator", 7),
        ("reset_documents", True),
        ("limit", 3),
    ]:
        other = drawn(record, 2, **{entry: value})
        with pytest.raises(ValueError, match=f"a and b cannot .* differ in {entry} .*{value}"):
            require_alike({"a": a, "b": other}, anyway=False)
        require_alike({"a": a, "b": other}, anyway=True)
    other = drawn(record, 2)
    other["documents"]["bytes"][0] += 1
    with pytest.raises(ValueError, match="other documents"):
        require_alike({"a": a, "b": other}, anyway=True)
    del other["documents"]
    with pytest.raises(ValueError, match="the score of b was written by an earlier version"):
        require_alike({"a": a, "b": other}, anyway=True)
    other = drawn(record, 2)
    other["model"]["vocabulary_sha256"] = "0" * 64
    require_same_vocabulary({"a": a, "b": drawn(record, 2)})
    with pytest.raises(ValueError, match="a and b have different tokens"):
        require_same_vocabulary({"a": a, "b": other})


def test_the_page_has_every_model(
    record: dict[str, Any],
    trained_run: Path,
    shards: Shards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "mine")
    write_json(run / "score-test.json", drawn(record, 1))
    theirs = drawn(record, 2, reading="windows", window=64, stride=32)
    for name in ("segment", "memory", "compressed"):
        del theirs["protocol"][name]
    theirs["model"] |= {"kind": "GPT2LMHeadModel", "training_flops_per_token": None, "reach": 64}
    write_json(tmp_path / "gpt2.json", theirs)
    files = [run, tmp_path / "gpt2.json"]
    compare.main(files)
    shown = capsys.readouterr().out
    expected = compared({"a": drawn(record, 1), "b": theirs})["b"]
    assert f"bits per byte beside mine  {expected.difference:+.4f} (" in shown
    assert "windows, window 64, stride 32" in shown and "reading" in shown
    compare.main(files, names=["ours", "GPT-2"], out=tmp_path / "page", per_token=True)
    markdown = (tmp_path / "page/report.md").read_text()
    page = (tmp_path / "page/report.html").read_text()
    for text in (markdown, page):
        assert all(name in text for name in ("ours", "GPT-2", "xz -9", "memory of state", "reach"))
        assert "Place in the document" in text and "Words by frequency" in text
    assert page.count("<svg") == 2 and len(list((tmp_path / "page").glob("*.svg"))) == 2
    for given, sentence in [
        ({"names": ["a"]}, "names must be 2"),
        ({"names": ["a", "a"]}, "different names"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            compare.main(files, **given)
    theirs["frequency"][0]["words"] += 1
    write_json(tmp_path / "gpt2.json", theirs)
    with pytest.raises(ValueError, match="counted in different training text"):
        compare.main(files)
    with pytest.raises(ValueError, match="at least one"):
        compare.main([])


def test_numbers_have_digits_that_say_something() -> None:
    told = [digits("word_perplexity", value) for value in (3.14159, 33.25678, 1442.665, 3.5e7)]
    assert told == ["3.142", "33.26", "1,443", "3.5e+07"]
    assert digits("bits_per_byte", 1.23456) == "1.2346"
