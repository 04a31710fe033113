"""The harness's model: agrees with the scorer in any batch, and answers the command line."""

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from data.tokenizers.registry import ByteTokenizer, WordTokenizer
from eval.harness import register
from eval.harness_model import LongRangeLM
from lm.inference.inference_config import SamplingConfig, ScoringConfig
from lm.inference.session import Session, Writing
from lm.scoring import score
from tests.hub_tokenizers import TEMPLATE
from tests.texts import TEXT, split_of

DOCUMENTS = [TEXT.decode()[:411], "a word", TEXT.decode()[50:350], ""]


@pytest.fixture(scope="module")
def model(trained_run: Path) -> LongRangeLM:
    register()
    return get_model("longrange").create_from_arg_string(
        f"run={trained_run},batch_size=3", {"device": "cpu", "max_batch_size": None}
    )


def ask(kind: str, *arguments: object) -> Instance:
    return Instance(kind, {}, arguments, 0)


def test_documents_cost_what_the_scorer_says(model: LongRangeLM) -> None:
    found = model.loglikelihood_rolling([ask("loglikelihood_rolling", d) for d in DOCUMENTS])
    split = split_of(ByteTokenizer(), [d.encode() for d in DOCUMENTS])
    expected = score(
        model.loaded.predictor, split, ScoringConfig(lanes=1, reset_documents=True)
    ).document_nats
    np.testing.assert_allclose(found, -expected, rtol=1e-5)
    # A document longer than the model's whole range uses what went before its window.
    assert len(DOCUMENTS[0]) > model.loaded.model.config.range


def test_numbers_that_are_none_are_not_reported(
    model: LongRangeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, nan = type(model.loaded.predictor), float("nan")
    logits = kind.logits
    monkeypatch.setattr(kind, "logits", lambda self, hidden: logits(self, hidden) * nan)
    with pytest.raises(ValueError, match="not finite numbers, so there is nothing to report"):
        model.loglikelihood_rolling([ask("loglikelihood_rolling", "a text")])
    with pytest.raises(ValueError, match="not finite numbers, so there is nothing to report"):
        model.loglikelihood([ask("loglikelihood", "a", " text")])


def test_continuations_are_parts_of_documents(model: LongRangeLM) -> None:
    """log p(context) + log p(continuation | context) = log p(both), in any company."""
    texts = [("a long book ", "of memory"), ("a long book ", "x"), ("", "the"), (DOCUMENTS[0], "a")]
    texts += [("a long book " * 9, "of memory and time")]
    together = model.loglikelihood([ask("loglikelihood", *pair) for pair in texts])
    for pair, (found, greedy) in zip(texts, together, strict=True):
        whole, before = model.loglikelihood_rolling(
            [ask("loglikelihood_rolling", text) for text in (pair[0] + pair[1], pair[0])]
        )
        assert found == pytest.approx(whole - before, rel=1e-4, abs=1e-4)
        alone = model.loglikelihood([ask("loglikelihood", *pair)])[0]
        assert alone[0] == pytest.approx(found, rel=1e-5) and alone[1] == greedy


def test_choices_are_told_apart_where_tokens_lose_the_text(model: LongRangeLM) -> None:
    """Of unknown words and other spacing too, the continuation is scored and nothing else."""
    words = WordTokenizer.build(Counter([b"the", b"cat", b"yes", b"no"]))
    lossy = copy.copy(model)
    lossy.loaded = replace(model.loaded, vocabulary=words)
    for context in ("the cat", "the internationalisation", "", "the  cat\t"):
        for choice in ("yes", "no", "cat"):
            before, asked = lossy._split(context, f" {choice}")
            assert words.decode(asked) == f" {choice}".encode()
            assert np.array_equal(before, words.encode(context.encode()))
    with pytest.raises(
        ValueError, match=r"the vocabulary words-\d+ has no token for ' \\t', so it"
    ):
        lossy._split("the cat", " \t")


def test_greedy_continuations_are_known_as_such(model: LongRangeLM) -> None:
    settings = {"until": ["\n\n\n"], "max_gen_toks": 12}
    contexts = ["a long book ", "of memory and time, " * 20, ""]
    texts = model.generate_until([ask("generate_until", c, settings) for c in contexts])
    pairs = [ask("loglikelihood", c, t) for c, t in zip(contexts, texts, strict=True)]
    assert all(len(text.encode(errors="replace")) >= 12 for text in texts)
    if all("\ufffd" not in text for text in texts):
        assert all(greedy for _, greedy in model.loglikelihood(pairs))
    wrong = [ask("loglikelihood", c, "\x01" + t) for c, t in zip(contexts, texts, strict=True)]
    assert not any(greedy for _, greedy in model.loglikelihood(wrong))


def test_generation_stops_where_it_is_told(model: LongRangeLM) -> None:
    free = {"until": [], "max_gen_toks": 30}
    (text,) = model.generate_until([ask("generate_until", "the ", free)])
    stop = text[4:6]
    (short,) = model.generate_until([ask("generate_until", "the ", free | {"until": [stop]})])
    assert short == text[: text.index(stop)]
    drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_gen_toks": 30}
    first, second = model.generate_until([ask("generate_until", "the ", drawn)] * 2)
    assert first != second
    greedy = free | {"top_p": 0.9, "temperature": 0.0}
    assert model.generate_until([ask("generate_until", "the ", greedy)]) == [text]


@pytest.fixture(scope="module")
def chatting(hf_run: Path) -> LongRangeLM:
    """Of a run whose tokenizer carries a chat template."""
    register()
    return get_model("longrange")(run=str(hf_run), batch_size=2)


def test_conversations_are_read_as_transformers_makes_them(chatting: LongRangeLM) -> None:
    """A question, an answer that is begun, and a choice, in special tokens where they are meant."""
    vocabulary: Any = chatting.loaded.vocabulary
    said = [{"role": "user", "content": "What is a cat?"}]
    asked = chatting.apply_chat_template(said)
    assert asked == "<|start|>user\nWhat is a cat?<|end|>\n<|start|>assistant\n"
    begun = [*said, {"role": "assistant", "content": "A house"}]
    unfinished = chatting.apply_chat_template(begun, add_generation_prompt=False)
    assert unfinished == f"{asked}A house"
    assert chatting.chat_template(True) == TEMPLATE and chatting.chat_template(False) is None

    expected = vocabulary.encode_marked(asked)
    start, end = vocabulary.special["bos"], vocabulary.special["eos"]
    assert expected.tolist().count(start) == 2 and expected.tolist().count(end) == 1
    session = Session.begin(chatting.loaded.predictor, 1)
    # The token that precedes every text is the template's first.
    assert expected[0] == start
    session.read([expected[1:]])
    greedy = {"until": [], "max_gen_toks": 7, "temperature": 0.0}
    (written,) = session.repeat(1).write(Writing(SamplingConfig(0.0), 7, [0], (), frozenset([end])))
    found = chatting.generate_until([ask("generate_until", asked, greedy)])
    assert found == [written.decode(errors="replace")]

    choices = [ask("loglikelihood", asked, text) for text in ("A house", "the cat")]
    for choice, (nats, _) in zip(choices, chatting.loglikelihood(choices), strict=True):
        ids = vocabulary.encode(choice.args[1].encode())
        (cost,), _ = chatting._read_scored(session.repeat(1), [ids.astype(np.int64)])
        assert nats == pytest.approx(-cost, rel=1e-5)


def test_an_answer_ends_where_the_model_ends_it(
    chatting: LongRangeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of text without a template too; what would follow is not written."""
    predictor, vocabulary = chatting.loaded.predictor, chatting.loaded.vocabulary
    end, settings = vocabulary.special["eos"], {"until": [], "max_gen_toks": 9}
    logits, calls = type(predictor).logits, []

    def ending(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(hidden)
        found = logits(self, hidden)
        found[..., end] = 1e4 if len(calls) > 3 else -1e4
        return found

    for context in ("The cat", "<|start|>user\nThe cat<|end|>\n"):
        calls.clear()
        monkeypatch.setattr(type(predictor), "logits", ending)
        ended = chatting.generate_until([ask("generate_until", context, settings)])
        monkeypatch.setattr(type(predictor), "logits", logits)
        on = chatting.generate_until([ask("generate_until", context, settings)])
        assert ended[0] and on[0].startswith(ended[0]) and len(on[0]) > len(ended[0])


@pytest.mark.bad_input("eval.harness")
def test_templates_that_are_not_there(model: LongRangeLM, chatting: LongRangeLM) -> None:
    with pytest.raises(ValueError, match="bytes-256 carries no chat template; leave --apply_chat"):
        model.chat_template(True)
    with pytest.raises(ValueError, match="bytes-256 carries no chat template; leave --apply_chat"):
        model.apply_chat_template([{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="no chat template 'tools' but its tokenizer's own"):
        chatting.chat_template("tools")
    with pytest.raises(ValueError, match=r"cannot be used .*; leave --apply_chat_template out"):
        chatting.apply_chat_template([{"role": "user"}, {"nothing": "a"}], False)


def test_mistakes(trained_run: Path) -> None:
    with pytest.raises(ValueError, match="no argument parallelize"):
        LongRangeLM(str(trained_run), parallelize="true")
    # Those of tasks that size their own texts.
    LongRangeLM(str(trained_run), tokenizer="folder", pretrained="other")
    with pytest.raises(ValueError, match="number of texts, not auto"):
        LongRangeLM(str(trained_run), batch_size="auto")
    with pytest.raises(ValueError, match="holds no run"):
        LongRangeLM("nowhere")


TASKS = {
    "rolling.yaml": """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.json}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "choice.yaml": """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.json}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [" memory", " time"]
doc_to_target: 0
metric_list: [{metric: acc}]
""",
    "write.yaml": """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.json}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "a"
generation_kwargs: {until: [" "], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
""",
}


@pytest.mark.slow
def test_the_harness_s_own_command_line(trained_run: Path, tmp_path: Path) -> None:
    for name, text in TASKS.items():
        (tmp_path / name).write_text(text.replace("FOLDER", str(tmp_path)))
    documents = [d for d in DOCUMENTS if d]
    lines = [json.dumps({"text": text}) for text in documents]
    (tmp_path / "texts.json").write_text("\n".join(lines))
    command = [sys.executable, "-m", "eval.harness", "run", "--model", "longrange"]
    command += ["--model_args", f"run={trained_run}", "--include_path", str(tmp_path)]
    command += ["--tasks", "local_rolling,local_choice,local_write", "--batch_size", "2"]
    command += ["--output_path", str(tmp_path / "results.json")]
    offline = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_DATASETS_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=offline)
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.rglob("results*.json")
    found = json.loads(file.read_text())["results"]
    split = split_of(ByteTokenizer(), [d.encode() for d in documents])
    register()
    run = get_model("longrange")(run=str(trained_run)).loaded.predictor
    expected = score(run, split, ScoringConfig(lanes=1, reset_documents=True)).bits_per_byte
    assert found["local_rolling"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert 0 <= found["local_choice"]["acc,none"] <= 1
    assert "exact_match,none" in found["local_write"]


def test_computes_where_and_in_what_it_is_told(trained_run: Path) -> None:
    model = LongRangeLM(str(trained_run), precision="bfloat16", device="cpu:0")
    assert model.loaded.model.embedding.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16"):
        LongRangeLM(str(trained_run), precision="x")
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, mps"):
        LongRangeLM(str(trained_run), device="tpu")
