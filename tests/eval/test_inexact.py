"""Words that a vocabulary does not know: no number claims to be of text that nobody predicted."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards
from data.tokenizers.registry import MuLawTokenizer, WordTokenizer
from data.tokenizers.words import split_words
from eval import breakdown, compress, dynamic, report, score
from eval.eval_config import BreakdownConfig, DynamicConfig, ProgramConfig
from eval.protocol import all_units, denominators
from eval.results import Breakdown, Dynamic, read_result
from eval.sweeps import compressors
from lm.runs.run_config import RunConfig
from lm.scoring import Score
from tests.runs import WORDS, finished
from tests.texts import split_of

UNKNOWN = ("Xerxes", "quorum", "abcde")


def words_of(seed: int, unknown: int) -> list[str]:
    draw = random.Random(seed)
    words = draw.choices(WORDS, k=320 - unknown) + draw.choices(UNKNOWN, k=unknown)
    draw.shuffle(words)
    return words


def in_lines(words: list[str]) -> str:
    """The form of WikiText, which words give back exactly."""
    lines = (words[at : at + 8] for at in range(0, len(words), 8))
    return "".join("".join(f" {word}" for word in line) + " \n" for line in lines)


def build(folder: Path, held_out: str) -> Shards:
    texts = {"train": in_lines(words_of(0, 0)), "validation": held_out, "test": held_out}
    for split, text in texts.items():
        (folder / "source" / split).mkdir(parents=True)
        (folder / "source" / split / "a.txt").write_text(text)
    return prepare(DataConfig("text", folder / "s", str(folder / "source"), "words"), workers=1)


@pytest.fixture(scope="module")
def inexact(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards of words, of which 94 of 320 are unknown in validation and test."""
    return build(tmp_path_factory.mktemp("inexact"), in_lines(words_of(1, 94)))


@pytest.fixture(scope="module")
def run(inexact: Shards, run_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on these shards."""
    data = DataConfig("text", inexact.path, vocabulary="words")
    config = replace(run_config, data=data)
    return finished(config, inexact, tmp_path_factory.mktemp("run"))


def names(value: Any) -> set[str]:
    """All keys and texts of a JSON value."""
    if isinstance(value, dict):
        return set(value) | {name for each in value.values() for name in names(each)}
    if isinstance(value, list):
        return {name for each in value for name in names(each)}
    return {value} if isinstance(value, str) else set()


def claims(value: Any) -> list[str]:
    """What speaks of bytes or characters that nobody has predicted."""
    return [name for name in names(value) if "per_byte" in name or "per_character" in name]


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        (in_lines(WORDS), True),
        (" a <unk> of time \n", True),
        (" the  a \n", False),
        ("the a \n", False),
        (" the a\n", False),
        (" the a", True),
        (" the a \r\n", False),
        (" the Xerxes \n", False),
        # As long as <unk>, so that lengths do not tell.
        (" the abcde \n", False),
    ],
)
def test_a_build_notes_whether_words_give_the_text_back(
    tmp_path: Path, text: str, exact: bool
) -> None:
    shards = build(tmp_path, text)
    assert shards.split("test").exact is exact
    assert shards.split("train").exact
    decoded = shards.vocabulary.decode(shards.split("test").tokens)
    assert (decoded == text.encode()) is exact
    # What lies in memory, or was prepared before this was noted, is judged by its length.
    old = split_of(shards.vocabulary, [text.encode()])
    assert old.exact is (exact or "abcde" in text)


def test_unknown_words_leave_no_bytes_and_no_characters() -> None:
    vocabulary = WordTokenizer.build(Counter(split_words(b" a b \n")))
    split = split_of(vocabulary, [b" a b c dddddddd a \n"], unit="word_perplexity")
    assert split.unknown_words == 2 / 5
    result = Score(10.0, 6, None, np.array([10.0]))
    units = all_units(10.0, denominators(split, result), "words")
    assert set(units) == {"token_perplexity", "word_perplexity"}
    assert result.unit == "bits_per_token" and result.bits == pytest.approx(10 / 6 / 0.693147)
    with pytest.raises(ValueError, match="have no bits per byte"):
        _ = result.bits_per_byte
    assert compressors(split) == {}


def test_sound_that_was_rounded_is_not_given_back() -> None:
    sound = split_of(MuLawTokenizer(), [bytes(range(200))])
    assert not sound.exact
    assert compressors(sound) == {}


def test_training_logs_bits_per_token_and_what_is_unknown(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not claims(lines)
    scored = [line for line in lines if "validation_bits_per_token" in line]
    assert scored and all("validation_word_perplexity" in line for line in scored)
    assert {line["validation_unknown_words"] for line in scored} == {94 / 320}
    state = json.loads((run / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert "validation_bits_per_token" in names(state) and not claims(state)


def test_programs_claim_nothing_of_text_that_is_not_given_back(
    run: Path, inexact: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "score-test.json"
    score.main(run, ProgramConfig(lanes=2), json=file)
    breakdown.main(run, BreakdownConfig(lanes=2), "test")
    for limit, name in ((None, "dynamic-test.json"), (3, "limited.json")):
        dynamic.main(run, DynamicConfig(lrs=(1e-3,), limit=limit), json=run / name)
    result = read_result(file)
    assert result["units"].keys() == {"token_perplexity", "word_perplexity"}
    assert result["unknown_words"] == 94 / 320 and result["exact"] is False
    # What is known of the source stands there; the decoded text is shorter.
    size = inexact.split("test").bytes
    assert result["bytes"] == size == len(in_lines(words_of(1, 94)).encode())
    assert result["characters"] is None and "compressors" not in names(result["units"])
    broken = read_result(run / "breakdown-test.json", Breakdown)
    assert all("tokens" in place and "bytes" not in place for place in broken["position"])
    limited = read_result(run / "limited.json", Dynamic)
    assert limited["protocol"]["unit"] == "bits_per_token" and limited["bytes"] is None
    for path in (
        file,
        run / "breakdown-test.json",
        run / "dynamic-test.json",
        run / "limited.json",
    ):
        found = json.loads(path.read_text())
        assert not claims(found), path
        assert found["unknown_words"] == 94 / 320
    header, row = (run / "documents-test.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["bits_per_byte"] == ""
    report.main(run, out=tmp_path / "report")
    shown = capsys.readouterr()
    assert "29.38% of words unknown" in shown.out and "no bits per byte or character" in shown.out
    for text in (shown.out, (tmp_path / "report" / "report.md").read_text()):
        assert "bits per byte" not in text.replace("no bits per byte or character", "").lower()
        assert "bits per token" in text


def test_what_does_not_come_back_is_not_compressed(run: Path, tmp_path: Path) -> None:
    file, packed, back = tmp_path / "a.txt", tmp_path / "a.lm", tmp_path / "b.txt"
    for text in (" the Xerxes \n", "the a\n", " the  a \n", "the a"):
        file.write_text(text)
        with pytest.raises(ValueError, match="cannot be written exactly"):
            compress.main(run, file, packed)
        assert not packed.exists()
    file.write_text(" the <unk> \n a \n")
    compress.main(run, file, packed)
    compress.main(run, packed, back, decompress=True)
    assert back.read_bytes() == file.read_bytes()


def test_the_harness_divides_no_other_text_by_its_bytes(run: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    from lm_eval.api.instance import Instance

    from eval.harness_model import LongRangeLM

    model = LongRangeLM(run=str(run))

    def ask(text: str) -> list[float]:
        return model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])

    assert ask(" the a \n")[0] < 0
    for text in ("the a", " the Xerxes \n"):
        with pytest.raises(ValueError, match="does not give the documents back"):
            ask(text)
