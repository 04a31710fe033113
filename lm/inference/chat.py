"""Conversations in the form that an instruct model learnt: its tokenizer's chat template."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.tokenizers.hub_files import NAMED, SETTINGS, TEMPLATE
from data.tokenizers.registry import HuggingFaceTokenizer, Tokenizer
from lm.inference.inference_config import GenerateConfig

WORDS, ANSWER = "\ue000\ue001\ue000", "\ue000\ue002\ue000"
"""Stand for what somebody says while a template is looked at; characters of private use."""


@dataclass(frozen=True)
class ChatTemplate:
    """How a tokenizer writes down what is said in a conversation."""

    vocabulary: HuggingFaceTokenizer
    template: str
    instead: str = "leave --system out, or give --chat false"
    """What to do where the template refuses."""

    @property
    def special(self) -> list[str]:
        """What special tokens say."""
        return special_names(self.vocabulary)

    @property
    def names(self) -> dict[str, str]:
        """Special tokens as templates know them."""
        special = self.vocabulary.special
        spelt = {special[name]: name for name in self.special}
        known = {name: spelt.get(special.get(name, -1)) for name in NAMED}
        return {f"{name}_token": token for name, token in known.items() if token is not None}

    def end(self, messages: Sequence[dict[str, str]] = ()) -> str:
        """The special token that ends an answer; empty where none does. messages: said before."""
        said = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": ANSWER}]
        after = self.render([*messages, *said], False).rpartition(ANSWER)[2].lstrip()
        found = [name for name in self.special if after.startswith(name)]
        return max(found, key=len, default="")

    def ends(self, end: str) -> frozenset[int]:
        """Tokens at which a model that was asked may stop."""
        own = [self.vocabulary.special[end]] if end else []
        return frozenset([*self.vocabulary.ends, *own])

    def render(
        self, messages: Sequence[dict[str, str]], ask: bool, unfinished: bool = False
    ) -> str:
        """The conversation as text.

        Args:
            messages: role and content of each.
            ask: an answer is to follow.
            unfinished: the last message is the beginning of one.

        Raises:
            ValueError: the template refuses them.
        """
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        try:
            texts, _ = render(
                conversations=[list(messages)],
                chat_template=self.template,
                add_generation_prompt=ask,
                continue_final_message=unfinished,
                **self.names,
            )
        except (TemplateError, TypeError, AttributeError, KeyError, ValueError) as error:
            raise ValueError(
                f"the tokenizer's chat template cannot be used ({error}); {self.instead}"
            ) from error
        return str(texts[0])


@dataclass
class Conversation:
    """What was said, and what a model reads of it: each turn once, after what it has read before.

    fresh: the model has read nothing but the context that precedes every text.
    """

    form: ChatTemplate
    fresh: bool
    messages: list[dict[str, str]] = field(default_factory=list)
    _end: str = ""

    def __post_init__(self) -> None:
        self._end = self.form.end(self.messages)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.form.ends(self._end)

    def asked(self, words: str) -> np.ndarray:
        """Ids of a question, with what leads to the answer; ValueError where the template refuses.

        A special token that the words spell stays text.
        """
        before, begun = [*self.messages], self.messages[-1:]
        later = bool(begun) and begun[0]["role"] == "assistant"
        if later:
            # What was read or written up to here is not read again.
            before[-1] = {"role": "assistant", "content": ANSWER}
        text = self.form.render([*before, {"role": "user", "content": WORDS}], True)
        if later:
            text = text.rpartition(ANSWER)[2]
            there = self._end and text.lstrip().startswith(self._end)
            text = text.lstrip().removeprefix(self._end) if there else text
        elif self.fresh:
            text = text.removeprefix(self.form.names.get("bos_token", ""))
        self.messages.append({"role": "user", "content": words})
        vocabulary = self.form.vocabulary
        if not any(name in words for name in self.form.special):
            return vocabulary.encode_marked(text.replace(WORDS, words))
        head, _, tail = text.partition(WORDS)
        own = vocabulary.encode(words.encode())
        around = vocabulary.encode_marked(head), vocabulary.encode_marked(tail)
        return np.concatenate([around[0], own, around[1]])

    def answered(self, words: str, ended: bool) -> np.ndarray:
        """Ids that close an answer, none if it has ended by itself."""
        self.messages.append({"role": "assistant", "content": words})
        return self.form.vocabulary.encode_marked("" if ended else self._end)


def special_names(vocabulary: Tokenizer) -> list[str]:
    """What the special tokens of a tokenizer of the hub say; others have none."""
    special = vocabulary.special if isinstance(vocabulary, HuggingFaceTokenizer) else {}
    return [name for name in special if name not in NAMED]


def template_of(vocabulary: Tokenizer) -> ChatTemplate | None:
    """The chat template that a tokenizer carries, if it does."""
    if not isinstance(vocabulary, HuggingFaceTokenizer):
        return None
    if TEMPLATE in vocabulary.files:
        return ChatTemplate(vocabulary, vocabulary.files[TEMPLATE].decode())
    settings: dict[str, Any] = json.loads(vocabulary.files.get(SETTINGS, b"{}"))
    given = settings.get("chat_template")
    if isinstance(given, list):
        named = {each.get("name"): each.get("template") for each in given}
        given = named.get("default")
    return ChatTemplate(vocabulary, given) if isinstance(given, str) else None


def conversation_of(
    vocabulary: Tokenizer, config: GenerateConfig, fresh: bool
) -> Conversation | None:
    """The form of a conversation; None where lines are read as they are.

    Raises:
        ValueError: a chat was asked for, or what it begins with, and there is no template.
    """
    form = template_of(vocabulary) if config.chat is not False else None
    if form is None:
        if config.chat or config.system is not None:
            raise ValueError(
                f"the vocabulary {vocabulary.name} carries no chat template; leave --chat and "
                "--system out"
            )
        return None
    system = config.system
    messages = [] if system is None else [{"role": "system", "content": system}]
    return Conversation(form, fresh, messages)
