"""Programs that tell figures by byte and word, with tokenizers of the Hugging Face hub."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.options import DataConfig
from data.prepare import prepare
from eval import breakdown, compress, score
from eval.eval_config import BreakdownConfig, ProgramConfig
from eval.per_word import word_costs
from eval.results import Breakdown, read_result
from lm.inference.inference_config import GenerateConfig
from lm.inference.loading import load_run
from lm.inference.session import Session, Writing, check_stops
from lm.runs.run_config import RunConfig, read_config
from tests.hub_tokenizers import write_tokenizer
from tests.runs import WORDS, finished


@pytest.fixture(scope="module")
def lossy_run(run_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in lower-cased pieces of words."""
    folder = tmp_path_factory.mktemp("lossy")
    tokenizer = write_tokenizer("wordpiece", folder / "tokenizer")
    for split in ("train", "validation", "test"):
        (folder / "text" / split).mkdir(parents=True)
        text = " ".join(np.random.default_rng(len(split)).choice(WORDS, 900))
        (folder / "text" / split / "a.txt").write_text(f"The Cat\n {text}")
    data = DataConfig("text", folder / "shards", str(folder / "text"), f"hf:{tokenizer}")
    made = prepare(data, workers=1)
    (folder / "run").mkdir()
    return finished(replace(run_config, data=data), made, folder / "run")


def test_scores_by_byte_and_word_are_of_the_text(hf_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "score.json"
    score.main(hf_run, ProgramConfig(lanes=2), json=file)
    breakdown.main(hf_run, BreakdownConfig(lanes=2), "test")
    result = read_result(file)
    text = Path(str(read_config(hf_run / "config.yaml").data.source), "test", "a.txt").read_bytes()
    assert result["protocol"]["unit"] == "bits_per_byte" and result["exact"]
    assert (result["bytes"], result["words"]) == (len(text), len(text.split()))
    assert result["characters"] == len(text.decode())
    bits = result["nats"] / np.log(2) / len(text)
    assert result["units"]["bits_per_byte"] == pytest.approx(bits)
    broken = read_result(hf_run / "breakdown-test.json", Breakdown)
    assert sum(row["words"] for row in broken["frequency"]) == len(text.split())


def test_each_word_has_the_cost_of_its_tokens(hf_run: Path) -> None:
    split = prepare(read_config(hf_run / "config.yaml").data).split("test")
    nats = np.random.default_rng(0).random(len(split.tokens))
    (found,) = word_costs(split, nats, line_ends=False)
    words, costs = found
    text = split.vocabulary.decode(split.tokens)
    assert words == text.split() and costs.sum() == pytest.approx(nats.sum())
    ids = split.tokens[:40]
    assert split.vocabulary.count_words(ids) == len(split.vocabulary.decode(ids).split())


def test_a_text_comes_back_to_the_bit(hf_run: Path, tmp_path: Path) -> None:
    file, packed, back = tmp_path / "a.txt", tmp_path / "a.lm", tmp_path / "b.txt"
    file.write_bytes("the book <|end|> é\u0301 of\r\n\n memory \x00 ▁ 道".encode())
    compress.main(hf_run, file, packed)
    compress.main(hf_run, packed, back, decompress=True)
    assert back.read_bytes() == file.read_bytes()
    file.write_bytes(b"\xff the book")
    with pytest.raises(ValueError, match="cannot be written exactly with the vocabulary hf-"):
        compress.main(hf_run, file, packed, overwrite=True)


def test_stop_strings_end_a_text_within_a_token(hf_run: Path) -> None:
    loaded = load_run(hf_run)
    session = Session.begin(loaded.predictor, 1)
    session.read([loaded.vocabulary.encode(b"the book of memory and")])
    how = Writing(GenerateConfig(), 80, [3])
    (whole,) = session.repeat(1).write(how)
    stop = whole[len(whole) // 2 :][:2]
    check_stops([stop, b"naive", "Жук道".encode()], loaded.vocabulary)
    shown: list[str] = []
    stopping = replace(how, stops=[stop])
    (text,) = session.repeat(1).write(stopping, lambda _, part: shown.append(part))
    assert text == whole[: whole.find(stop)]
    assert "".join(shown) == text.decode(errors="replace")


def test_what_a_tokenizer_drops_leaves_words_alone(
    lossy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    score.main(lossy_run, ProgramConfig(lanes=2), json=file)
    breakdown.main(lossy_run, BreakdownConfig(lanes=2), "test")
    result = read_result(file)
    assert result["protocol"]["unit"] == "word_perplexity" and not result["exact"]
    assert result["units"].keys() == {"token_perplexity", "word_perplexity"}
    assert result["words"] == 902 and result["characters"] is None
    shown = capsys.readouterr().out
    assert "bits per byte" not in shown.replace("no bits per byte", "")
    logged = [json.loads(line) for line in (lossy_run / "metrics.jsonl").read_text().splitlines()]
    assert any("validation_word_perplexity" in line for line in logged)
    assert not any("per_byte" in name for line in logged for name in line)
    text = tmp_path / "a.txt"
    text.write_text("The Cat")
    with pytest.raises(ValueError, match="cannot be written exactly"):
        compress.main(lossy_run, text, tmp_path / "a.lm")
