"""The benchmark of reading a book beside transformers."""

from pathlib import Path

import pytest
import torch

from lm import adopt
from tests.lm.pretrained import SHAPES, SHORT, saved
from tools.benchmarks import book

TEXT = bytes(range(32, 127)) * 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = saved(SHAPES["Llama"], tmp_path / "model", torch.float32)
    adopt.main(str(model), tmp_path / "run", SHORT)
    return tmp_path / "run"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT)
    return path


def test_both_read_as_far_as_they_go(
    run: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, list[int]] = {"with_memory": [], "with_cache": []}

    def here(work, place, ids, part, *given):
        whole = book.timed

        def timed(reads, write, parts, written, before):
            def noted(some):
                read[work.__name__].append(len(some))
                reads(some)

            return whole(noted, write, parts, written, before)

        monkeypatch.setattr(book, "timed", timed)
        result = work(place, ids, part, *given)
        monkeypatch.setattr(book, "timed", whole)
        return result

    monkeypatch.setattr(book, "alone", here)
    threads = torch.get_num_threads()
    try:
        book.main(run, text, written=3, part=64, full=100, json=tmp_path / "book.json")
    finally:
        torch.set_num_threads(threads)
    assert read == {"with_memory": [64, 64, 62], "with_cache": [64, 36]}
    result = (tmp_path / "book.json").read_text()
    assert result.count("written_per_second") == 2 and '"tokens": 190' in result


def test_short_texts_and_other_runs_are_refused(run: Path, text: Path, trained_run: Path) -> None:
    with pytest.raises(ValueError, match=r"has 190 tokens, less than a part of 2,048"):
        book.main(run, text)
    with pytest.raises(ValueError, match="was not adopted: no model of transformers"):
        book.main(trained_run, text)
