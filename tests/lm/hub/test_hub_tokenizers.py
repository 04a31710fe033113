"""Tokenizers of exported folders: somebody's own, and the tokens that programs ask for by name."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from data.tokenizers.registry import HuggingFaceTokenizer, load_tokenizer
from lm import export, import_folder
from lm.inference.loading import load_run


@pytest.fixture(scope="module")
def exported(hf_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "folder"
    export.main(hf_run, folder)
    return folder


@pytest.fixture(scope="module")
def bytes_exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "folder"
    export.main(trained_run, folder)
    return folder


def test_a_folder_carries_the_tokenizer_of_its_model(exported: Path, hf_run: Path) -> None:
    vocabulary = load_run(hf_run).vocabulary
    assert isinstance(vocabulary, HuggingFaceTokenizer)
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    assert tokenizer.is_fast and tokenizer.chat_template
    assert tokenizer.bos_token == "<|start|>" and tokenizer.eos_token_id == vocabulary.ends[0]
    text = "The cat's book, and don't!\n\n naïve"
    ids = tokenizer(text)["input_ids"]
    assert ids == vocabulary.encode(text.encode()).tolist()
    assert tokenizer.decode(ids) == text
    batch = tokenizer(["a", text], padding=True)["input_ids"]
    assert batch[0][0] == tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_folder_with_such_a_tokenizer_becomes_a_run_again(
    exported: Path, hf_run: Path, tmp_path: Path
) -> None:
    import_folder.main(exported, tmp_path / "run")
    again, first = load_run(tmp_path / "run"), load_run(hf_run)
    assert again.vocabulary.hash == first.vocabulary.hash
    assert again.vocabulary.pieces == first.vocabulary.pieces
    assert torch.equal(again.model.embedding.weight, first.model.embedding.weight)
    assert again.config.data.vocabulary == "hf"
    export.main(tmp_path / "run", tmp_path / "second")
    assert load_tokenizer(tmp_path / "second").hash == first.vocabulary.hash


def test_our_own_tokenizers_have_a_beginning_and_an_end(bytes_exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bytes_exported, trust_remote_code=True)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("\n", 10)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<pad>", 256)
    # The beginning is text elsewhere, and is kept where special tokens are dropped.
    assert tokenizer.decode([97, 10, 98, 256], skip_special_tokens=True) == "a\nb"
    assert tokenizer.all_special_ids == [256]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "hf"])
def test_lm_eval_reads_an_exported_folder(
    kind: str, exported: Path, bytes_exported: Path, hf_run: Path, trained_run: Path
) -> None:
    """Its own class for models of transformers: log-likelihoods, documents, continuations."""
    pytest.importorskip("lm_eval", reason="needs lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder, run = (bytes_exported, trained_run) if kind == "bytes" else (exported, hf_run)
    lm: Any = HFLM(
        pretrained=str(folder), trust_remote_code=True, device="cpu", dtype="float32",
        batch_size=2, max_length=256,
        add_bos_token=False,
    )  # fmt: skip

    def asked(request: str, *arguments: Any) -> list[Any]:
        pairs = enumerate(arguments)
        return [Instance(request, {}, given, index) for index, given in pairs]  # type: ignore[arg-type]

    pairs = [("the book of", " memory"), ("", "a long book"), ("and", " time\n")]
    likelihoods = [cost for cost, _ in lm.loglikelihood(asked("loglikelihood", *pairs))]
    assert all(math.isfinite(cost) and cost < 0 for cost in likelihoods)
    text = "the book of memory was read by one"
    (rolling,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    # The same number as the run's own, whose context before a text is the tokenizer's bos.
    from eval.harness_model import LongRangeLM

    (own,) = LongRangeLM(str(run)).loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    assert rolling == pytest.approx(own, rel=1e-4)
    options = {"until": ["."], "max_gen_toks": 5, "do_sample": False}
    (written,) = lm.generate_until(asked("generate_until", ("the book", options)))
    assert isinstance(written, str)
