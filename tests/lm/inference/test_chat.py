"""Conversations by a chat template: what is read is what transformers would make of all of it."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data.tokenizers.hub_files import HubFiles
from data.tokenizers.registry import ByteTokenizer, HuggingFaceTokenizer
from lm import generate
from lm.inference.chat import ChatTemplate, Conversation, conversation_of, template_of
from lm.inference.inference_config import GenerateConfig
from lm.inference.loading import load_run
from lm.inference.session import Session, Writing
from tests.hub_tokenizers import TEMPLATE, write_tokenizer

TALK = GenerateConfig(interactive=True, system="Be brief.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer("llama3", tmp_path_factory.mktemp("chat"), template=True)


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.read(folder)


def begun(vocabulary: HuggingFaceTokenizer, config: GenerateConfig, fresh: bool) -> Conversation:
    talk = conversation_of(vocabulary, config, fresh)
    assert talk is not None
    return talk


@pytest.mark.parametrize("ended", [True, False])
def test_turns_are_read_once_and_make_the_whole(
    vocabulary: HuggingFaceTokenizer, folder: Path, ended: bool
) -> None:
    talk = begun(vocabulary, TALK, True)
    end = vocabulary.special["eos"]
    assert talk.ends == {end}
    read = [vocabulary.start]
    turns = [("What's a cat?", "A house."), ("And\na dog?", "naïve"), ("", "more")]
    for question, answer in turns:
        read += talk.asked(question).tolist() + vocabulary.encode(answer.encode()).tolist()
        closing = talk.answered(answer, ended).tolist()
        read += [end] if ended else closing
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    whole = theirs.apply_chat_template(talk.messages, tokenize=True, return_dict=False)
    assert len(talk.messages) == 7
    # The template's line end behind the last answer is read with the next question.
    assert read == whole[: len(read)]
    assert vocabulary.decode(np.array(whole[len(read) :])) == b"\n"


def test_words_that_spell_a_special_token_are_text(vocabulary: HuggingFaceTokenizer) -> None:
    talk = begun(vocabulary, GenerateConfig(interactive=True), True)
    words = "what does <|end|> mean?"
    ids = talk.asked(words)
    marks = [vocabulary.special["bos"], vocabulary.special["eos"]]
    # One that ends the question, and one that begins the answer.
    assert [i for i in ids.tolist() if i in marks] == marks[::-1]
    assert words.encode() in vocabulary.decode(ids)


def test_a_chat_after_other_text_begins_whole(vocabulary: HuggingFaceTokenizer) -> None:
    fresh, later = (begun(vocabulary, TALK, fresh).asked("a") for fresh in (True, False))
    assert later[0] == vocabulary.start and np.array_equal(later[1:], fresh)


def test_templates_lie_in_three_places(vocabulary: HuggingFaceTokenizer) -> None:
    def carrying(files: dict[str, bytes]) -> HuggingFaceTokenizer:
        spec = json.loads(vocabulary.files["tokenizer.json"])
        own = {"tokenizer.json": vocabulary.files["tokenizer.json"]}
        return HuggingFaceTokenizer(HubFiles(own | files, spec, vocabulary.special))

    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    settings = json.dumps({"chat_template": named}).encode()
    for given in (vocabulary, carrying({"tokenizer_config.json": settings})):
        form = template_of(given)
        assert form is not None and form.template == TEMPLATE
    other = template_of(carrying({"chat_template.jinja": b"y"}))
    assert other is not None and other.template == "y"
    assert template_of(carrying({})) is None and template_of(ByteTokenizer()) is None


@pytest.mark.bad_input("lm.generate")
@pytest.mark.parametrize("options", [{"chat": True}, {"system": "a"}])
def test_a_chat_needs_a_template(options: dict[str, Any]) -> None:
    config = GenerateConfig(interactive=True, **options)
    with pytest.raises(ValueError, match="bytes-256 carries no chat template; leave"):
        conversation_of(ByteTokenizer(), config, True)


@pytest.mark.bad_input("lm.generate")
def test_a_template_may_refuse(vocabulary: HuggingFaceTokenizer) -> None:
    refusing = "{{ raise_exception('no system') }}"
    with pytest.raises(ValueError, match=r"cannot be used \(no system\); leave --system out"):
        Conversation(ChatTemplate(vocabulary, refusing), True)


@pytest.mark.bad_input("lm.generate")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"chat": True}, "no effect without --interactive"),
        ({"system": "a"}, "no effect without --interactive"),
        ({"interactive": True, "chat": False, "system": "a"}, "no effect with --chat false"),
    ],
)
def test_options_without_effect(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        GenerateConfig(**options)


def talked(run: Path, lines: str | bytes, memory: Path | None = None, **options: Any) -> str:
    lines = lines.encode() if isinstance(lines, str) else lines
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        patch.setattr(sys, "stdout", out)
        generate.main(run, replace(TALK, temperature=0, tokens=12, **options), save_memory=memory)
    return out.getvalue()


def test_a_run_answers_in_turns(hf_run: Path) -> None:
    """The program writes what a session writes that has read the same turns."""
    loaded = load_run(hf_run)
    vocabulary: Any = loaded.vocabulary
    config = replace(TALK, temperature=0, tokens=12)
    talk = begun(vocabulary, config, True)
    session = Session.begin(loaded.predictor, 1)
    expected = []
    for line in ("the book", "and time"):
        session.read([talk.asked(line)])
        (answer,) = session.write(Writing(config, 12, [0], (), talk.ends))
        session.read([talk.answered(answer.decode(errors="replace"), bool(session.ended))])
        expected.append(answer.decode(errors="replace"))
    assert talked(hf_run, "the book\nand time\n") == "".join(f"{text}\n" for text in expected)
    plain = talked(hf_run, "the book\nand time\n", chat=False, system=None)
    assert plain != "".join(f"{text}\n" for text in expected)


def test_a_line_that_is_no_text_loses_nothing(hf_run: Path, tmp_path: Path) -> None:
    """What was said before it is kept, as where the input ends."""
    with pytest.raises(ValueError, match="the line"):
        talked(hf_run, b"the book\n\xff\xfe\n", tmp_path / "broken")
    talked(hf_run, "the book\n", tmp_path / "whole")
    kept, whole = (load_file(tmp_path / name) for name in ("broken", "whole"))
    assert kept.keys() == whole.keys() and len(kept) > 3
    assert all(torch.equal(tensor, whole[name]) for name, tensor in kept.items())


def test_writing_stops_at_a_token(hf_run: Path) -> None:
    loaded = load_run(hf_run)
    session = Session.begin(loaded.predictor, 2)
    how = Writing(GenerateConfig(temperature=0), 6, [0, 1])
    first = int(session.logits()[0].argmax())
    stopped = session.repeat(1)
    assert stopped.write(replace(how, ends=frozenset([first]))) == [b"", b""]
    assert stopped.ended == {0, 1}
    assert session.ended == frozenset()
