"""What a run that was adopted from a pretrained model looks up, whose tokens are bytes or those of
a tokenizer of the Hugging Face hub: memories of whole texts, and what was read.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards, open_shards
from eval import adapt, compress, score
from eval.adapt_results import Adapted
from eval.eval_config import ADAPT_METHODS, AdaptConfig, CodingConfig, ProgramConfig
from eval.results import read_result
from lm import adopt, generate, library
from lm.inference import episodes
from lm.inference.episodes import Library, inputs_of
from lm.inference.inference_config import GenerateConfig, LookupConfig
from lm.inference.loading import LoadedRun, load_run
from lm.inference.predictor import ModelState
from lm.library import LibraryConfig
from tests.hub_tokenizers import LINES, write_tokenizer
from tests.lm.pretrained import SHORT, SIZES, saved
from tests.runs import WORDS

BOOKS = {
    "cats.txt": "".join(line for line in LINES if "cat" in line)[:900],
    "words.txt": " ".join(WORDS * 12),
    "digits.txt": " ".join(f"{number * 7919:,}" for number in range(90)),
}
OPENING = 8


@dataclass(frozen=True)
class Ready:
    """A run, shards in its vocabulary, and a library of three books."""

    run: Path
    shards: Shards
    shelf: Path
    loaded: LoadedRun


@pytest.fixture(scope="module", params=["bytes", "hub"])
def adopted(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Ready:
    """Tests must not change it."""
    place = tmp_path_factory.mktemp(request.param)
    model = models["Llama"]
    if request.param == "hub":
        # More rows than the tokenizer has tokens, as many models have.
        sizes = LlamaConfig(**SIZES | {"vocab_size": 700, "tie_word_embeddings": True})
        model = saved(sizes, place / "model", torch.float32)
        (model / "vocabulary.json").unlink()
        write_tokenizer("llama3", model)
    adopt.main(str(model), place / "run", SHORT)
    for split in ("train", "validation", "test"):
        (place / "text" / split).mkdir(parents=True)
        for name, text in BOOKS.items():
            (place / "text" / split / name).write_text(f"{text} {split}\n")
    own = place / "run" if request.param == "hub" else None
    config = DataConfig("text", place / "shards", str(place / "text"), vocabulary_from=own)
    prepare(config, workers=1)
    (place / "books").mkdir()
    for name, text in BOOKS.items():
        (place / "books" / name).write_text(text)
    shelf = place / "library"
    library.add(place / "run", place / "books", LibraryConfig(opening=OPENING), shelf)
    return Ready(place / "run", open_shards(place / "shards"), shelf, load_run(place / "run"))


def after(loaded: LoadedRun, name: str) -> ModelState:
    """What all whole segments of a book leave."""
    ids = loaded.vocabulary.encode(BOOKS[name].encode())
    inputs_1T, predictor = inputs_of(loaded.predictor, ids), loaded.predictor
    whole = inputs_1T.shape[1] // predictor.segment * predictor.segment
    return predictor.read(inputs_1T[:, :whole], predictor.begin(1))[1]


@pytest.fixture
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest memory is taken: which one tells an opening best is chance in random weights."""
    monkeypatch.setattr(episodes, "MARGIN", 1e9)


@pytest.mark.usefixtures("nearest")
@pytest.mark.parametrize("name", BOOKS)
def test_memory_of_a_book_is_found_and_gone_on_from(
    adopted: Ready, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pinned first tokens and all: what follows is predicted as behind the whole book."""
    loaded, found = adopted.loaded, Library(adopted.shelf, adopted.loaded)
    ids = loaded.vocabulary.encode(BOOKS[name][:120].encode())
    state, (said,) = found.begun([ids])
    assert said.startswith(f"the memory of {name}, which saves its opening ")
    expected = after(loaded, name)
    for key, tensor in expected.memory.tensors().items():
        torch.testing.assert_close(state.memory.tensors()[key], tensor, rtol=1e-4, atol=1e-5)
    assert "sinks" in {key.partition(".")[0] for key in state.memory.tensors()}
    inputs_1T = inputs_of(loaded.predictor, ids)
    (one, _), (other, _) = (loaded.predictor.read(inputs_1T, each) for each in (state, expected))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    library.show(adopted.shelf)
    tokens = len(loaded.vocabulary.encode(BOOKS[name].encode()))
    shown = capsys.readouterr().out
    assert f"{tokens:,} tokens" in shown and name in shown


@pytest.mark.usefixtures("nearest")
def test_it_is_written_from_there(
    adopted: Ready, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = BOOKS["words.txt"][:60]
    plain = GenerateConfig(prompt=prompt, tokens=12, temperature=0)
    generate.main(adopted.run, plain, out=tmp_path / "plain")
    generate.main(adopted.run, plain, library=adopted.shelf, out=tmp_path / "recalled")
    assert "begins with the memory of words.txt" in capsys.readouterr().err
    assert (tmp_path / "plain").read_bytes() != (tmp_path / "recalled").read_bytes()
    loaded, written = adopted.loaded, []
    ids = loaded.vocabulary.encode(prompt.encode())
    hidden, state = loaded.predictor.read(
        inputs_of(loaded.predictor, ids), after(loaded, "words.txt")
    )
    for _ in range(12):
        written.append(int(loaded.predictor.logits(hidden)[0, -1].argmax()))
        hidden, state = loaded.predictor.read(torch.tensor([written[-1:]]), state)
    text = loaded.vocabulary.decode(torch.tensor(written).numpy())
    assert (tmp_path / "recalled").read_bytes() == prompt.encode() + text


@pytest.mark.usefixtures("nearest")
def test_a_split_is_scored_with_it(adopted: Ready, tmp_path: Path) -> None:
    """Each document goes on after its own book, and is found by what it is about."""
    values = {}
    for name, shelf in (("plain", None), ("recalled", adopted.shelf)):
        config = ProgramConfig(lanes=2, reset_documents=True, library=shelf)
        where = tmp_path / f"{name}.json"
        path = Path(adopted.shards.path)
        score.main(adopted.run, config, "test", path, json=where, compare=False)
        values[name] = read_result(where)
    assert values["recalled"]["protocol"]["opening"] == OPENING
    tokens = {value["protocol"]["tokens"] for value in values.values()}
    assert tokens == {len(adopted.shards.split("test").tokens)}
    assert values["recalled"]["nats"] != values["plain"]["nats"]


def test_what_was_read_is_looked_up(adopted: Ready, tmp_path: Path) -> None:
    config = AdaptConfig(
        lanes=2,
        capacity=(24,),
        neighbours=(4,),
        sharpness=(8.0,),
        temperature=(0.3,),
        share=(0.3,),
        kernel=("inverse",),
        softness=(0.1,),
        rate=(1.0,),
        lrs=(1e-3,),
        limit=6,
    )
    file, path = tmp_path / "adapt.json", Path(adopted.shards.path)
    adapt.main(adopted.run, config, "test", path, json=file)
    ways = {way["method"]: way for way in read_result(file, Adapted)["adapt"]["ways"]}
    assert [*ways] == ["fixed", *ADAPT_METHODS]
    values = {name: way["value"] for name, way in ways.items()}
    # A random model learns from anything that it has read.
    for name in ("cache", "knn", "mbpa", "dynamic"):
        assert values[name] < values["fixed"], name
    # A vocabulary of bytes is taken from no run.
    of_bytes = adopted.loaded.vocabulary.kind == "bytes"
    option = "--vocabulary bytes" if of_bytes else "--vocabulary-from .*/run"
    with pytest.raises(ValueError, match=rf"knows no shards: .*data.prepare {option}\)"):
        adapt.main(adopted.run, config, "test", json=file)


@pytest.mark.parametrize("method", ["cache", "mbpa", "mbpa+knn"])
def test_a_file_made_smaller_with_it_comes_back(
    adopted: Ready, tmp_path: Path, method: str
) -> None:
    text, coding = tmp_path / "text", CodingConfig(adapt=LookupConfig(method, capacity=40))
    text.write_text(BOOKS["cats.txt"][:300])
    compress.main(adopted.run, text, tmp_path / "small", coding=coding)
    compress.main(adopted.run, tmp_path / "small", tmp_path / "back", True, coding=coding)
    assert (tmp_path / "back").read_bytes() == text.read_bytes()
