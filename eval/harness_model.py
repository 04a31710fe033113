"""A trained run as lm-evaluation-harness sees it: eval/harness.py is its command line."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from data.common.command import load_config
from data.common.progress import Progress
from data.tokenizers.registry import HuggingFaceTokenizer
from lm.inference.chat import ChatTemplate, special_names, template_of
from lm.inference.inference_config import Lengths, Placement, SamplingConfig
from lm.inference.loading import LoadedRun, load_run
from lm.inference.predictor import ModelState
from lm.inference.session import Session, Writing, encode
from lm.model.components import cross_entropy
from lm.scoring import require_finite

PART = 256
"""Tokens of each lane whose logits are held at once."""


class LongRangeLM(LM):  # type: ignore[misc]
    """A trained run as the harness sees it.

    Every context and every document is read from an empty memory, whole, however long it is.
    """

    def __init__(
        self,
        run: str,
        checkpoint: str | None = None,
        batch_size: int | str = 8,
        segment: int | None = None,
        memory: int | None = None,
        compressed: int | None = None,
        sinks: int | None = None,
        **more: object,
    ) -> None:
        """Load a run; arguments come from the harness's --model_args.

        Args:
            run: folder of the run.
            checkpoint: name of the checkpoint, by default the newest.
            batch_size: texts that are read side by side.
            segment: tokens read at once, by default as in training.
            memory: slots of memory in each layer, likewise.
            compressed: slots of compressed memory in each layer, likewise.
            sinks: first tokens of a text that stay visible for ever, likewise.
            more: `precision`, float32 or bfloat16; the harness's `device`, cpu, cuda or mps; its
                largest batch size, which the run decides itself; and `tokenizer` or `pretrained`,
                a tokenizer of transformers, such as an export of the run, by which tasks that make
                their own texts (RULER) find how long these are.

        Raises:
            ValueError: no such run, or arguments that do not exist.
        """
        super().__init__()
        known = {"max_batch_size", "precision", "device", "tokenizer", "pretrained"}
        if strange := set(more) - known:
            raise ValueError(
                f"the model longrange has no argument {min(strange)}; it has run, checkpoint, "
                "segment, memory, compressed, sinks, precision, device and tokenizer"
            )
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of texts, not {batch_size}")
        given = {name: more[name] for name in ("precision", "device") if more.get(name)}
        # The harness numbers devices, of which a run takes the first, and says cuda:0 where nobody
        # asked for one.
        if given.get("device") == "cuda:0" and not torch.cuda.is_available():
            del given["device"]
        given = {name: str(value).removesuffix(":0") for name, value in given.items()}
        place = load_config(Placement, given)
        self.loaded: LoadedRun = load_run(
            Path(run), checkpoint, Lengths(segment, memory, compressed, sinks), place
        )
        self.batch = int(batch_size)

    @property
    def tokenizer_name(self) -> str:
        """What the harness knows cached requests by."""
        return self.loaded.vocabulary.hash

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the run's tokenizer, for the harness's record.

        Raises:
            ValueError: it has none, or another one is asked for by name.
        """
        if chat_template in (False, None):
            return None
        if chat_template not in (True, "default"):
            raise ValueError(
                f"the model longrange has no chat template {chat_template!r} but its tokenizer's "
                "own; give --apply_chat_template without a name"
            )
        return self._form().template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the run's tokenizer writes it; without a prompt for an answer, its
        last message is the beginning of one. ValueError where there is no template.
        """
        ask = add_generation_prompt
        return self._form().render(chat_history, ask, unfinished=not ask)

    def _form(self) -> ChatTemplate:
        vocabulary = self.loaded.vocabulary
        if (form := template_of(vocabulary)) is None:
            raise ValueError(
                f"the vocabulary {vocabulary.name} carries no chat template; leave "
                "--apply_chat_template out"
            )
        return replace(form, instead="leave --apply_chat_template out")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the most
        probable one token by token. A context that several requests share is read once.
        """
        pairs = [request.args for request in requests]
        order = sorted(range(len(pairs)), key=lambda index: (len(pairs[index][0]), pairs[index]))
        results: dict[int, tuple[float, bool]] = {}
        with Progress("continuations", len(pairs), "request") as bar:
            for chunk in chunks(order, self.batch):
                scored = self._continuations([pairs[index] for index in chunk])
                for index, result in zip(chunk, scored, strict=True):
                    results[index] = result
                    self.cache_hook.add_partial("loglikelihood", pairs[index], result)
                bar.update(len(chunk))
        return [results[index] for index in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each document, every token of it, with memory carried through.

        Raises:
            ValueError: the tokens do not give a document back, so that what the harness divides by
                its bytes is of another text.
        """
        texts = [request.args[0] for request in requests]
        vocabulary = self.loaded.vocabulary
        for text in texts:
            if vocabulary.decode(self._encode(text)) != text.encode():
                raise ValueError(
                    f"the vocabulary {vocabulary.name} does not give the documents back, so they "
                    "have no bits per byte: score shards of them with python -m eval.score"
                )
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        results: dict[int, float] = {}
        with Progress("documents", len(texts), "document") as bar:
            for chunk in chunks(order, self.batch):
                ids = [self._encode(texts[index]) for index in chunk]
                session = Session.begin(self.loaded.predictor, len(chunk))
                for index, nats in zip(chunk, self._read_scored(session, ids)[0], strict=True):
                    results[index] = -nats
                    self.cache_hook.add_partial("loglikelihood_rolling", (texts[index],), -nats)
                bar.update(len(chunk))
        return [results[index] for index in range(len(texts))]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context until one of its stop strings, or max_gen_toks tokens (256)."""
        asked = [(request.args[0], normalize_gen_kwargs(request.args[1])) for request in requests]
        order = sorted(range(len(asked)), key=lambda index: (str(asked[index][1]), index))
        results: dict[int, str] = {}
        with Progress("generate", len(asked), "request") as bar:
            for _, alike in groupby(order, key=lambda index: str(asked[index][1])):
                for chunk in chunks(list(alike), self.batch):
                    kwargs = asked[chunk[0]][1]
                    texts = self._continued([asked[index][0] for index in chunk], kwargs, chunk)
                    for index, text in zip(chunk, texts, strict=True):
                        results[index] = text
                        self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update(len(chunk))
        return [results[index] for index in range(len(asked))]

    def _encode(self, text: str) -> np.ndarray:
        return encode(self.loaded.vocabulary, text.encode(), "a text").astype(np.int64)

    def _begun(self, context: str) -> tuple[np.ndarray, str]:
        """Ids of a context up to the last special token that it spells, as chat templates make
        them, and the text behind that; without the token that precedes every text.
        """
        vocabulary = self.loaded.vocabulary
        if not isinstance(vocabulary, HuggingFaceTokenizer):
            return np.empty(0, dtype=np.int64), context
        names = [name for name in special_names(vocabulary) if name in context]
        places = [(context.rfind(name), len(name)) for name in names]
        at = max((place + size for place, size in places), default=0)
        ids = vocabulary.encode_marked(context[:at]).astype(np.int64)
        return ids[int(ids[:1].tolist() == [vocabulary.start]) :], context[at:]

    def _context(self, context: str) -> np.ndarray:
        begun, rest = self._begun(context)
        return np.concatenate([begun, self._encode(rest)])

    def _split(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of both together, cut before the first token that reaches into the continuation."""
        (begun, rest), vocabulary = self._begun(context), self.loaded.vocabulary
        ids = self._encode(rest + continuation)
        if vocabulary.decode(ids) == (rest + continuation).encode():
            ends = vocabulary.token_bytes[ids].cumsum()
            cut = int(ends.searchsorted(len(rest.encode()), side="right"))
            before, asked = ids[:cut], ids[cut:]
        else:
            # Where a text is not given back, nobody knows which of its bytes a token stands for.
            before, asked = self._encode(rest), self._encode(continuation)
        if continuation and not len(asked):
            raise ValueError(
                f"the vocabulary {vocabulary.name} has no token for {continuation!r}, so it cannot "
                "be told how likely that is"
            )
        return np.concatenate([begun, before]), asked

    def _continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        split = [self._split(*pair) for pair in pairs]
        contexts = list(dict.fromkeys(ids.tobytes() for ids, _ in split))
        session = Session.begin(self.loaded.predictor, len(contexts))
        session.read([np.frombuffer(each, dtype=np.int64) for each in contexts])
        session = session.select([contexts.index(ids.tobytes()) for ids, _ in split])
        nats, greedy = self._read_scored(session, [ids for _, ids in split])
        return [(-cost, best) for cost, best in zip(nats, greedy, strict=True)]

    @torch.no_grad()
    def _read_scored(
        self, session: Session[ModelState], texts: Sequence[np.ndarray]
    ) -> tuple[list[float], list[bool]]:
        """Each lane reads a text; the nats of its tokens, and whether all were most probable."""
        nats_B = torch.zeros(len(texts), dtype=torch.float64)
        greedy_B = torch.ones(len(texts), dtype=torch.bool)
        for tokens_Bt, counts in session.parts(texts, PART):
            there_Bt = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
            before_B1 = session.last_B1
            hidden_Bt = session.advance(tokens_Bt, counts)
            logits_BtV = session.predictor.logits(torch.cat([before_B1, hidden_Bt[:, :-1]], dim=1))
            cost_Bt = cross_entropy(logits_BtV.flatten(0, 1), tokens_Bt.flatten())
            cost_Bt = cost_Bt.view(tokens_Bt.shape).cpu().double()
            nats_B += torch.where(there_Bt, cost_Bt, 0.0).sum(dim=1)
            best_Bt = (logits_BtV.argmax(dim=-1) == tokens_Bt).cpu()
            greedy_B &= (best_Bt | ~there_Bt).all(dim=1)
        require_finite(nats_B.numpy())
        return nats_B.tolist(), greedy_B.tolist()

    def _continued(
        self, contexts: Sequence[str], kwargs: dict[str, Any], seeds: Sequence[int]
    ) -> list[str]:
        session = Session.begin(self.loaded.predictor, len(contexts))
        session.read([self._context(context) for context in contexts])
        # Tasks that are decoded greedily often name filters all the same.
        filters = ("top_k", "top_p", "min_p") if kwargs.get("temperature", 0.0) else ()
        chosen = {name: kwargs[name] for name in filters if kwargs.get(name) is not None}
        sampling = SamplingConfig(kwargs.get("temperature", 0.0), **chosen)
        stops = [stop.encode() for stop in kwargs["until"] if stop]
        how = Writing(sampling, kwargs["max_gen_toks"], seeds, stops, self._ends(contexts))
        texts = session.write(how)
        return [text.decode(errors="replace") for text in texts]

    def _ends(self, contexts: Sequence[str]) -> frozenset[int]:
        """Tokens at which an answer ends; by the chat template where contexts are conversations."""
        vocabulary = self.loaded.vocabulary
        form = template_of(vocabulary)
        names = special_names(vocabulary)
        if form is not None and any(name in context for context in contexts for name in names):
            return form.ends(form.end())
        return frozenset(vocabulary.ends if isinstance(vocabulary, HuggingFaceTokenizer) else ())


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Runs of at most `size` items."""
    return (items[at : at + size] for at in range(0, len(items), size))
