"""Memories of whole texts: kept, found by how a text begins, and gone on from exactly."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.common.tensors import save_tensors
from data.shards import Shards, open_shards
from eval import score
from eval.eval_config import ProgramConfig
from eval.recalling import RecallingScorer
from eval.results import read_result
from lm import generate, library
from lm.inference import episodes
from lm.inference.episodes import KIND, Choice, Library, key_of, taken
from lm.inference.inference_config import GenerateConfig, LookupConfig, ScoringConfig
from lm.inference.loading import LoadedRun, load_run
from lm.inference.predictor import ModelState
from lm.library import LibraryConfig
from lm.scoring import Scorer
from tests.damage import flips
from tests.texts import split_of

BOOKS = {
    "first.txt": b"the long book of memory was read again by one who wrote it down and time " * 2,
    "second.txt": b"0123456789 ABCDEFGHIJ 0123456789 !!!! 0123456789 " * 3,
    "third.txt": b"zzzz yyyy xxxx wwww vvvv uuuu tttt ssss rrrr qqqq pppp " * 2,
}
OPENING = 8


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> LoadedRun:
    return load_run(trained_run)


@pytest.fixture(scope="module")
def shelf(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of three books; tests must not change it."""
    books = tmp_path_factory.mktemp("books")
    for name, text in BOOKS.items():
        (books / name).write_bytes(text)
    folder = tmp_path_factory.mktemp("library")
    library.add(trained_run, books, LibraryConfig(opening=OPENING), folder)
    return folder


def inputs(loaded: LoadedRun, text: bytes) -> torch.Tensor:
    return torch.tensor([[loaded.vocabulary.start, *text]])


def after(loaded: LoadedRun, name: str) -> ModelState:
    """What reading all whole segments of a book leaves."""
    predictor, whole = loaded.predictor, inputs(loaded, BOOKS[name])
    _, state = predictor.read(whole[:, : whole.shape[1] // 8 * 8], predictor.begin(1))
    return state


def test_the_list_says_what_is_there(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library.show(shelf)
    shown = capsys.readouterr().out
    for name, text in BOOKS.items():
        assert name in shown and f"{len(text):,} tokens" in shown
    assert "first 8 tokens" in shown
    assert {path.suffix for path in shelf.iterdir()} == {".safetensors"}


@pytest.mark.parametrize("name", BOOKS)
def test_a_text_goes_on_from_the_book_that_began_like_it(
    loaded: LoadedRun, shelf: Path, name: str
) -> None:
    """The memory is that of the whole book, bit for bit, whatever else stands in the library."""
    found = Library(shelf, loaded)
    ids = np.frombuffer(BOOKS[name][:15] + b"...", dtype=np.uint8)
    assert found.episodes[found.nearest(ids)[0]].name == name
    state, (said,) = found.begun([ids])
    assert said.startswith(f"the memory of {name}, which saves its opening ")
    expected = after(loaded, name).memory.tensors()
    given = state.memory.tensors()
    assert given.keys() == expected.keys()
    for key, tensor in expected.items():
        slots = given[key]
        if "count" not in key:
            # Empty slots may hold anything, and this book fills all.
            assert int(expected["memory_count"]) == 8 and int(expected["compressed_count"]) == 4
        torch.testing.assert_close(slots, tensor, rtol=1e-5, atol=1e-6)


def test_it_is_written_from_there(
    trained_run: Path, loaded: LoadedRun, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "0123456789 ABC"
    config = GenerateConfig(prompt=prompt, tokens=25, temperature=0)
    generate.main(trained_run, config, library=shelf)
    shown = capsys.readouterr()
    assert "begins with the memory of second.txt" in shown.err
    predictor = loaded.predictor
    hidden, state = predictor.read(inputs(loaded, prompt.encode()), after(loaded, "second.txt"))
    written = []
    for _ in range(25):
        written.append(int(predictor.logits(hidden)[0, -1].argmax()))
        hidden, state = predictor.read(torch.tensor([written[-1:]]), state)
    assert shown.out.encode() == bytes(written) + b"\n" or shown.out.startswith(
        bytes(written).decode(errors="replace")
    )
    # And with what it looks up, several texts side by side.
    lookup = LookupConfig("cache", capacity=50)
    several = GenerateConfig(prompt=prompt, tokens=5, samples=2)
    generate.main(trained_run, several, adapt=lookup, library=shelf)
    assert "sample 2" in capsys.readouterr().out


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_score_goes_on_from_there(loaded: LoadedRun, shelf: Path, lanes: int) -> None:
    """Against a loop: the opening as it is, the rest after the memory and the opening again."""
    texts = [b"zzzz yyyy xxxx wwww vvvv 0123456789 zzzz", b"0123", BOOKS["second.txt"][:61]]
    split, found = split_of(loaded.vocabulary, texts), Library(shelf, loaded)
    config = ScoringConfig(lanes=lanes, warmup=64, reset_documents=True)
    scorer = RecallingScorer(found, split, config)
    scorer.token_nats = np.full(len(split.tokens), np.nan)
    for _ in scorer:
        pass
    predictor, expected = loaded.predictor, []
    opening = 8
    for text, name in zip(texts, ("third.txt", "", "second.txt"), strict=True):
        targets = torch.tensor([list(text)])
        plain, _ = predictor.read(inputs(loaded, text[:-1]), predictor.begin(1))
        nats = predictor.nats(plain, targets)[0]
        if len(text) > opening:
            again, _ = predictor.read(inputs(loaded, text[:-1]), after(loaded, name))
            nats = torch.cat([nats[:opening], predictor.nats(again, targets)[0, opening:]])
        expected += nats.tolist()
    np.testing.assert_allclose(scorer.token_nats, expected, rtol=1e-4)
    plain_scorer = Scorer(predictor, split, config)
    for _ in plain_scorer:
        pass
    assert scorer.result().nats != plain_scorer.result().nats
    assert {*scorer.found} == {0, 2}


def test_the_program_scores_with_it(
    trained_run: Path, shards: Shards, shelf: Path, tmp_path: Path
) -> None:
    def record(name: str, **how) -> dict:
        config = ProgramConfig(lanes=2, reset_documents=True, **how)
        score.main(trained_run, config, json=tmp_path / name, compare=False)
        return read_result(tmp_path / name)

    plain, recalled = record("plain.json"), record("recalled.json", library=shelf)
    longest = open_shards(Path(shards.path)).split("test").documents["tokens"].max()
    assert recalled["protocol"]["opening"] == OPENING
    assert recalled["protocol"]["warmup"] == longest
    assert recalled["value"] != plain["value"] and "library" not in plain["protocol"]


def test_one_of_other_weights_or_openings_is_refused(
    trained_run: Path, loaded: LoadedRun, shelf: Path, tmp_path: Path
) -> None:
    book = tmp_path / "book"
    book.write_bytes(BOOKS["first.txt"])
    with pytest.raises(ValueError, match=r"another model, checkpoint or other lengths"):
        library.add(trained_run, book, LibraryConfig(memory=9, opening=OPENING), shelf)
    with pytest.raises(ValueError, match=r"another model, checkpoint or other lengths"):
        library.add(trained_run, book, LibraryConfig(opening=OPENING), shelf, "step-00000010")
    with pytest.raises(ValueError, match="give --opening 8 or another library"):
        library.add(trained_run, book, LibraryConfig(opening=7), shelf)
    with pytest.raises(ValueError, match="another model, checkpoint or other lengths"):
        generate.main(trained_run, GenerateConfig(prompt="a", memory=9), library=shelf)
    with pytest.raises(ValueError, match="takes all slots of memories that reach back 16"):
        library.add(trained_run, book, LibraryConfig(opening=9), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    book.write_bytes(b"short")
    with pytest.raises(ValueError, match="less than a segment of 8"):
        library.add(trained_run, book, LibraryConfig(opening=OPENING), shelf)
    assert len(list(shelf.iterdir())) == 3


def test_damage_and_what_a_kill_leaves(
    trained_run: Path, loaded: LoadedRun, shelf: Path, tmp_path: Path
) -> None:
    """A flipped bit is a sentence; a file that was not finished is none of the library."""
    copy = tmp_path / "library"
    copy.mkdir()
    for path in shelf.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = sorted(copy.iterdir())[0]
    (copy / f".{first.name}.123.partial").write_bytes(first.read_bytes()[:100])
    assert len(Library(copy, loaded).episodes) == 3
    for _ in flips(first, 12):
        with pytest.raises(ValueError, match="longrange library add"):
            [Library(copy, loaded).memory(number) for number in range(3)]
    # The same text once more takes the place of its file.
    book = tmp_path / "again"
    book.write_bytes(BOOKS["third.txt"])
    library.add(trained_run, book, LibraryConfig(opening=OPENING), copy)
    assert len(Library(copy, loaded).episodes) == 3
    save_tensors({"a": torch.zeros(1)}, copy / "other.safetensors", {"kind": KIND})
    with pytest.raises(ValueError, match=r"other\.safetensors is no memory of a library"):
        Library(copy, loaded)
    (copy / "other.safetensors").write_bytes(b"no memory")
    with pytest.raises(ValueError, match=r"other\.safetensors cannot be read"):
        Library(copy, loaded)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompt": "a"}, "is no library; make one"),
        ({}, "give one with --prompt"),
        ({"prompt": "a", "library_candidates": 0}, "must be at least 1"),
        ({"prompt": "a", "memory_weight": 2.0}, "leave --load-memory, --save-memory, --library"),
    ],
)
def test_mistakes_in_writing(trained_run: Path, tmp_path: Path, how, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate.main(trained_run, GenerateConfig(**how), library=tmp_path / "none")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "say --reset_documents true"),
        ({"reset_documents": True, "warmup": 5}, "warmup has no effect with --library"),
    ],
)
def test_mistakes_in_scoring(tmp_path: Path, how, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgramConfig(library=tmp_path, **how)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["remove"], 2, "the first word must be add or list"),
        ([], 2, "the first word must be add or list"),
        (["list", "--library", "nowhere"], 2, "nowhere is no library"),
        (["add", "--run", "r", "--text", "t"], 2, "r holds no run"),
        (["list"], 2, "give --library, or --run"),
        (["list", "--run", "r"], 2, "r/library is no library"),
        (["--help"], 0, "longrange library add --run RUN"),
    ],
)
def test_its_command_line(words: list[str], status: int, said: str) -> None:
    called = [sys.executable, "-m", "lm.library", *words]
    done = subprocess.run(called, capture_output=True, text=True, check=False)
    assert done.returncode == status
    shown = done.stdout + done.stderr
    assert said in shown and "Traceback" not in shown


def test_short_files_are_passed_over(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (books := tmp_path / "books").mkdir()
    (books / "a.txt").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 tokens, less than a segment of 8"):
        library.add(trained_run, books, LibraryConfig(opening=OPENING), tmp_path / "shelf")
    (books / "b.txt").write_bytes(b"as short")
    (books / "b.txt").write_bytes(b"tiny")
    with pytest.raises(ValueError, match=r"no file of .* has a whole segment of tokens"):
        library.add(trained_run, books, LibraryConfig(opening=OPENING), tmp_path / "shelf")
    assert not (tmp_path / "shelf").exists()
    (books / "c.txt").write_bytes(BOOKS[min(BOOKS)])
    (books / "d.txt").write_bytes("wide".encode("utf-16"))
    with pytest.raises(ValueError, match=r"d\.txt"):
        library.add(trained_run, books, LibraryConfig(opening=OPENING), tmp_path / "shelf")
    assert not (tmp_path / "shelf").exists()
    (books / "d.txt").unlink()
    library.add(trained_run, books, LibraryConfig(opening=OPENING), tmp_path / "shelf")
    shown = capsys.readouterr()
    assert "a.txt is shorter than a segment and enters no memory" in shown.err
    assert "c.txt" in shown.out and "a.txt" not in shown.out


def test_memories_of_one_segment_have_no_room_for_an_opening(
    trained_run: Path, tmp_path: Path
) -> None:
    reading = LibraryConfig(opening=1, memory=8, compressed=0)
    (book := tmp_path / "a.txt").write_bytes(BOOKS[min(BOOKS)])
    with pytest.raises(ValueError, match="give a shorter --segment or a longer --memory"):
        library.add(trained_run, book, reading, tmp_path / "shelf")


def test_candidates_of_nothing(trained_run: Path) -> None:
    with pytest.raises(ValueError, match="--library-candidates has no effect without --library"):
        generate.main(trained_run, GenerateConfig(prompt="a", library_candidates=5))
    with pytest.raises(ValueError, match="library_candidates has no effect without --library"):
        ProgramConfig(library_candidates=5)


def test_a_long_beginning_is_warned_of(
    trained_run: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.main(trained_run, GenerateConfig(prompt="a" * 16, tokens=1), library=shelf)
    assert "16 tokens to begin with take all slots" in capsys.readouterr().err


def test_a_text_that_goes_on_is_found_by_the_whole(loaded: LoadedRun, shelf: Path) -> None:
    found = Library(shelf, loaded)
    whole = inputs(loaded, BOOKS["third.txt"])
    size = whole.shape[1] // 8 * 8
    hidden, _ = loaded.predictor.read(whole[:, :size], loaded.predictor.begin(1))
    keys = found.store.keys_BRD[0, :6].view(3, 2, -1)
    number = [episode.name for episode in found.episodes].index("third.txt")
    torch.testing.assert_close(keys[number, 1], hidden[0].mean(dim=0), rtol=1e-4, atol=1e-5)


def test_keys_are_means_of_hidden_states(loaded: LoadedRun) -> None:
    ids = np.frombuffer(BOOKS["first.txt"], dtype=np.uint8)
    hidden, _ = loaded.predictor.read(
        inputs(loaded, BOOKS["first.txt"])[:, :OPENING], loaded.predictor.begin(1)
    )
    torch.testing.assert_close(key_of(loaded.predictor, ids, OPENING), hidden[0].mean(dim=0))


def test_which_of_them_is_taken() -> None:
    """The nearest, unless another is more than the margin better."""
    assert taken([5.0]) == 0
    assert taken([5.0, 4.0, 2.0]) == 0
    assert taken([5.0, 1.9, 2.0]) == 1
    assert taken([5.0, 1.9, 1.8]) == 2
    assert taken([1.0, 5.0]) == 0


TEXTS = [b"the long book of memory was", b"0123 zzzz the yyyy", b"qqqqqqqq", b"wwww vvvv", b"I"]


@pytest.mark.parametrize("candidates", [1, 2, 8])
def test_the_memory_that_tells_the_opening_best_is_taken(
    loaded: LoadedRun, shelf: Path, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    """Against one reading after the other of all candidates and of none."""
    monkeypatch.setattr(episodes, "MARGIN", 0.0)
    found, predictor = Library(shelf, loaded, candidates), loaded.predictor
    keys, choices = found.store.keys_BRD[0, :6], set()
    for text in TEXTS:
        ids, opening = np.frombuffer(text, dtype=np.uint8), text[:OPENING]
        squares = (keys - key_of(predictor, ids, OPENING)).square().sum(dim=1).view(3, 2)
        near = squares.amin(dim=1).argsort()[:candidates].tolist()
        assert found.nearest(ids) == near
        begun = [*(after(loaded, found.episodes[number].name) for number in near)]
        nats = []
        for state in [*begun, predictor.begin(1)]:
            hidden, _ = predictor.read(inputs(loaded, opening[:-1]), state)
            nats.append(float(predictor.nats(hidden, torch.tensor([[*opening]])).sum()))
        choice, best = found.choose(ids), int(np.argmin(nats))
        assert choice.number == [*near, None][best] and choice.nearest == near[0]
        told = 0 if choice.number is None else best
        assert choice.saved == pytest.approx(nats[-1] - nats[told], abs=1e-4)
        choices.add("none" if choice.number is None else "nearest" if best == 0 else "another")
        (said,) = found.begun([ids])[1]
        assert said.startswith("no memory" if choice.number is None else "the memory of ")
    assert "none" in choices and (candidates == 1 or "another" in choices)


def test_one_that_no_memory_tells_better_goes_on_as_it_is(
    trained_run: Path, loaded: LoadedRun, shelf: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """In a score and in writing, beside one that a memory is found for."""
    monkeypatch.setattr(
        Library, "choose", lambda self, ids: Choice(None if ids[0] == ord("0") else 1, 1, -2.0)
    )
    texts, nats = [BOOKS["third.txt"][:40], b"0123 zzzz !!!! the 0123 zzzz"], {}
    split, shelved = split_of(loaded.vocabulary, texts), Library(shelf, loaded)
    config = ScoringConfig(lanes=1, warmup=64, reset_documents=True)
    for scorer in (
        RecallingScorer(shelved, split, config),
        Scorer(loaded.predictor, split, config),
    ):
        for _ in scorer:
            pass
        nats[type(scorer)] = scorer.document_nats
    assert nats[RecallingScorer][0] != nats[Scorer][0]
    assert nats[RecallingScorer][1] == nats[Scorer][1]
    ids = [np.frombuffer(text, dtype=np.uint8) for text in texts]
    both, _ = shelved.begun(ids)
    nothing = loaded.predictor.begin(1).memory.tensors()
    for name, tensor in shelved.memory(1).tensors().items():
        assert torch.equal(both.select([0]).memory.tensors()[name], tensor)
        assert torch.equal(both.select([1]).memory.tensors()[name], nothing[name])
    asked = GenerateConfig(prompt=texts[1].decode(), tokens=1)
    generate.main(trained_run, asked, library=shelf)
    assert "begins with no memory (the nearest, of " in capsys.readouterr().err
    assert ", costs its opening 2.0 nats)" in shelved.spoken(Choice(None, 1, -2.0))


def test_how_many_are_tried_stands_in_the_protocol(
    trained_run: Path, shelf: Path, tmp_path: Path
) -> None:
    where = tmp_path / "score.json"
    for asked, told in ((None, 8), (2, 2)):
        how = ProgramConfig(lanes=2, reset_documents=True, library=shelf, library_candidates=asked)
        score.main(trained_run, how, json=where, compare=False)
        assert read_result(where)["protocol"]["candidates"] == told
