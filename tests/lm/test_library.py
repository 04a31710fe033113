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
from lm.inference.episodes import KIND, Library, key_of
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
    assert found.episodes[found.find(ids)].name == name
    state, (said,) = found.begun([ids])
    assert said.startswith(f"the memory of {name}, similarity ")
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
        ({"prompt": "a", "library_similarity": 2.0}, "at most 1"),
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


def test_a_similarity_to_nothing(trained_run: Path) -> None:
    with pytest.raises(ValueError, match="--library-similarity has no effect without --library"):
        generate.main(trained_run, GenerateConfig(prompt="a", library_similarity=0.5))
    with pytest.raises(ValueError, match="library_similarity has no effect without --library"):
        ProgramConfig(library_similarity=0.5)


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


def test_a_memory_that_is_not_like_it_enough_is_left_out(
    trained_run: Path, loaded: LoadedRun, shelf: Path, tmp_path: Path, capsys
) -> None:
    """By the cosine of the keys: what is above goes on as before, what is below as with no library,
    beside each other and in a score.
    """
    texts = [BOOKS["third.txt"][:40], b"the 0123 zzzz !!!! the 0123 zzzz"]
    ids = [np.frombuffer(text, dtype=np.uint8) for text in texts]
    plain = Library(shelf, loaded)
    (alike, _), (other, cosine) = map(plain.nearest, ids)
    query, keys = key_of(loaded.predictor, ids[1], OPENING), plain.store.keys_BRD[0, :6]
    near = int((keys - query).square().sum(dim=1).argmin())
    assert other == near // 2
    assert cosine == pytest.approx(float(query @ keys[near] / query.norm() / keys[near].norm()))
    assert plain.nearest(ids[0])[1] == pytest.approx(1.0) and cosine < 0.9999
    strict = Library(shelf, loaded, similarity=0.9999)
    assert [strict.find(each) for each in ids] == [alike, None]
    assert plain.find(ids[1]) == other
    both, said = strict.begun(ids)
    one, nothing = both.select([0]).memory.tensors(), loaded.predictor.begin(1).memory.tensors()
    for name, tensor in plain.begun(ids[:1])[0].memory.tensors().items():
        assert torch.equal(one[name], tensor)
        assert torch.equal(both.select([1]).memory.tensors()[name], nothing[name])
    assert said[0].startswith("the memory of third.txt, similarity 1.0")
    assert said[1].startswith("no memory (the nearest is of ")
    split = split_of(loaded.vocabulary, texts)
    config = ScoringConfig(lanes=1, warmup=64, reset_documents=True)
    nats = {}
    for name, chosen in (("plain", plain), ("strict", strict), ("least", None)):
        scorer = (
            Scorer(loaded.predictor, split, config)
            if chosen is None
            else RecallingScorer(chosen, split, config)
        )
        for _ in scorer:
            pass
        nats[name] = scorer.document_nats
    assert nats["strict"][0] == nats["plain"][0] != nats["least"][0]
    assert nats["strict"][1] == nats["least"][1] != nats["plain"][1]
    # And by the programs.
    where = tmp_path / "score.json"
    for bound, same in ((-1.0, True), (1.0, False)):
        how = ProgramConfig(lanes=2, reset_documents=True, library=shelf, library_similarity=bound)
        score.main(trained_run, how, json=where, compare=False)
        assert read_result(where)["protocol"]["similarity"] == bound
        asked = GenerateConfig(prompt=texts[1].decode(), tokens=1, library_similarity=bound)
        capsys.readouterr()
        generate.main(trained_run, asked, library=shelf)
        assert ("begins with the memory of" in capsys.readouterr().err) == same
