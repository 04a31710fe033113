"""Texts side by side: each lane gives what it gives alone, through many compressions, and memory
on disk is the same memory.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.common.files import hash_json
from data.common.tensors import TensorFile, save_tensors
from lm.inference.adapted import looking_up
from lm.inference.inference_config import Lengths, LookupConfig, SamplingConfig
from lm.inference.loading import LoadedRun, load_run
from lm.inference.memory_file import load_memory, save_memory
from lm.inference.model_hash import model_hash
from lm.inference.session import Session, Writing, encode
from lm.model.ranges import JOINED
from lm.model.transformer import CompressiveTransformer
from tests.damage import flips
from tests.lm.model.cases import SHAPES

GREEDY = SamplingConfig(temperature=0)
TEXTS = [b"the book of memory", b"a", b"and time was read by one who wrote it down " * 3, b"long"]


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> LoadedRun:
    """In float64, so that rounding decides no draw."""
    run = load_run(trained_run)
    return replace(run, model=run.model.double())


def begun(loaded: LoadedRun, texts: list[bytes]) -> Session:
    session = Session.begin(loaded.predictor, len(texts))
    session.read([encode(loaded.vocabulary, text, "it") for text in texts])
    return session


def forced(loaded: LoadedRun, text: bytes) -> torch.Tensor:
    """Logits of what follows every token of a text, by whole segments of the model's forward."""
    ids = torch.tensor([loaded.vocabulary.start, *text])
    segment = loaded.model.config.segment
    whole = torch.nn.functional.pad(ids, (0, -len(ids) % segment))
    memory, logits = loaded.model.empty_memory(1), []
    with torch.no_grad():
        for part in whole.split(segment):
            output = loaded.model(part[None], memory)
            memory = output.memory
            logits.append(output.predictions[0])
    return torch.cat(logits)[: len(ids)]


def test_greedy_is_the_argmax_of_teacher_forcing_past_ten_compressions(loaded: LoadedRun) -> None:
    texts = begun(loaded, TEXTS).write(Writing(GREEDY, 100, range(4)))
    for prompt, text in zip(TEXTS, texts, strict=True):
        choices = forced(loaded, prompt + text).argmax(-1)
        assert bytes(choices[len(prompt) : -1].tolist()) == text and len(text) == 100


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(), SamplingConfig(0.8, top_k=50, min_p=0.01, repetition_penalty=1.2)],
    ids=["plain", "filtered"],
)
def test_a_lane_writes_what_it_writes_alone(loaded: LoadedRun, config: SamplingConfig) -> None:
    """Also where its neighbours stop early."""
    stops = [bytes([value]) for value in range(0, 256, 16)]
    together = begun(loaded, TEXTS).write(Writing(config, 60, range(4), stops))
    for seed, (prompt, text) in enumerate(zip(TEXTS, together, strict=True)):
        assert begun(loaded, [prompt]).write(Writing(config, 60, [seed], stops)) == [text]
    assert len({len(text) for text in together}) > 1


def test_samples_of_one_text_read_it_once(loaded: LoadedRun, monkeypatch) -> None:
    session = begun(loaded, TEXTS[2:3])
    monkeypatch.setattr(Session, "read", None)
    copies = session.repeat(3)
    assert copies.state.reader.memory is session.state.reader.memory
    samples = copies.write(Writing(SamplingConfig(), 40, [5, 6, 7]))
    monkeypatch.undo()
    assert len(set(samples)) == 3
    assert begun(loaded, TEXTS[2:3]).write(Writing(SamplingConfig(), 40, [6])) == [samples[1]]
    assert session.write(Writing(SamplingConfig(), 40, [7])) == [samples[2]]


def test_a_session_goes_on_after_writing(loaded: LoadedRun) -> None:
    session = begun(loaded, [b"the"])
    (first,) = session.write(Writing(GREEDY, 21, [0]))
    session.read([np.frombuffer(b" book", dtype=np.uint8)])
    (second,) = session.write(Writing(GREEDY, 30, [0]))
    choices = forced(loaded, b"the" + first + b" book" + second).argmax(-1)
    assert bytes(choices[-31:-1].tolist()) == second


@pytest.mark.parametrize("count", [0, 5, 130])
def test_memory_on_disk_goes_on_bit_for_bit(loaded: LoadedRun, tmp_path: Path, count: int) -> None:
    session = begun(loaded, [(TEXTS[2] * 2)[:count]])
    save_memory(tmp_path / "book", session)
    back = load_memory(tmp_path / "book", loaded)
    assert torch.equal(back.logits(), session.logits())
    how = Writing(SamplingConfig(repetition_penalty=1.1), 50, [3])
    assert back.write(how) == session.write(how)
    assert torch.equal(back.logits(), session.logits())


@pytest.mark.parametrize("count", [0, 5, 130])
def test_what_is_looked_up_goes_to_disk_with_memory(
    loaded: LoadedRun, tmp_path: Path, count: int
) -> None:
    lookup = LookupConfig("mbpa+cache", capacity=30, neighbours=3, rate=3.0)
    session = Session.begin(looking_up(loaded.predictor, lookup), 1)
    session.read([np.frombuffer((TEXTS[2] * 2)[:count], dtype=np.uint8)])
    save_memory(tmp_path / "book", session)
    back = load_memory(tmp_path / "book", loaded, lookup)
    assert torch.equal(back.logits(), session.logits())
    how = Writing(SamplingConfig(), 50, [3])
    assert back.write(how) == session.write(how)
    assert torch.equal(back.logits(), session.logits())
    for other in (LookupConfig(), replace(lookup, share=0.2)):
        with pytest.raises(ValueError, match=r"give the same --adapt\.method"):
            load_memory(tmp_path / "book", loaded, other)


def test_memory_without_a_store_begins_one(loaded: LoadedRun, tmp_path: Path) -> None:
    """The next token is predicted as without it, and what is read from then on is found."""
    session = begun(loaded, [TEXTS[2]])
    save_memory(tmp_path / "book", session)
    back = load_memory(tmp_path / "book", loaded, LookupConfig("cache", capacity=30))
    assert torch.equal(back.logits(), session.logits())
    session.read([np.array([60])])
    back.read([np.array([60])])
    assert back.state.store.written_B.tolist() == [1]
    # The one entry says what followed, so the mixture gives it a tenth.
    expected = 0.9 * session.logits().softmax(-1)
    expected[0, 60] += 0.1
    torch.testing.assert_close(back.logits().softmax(-1), expected)


@pytest.mark.parametrize(
    "name", ["Transformer-XL", "memory in one layer", "most_used, memory longer", "attended zeros"]
)
def test_every_kind_of_model_has_its_memory_on_disk(
    loaded: LoadedRun, tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    model = CompressiveTransformer(SHAPES[name], 256).double().eval()
    other = replace(loaded, model=model)
    session = begun(other, [TEXTS[2][:38]])
    save_memory(tmp_path / "book", session)
    back = load_memory(tmp_path / "book", other)
    how = Writing(SamplingConfig(), 20, [3])
    assert back.write(how) == session.write(how)
    assert torch.equal(back.logits(), session.logits())


def test_memory_of_something_else_is_refused(
    loaded: LoadedRun, trained_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "book"
    save_memory(path, begun(loaded, [b"the book"]))
    other = replace(loaded, model=load_run(trained_run).model.double())
    load_memory(path, other)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-9
    with pytest.raises(ValueError, match="another model"):
        load_memory(path, other)
    longer = replace(loaded, model=load_run(trained_run, lengths=Lengths(memory=9)).model.double())
    with pytest.raises(ValueError, match="other lengths"):
        load_memory(path, longer)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        load_memory(path, loaded)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no memory"):
        load_memory(path, loaded)


def test_a_token_outside_the_vocabulary_is_refused(loaded: LoadedRun) -> None:
    with pytest.raises(ValueError, match="below 256"):
        begun(loaded, [b""]).read([np.array([3, 256])])


def test_a_flipped_bit_of_memory_is_not_read(loaded: LoadedRun, tmp_path: Path) -> None:
    path = tmp_path / "book"
    save_memory(path, begun(loaded, [TEXTS[2]]))
    for _ in flips(path, 12):
        with pytest.raises(ValueError, match=r"book .*(--save-memory|this one)$"):
            load_memory(path, loaded)
    load_memory(path, loaded)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lengths", torch.tensor([8])),
        ("lengths", torch.tensor([-1])),
        ("lengths", torch.tensor([1, 1])),
        ("lengths", None),
        ("last", torch.zeros(1, 3)),
        ("seen", torch.zeros(1, 256)),
        ("seen", torch.zeros(1, 255, dtype=torch.bool)),
        ("memory.0", torch.zeros(1, 3, 16)),
        ("memory.1", None),
        ("memory_count", torch.zeros(1)),
        ("open.inputs.0", None),
        ("open.key.1", torch.zeros(1)),
    ],
)
def test_memory_of_other_shapes_is_refused(
    loaded: LoadedRun, tmp_path: Path, name: str, value: torch.Tensor | None
) -> None:
    path = tmp_path / "book"
    save_memory(path, begun(loaded, [TEXTS[2]]))
    file = TensorFile(path, "")
    tensors = dict(file)
    del tensors[name]
    save_tensors(tensors if value is None else tensors | {name: value}, path, file.about)
    with pytest.raises(ValueError, match=r"book .*read the text again"):
        load_memory(path, loaded)


def test_the_hash_of_a_model_is_that_of_the_first_version(loaded: LoadedRun) -> None:
    """Settings that joined since do not count at their defaults, so old memory is known."""
    model, digest = loaded.model, sha256()
    first = repr(model.config)
    for name in (*JOINED, "backend"):
        first = first.replace(f", {name}={getattr(model.config, name)!r}", "")
    assert not any(f" {name}=" in first for name in JOINED)
    digest.update(hash_json({"config": first}).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.numpy().tobytes())
    assert model_hash(model) == digest.hexdigest()


def test_a_model_in_evaluation_mode_is_not_walked_for_each_token(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begun(loaded, [b"the "])
    monkeypatch.setattr(loaded.model, "train", lambda *_: pytest.fail("all modules were visited"))
    session.read([np.frombuffer(b" book", dtype=np.uint8)])
