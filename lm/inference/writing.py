"""Prompts, conversations and what is written after them, on the terminal or to a file."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.common.outputs import writing
from data.common.progress import Progress
from data.common.requirements import require_memory
from data.common.say import reader_left, say, warn
from data.documents import complaint, is_text, refuse_wide
from data.tokenizers.registry import Tokenizer, WordTokenizer
from data.tokenizers.words import UNKNOWN
from lm.inference import memory_file
from lm.inference.adapted import AdaptedPredictor, looking_up
from lm.inference.beside import Beside, Forgetful, local_of
from lm.inference.chat import Conversation
from lm.inference.episodes import CANDIDATES, Library
from lm.inference.inference_config import PLAIN, GenerateConfig, LookupConfig
from lm.inference.loading import LoadedRun
from lm.inference.predictor import Predictor
from lm.inference.session import Session, Writing, encode


def stops_of(config: GenerateConfig) -> list[bytes]:
    """The stop strings as bytes, those too that the command line had in no encoding."""
    return [stop.encode(errors="surrogateescape") for stop in config.stop]


def predictor_of(loaded: LoadedRun, config: GenerateConfig, lookup: LookupConfig) -> Predictor[Any]:
    """The run itself, or beside a reading of its own that forgets, or with what it looks up.

    Raises:
        ValueError: the model has no memory that could be forgotten.
    """
    if config.memory_weight is None:
        return looking_up(loaded.predictor, lookup)
    local = local_of(loaded.model.config, config.local, loaded.local)
    forgetful = Forgetful(loaded.model, loaded.vocabulary, local)
    return Beside(loaded.predictor, forgetful, config.memory_weight)


def require_lanes(loaded: LoadedRun, lanes: int, lookup: LookupConfig = PLAIN) -> None:
    """ValueError for more texts side by side than fit: their open segments alone, the tokens that
    each has seen, and what it looks up.
    """
    config = loaded.model.config
    weight = loaded.model.embedding.weight
    segment = 3 * config.layers * config.segment * config.width * weight.element_size()
    segment += 4 * (lookup.settled().capacity or 0) * (config.width + 3)
    room = torch.cuda.mem_get_info(weight.device)[1] if weight.is_cuda else None
    what = f"{lanes:,} texts side by side (fewer --samples or prompts)"
    require_memory(lanes * (segment + loaded.vocabulary.size), what, room)


def prompts(config: GenerateConfig) -> list[bytes]:
    """The texts to continue; a single empty one where none is given.

    Raises:
        ValueError: a file is empty, or no file.
    """
    if config.prompt_file is not None:
        text = content(config.prompt_file)
        if not text:
            raise ValueError(f"{config.prompt_file} is empty; give a text to continue")
        return [text]
    if config.prompts_file is not None:
        texts = [line for line in content(config.prompts_file).splitlines() if line]
        if not texts:
            raise ValueError(f"{config.prompts_file} has no line with a text to continue")
        return texts
    return [(config.prompt or "").encode(errors="surrogateescape")]


def content(path: Path) -> bytes:
    """What a file or a pipe holds; ValueError for a device, which may have no end, and for a file
    whose tokens would not fit into memory.
    """
    found = path.stat()
    endless = stat.S_ISCHR(found.st_mode) and path.resolve() != Path(os.devnull)
    if stat.S_ISBLK(found.st_mode) or (endless and not _is_terminal(path)):
        raise ValueError(f"{path} is a device: give a file that holds the text")
    require_memory(9 * found.st_size, f"the text in {path}")
    return path.read_bytes()


def _is_terminal(path: Path) -> bool:
    """Whether a device is a terminal, where somebody may type a text."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def opened(
    loaded: LoadedRun,
    texts: list[bytes],
    config: GenerateConfig,
    memory: Path | None,
    lookup: LookupConfig = PLAIN,
    library: Path | None = None,
) -> Session[Any]:
    """A session that has read the texts, after the text that `memory` holds, if any.

    lookup: what is looked up in what was read; library: memories that the texts begin with.
    """
    file = config.prompt_file or config.prompts_file
    vocabulary, ids = loaded.vocabulary, []
    for number, text in enumerate(texts, 1):
        name = "the prompt" if len(texts) == 1 else f"prompt {number}"
        if vocabulary.kind != "mulaw":
            look_at(text, f"{name} in {file}" if file else name)
        ids.append(encode(vocabulary, text, name))
        tell_unknown(vocabulary, text, ids[-1], name)
    if library is not None:
        shelf = Library(library, loaded, config.library_candidates or CANDIDATES)
        session = recalled(loaded, ids, lookup, shelf)
    elif memory is None:
        session = Session.begin(predictor_of(loaded, config, lookup), len(texts))
    else:
        session = memory_file.load_memory(memory, loaded, lookup).repeat(len(texts))
    session.read(ids)
    return session


def recalled(
    loaded: LoadedRun, ids: list[np.ndarray], lookup: LookupConfig, library: Library
) -> Session[Any]:
    """A session of texts that begin with memories of texts that are like them."""
    predictor = looking_up(loaded.predictor, lookup)
    if (longest := max(map(len, ids))) >= loaded.predictor.warmup:
        warn(
            f"{longest:,} tokens to begin with take all slots of memories that reach back "
            f"{loaded.predictor.warmup:,}: little of what is found stays"
        )
    inner, found = library.begun(ids)
    for number, memory in enumerate(found, 1):
        name = "the text" if len(found) == 1 else f"text {number}"
        say(f"{name} begins with {memory}")
    state: Any = predictor.over(inner) if isinstance(predictor, AdaptedPredictor) else inner
    return Session.begin(predictor, len(ids), state)


def look_at(text: bytes, name: str) -> None:
    """See that a text is one. ValueError for UTF-16 and the like; bytes that are not UTF-8 are
    warned of, because a vocabulary of bytes reads them as they are.
    """
    refuse_wide(name, text, begins=True)
    if not is_text(text):
        warn(f"{name} {complaint(text)}; it is read as its bytes")


def tell_unknown(vocabulary: Tokenizer, text: bytes, ids: np.ndarray, name: str) -> None:
    """Say on stderr how many words of a text a vocabulary of words does not know."""
    if isinstance(vocabulary, WordTokenizer):
        unknown = np.count_nonzero(ids == vocabulary.unknown) - text.split().count(UNKNOWN)
        if unknown:
            say(
                f"{unknown} of {len(ids)} words of {name} are not in the vocabulary "
                f"{vocabulary.name} and are read as {UNKNOWN.decode()}"
            )


def continued(
    session: Session[Any],
    config: GenerateConfig,
    keep: Callable[[list[bytes]], None] | None = None,
) -> list[bytes]:
    """Write the continuations: one as it comes, several when all are done.

    keep: writes them to a file, before several are shown.
    """

    def show(_: int, text: str) -> None:
        print(text, end="", flush=True)
        if keep is None and reader_left():
            # Nobody wants the rest.
            raise BrokenPipeError

    seeds = range(config.seed, config.seed + session.lanes)
    how = Writing(config, config.tokens, seeds, stops_of(config))
    if session.lanes == 1:
        texts = session.write(how, show)
        if keep is not None:
            keep(texts)
        print(flush=True)
        return texts
    shown: list[list[str]] = [[] for _ in seeds]
    with Progress("write", None, "character") as bar:

        def collect(lane: int, text: str) -> None:
            shown[lane].append(text)
            bar.update(len(text))

        texts = session.write(how, collect)
    if keep is not None:
        keep(texts)
    for lane, parts in enumerate(shown):
        prompt, sample = divmod(lane, config.samples)
        print(f"=== prompt {prompt + 1}, sample {sample + 1}, seed {seeds[lane]} ===")
        print("".join(parts))
    return texts


def converse(
    session: Session[Any],
    config: GenerateConfig,
    save_memory: Path | None = None,
    talk: Conversation | None = None,
) -> None:
    """Read lines and continue the text after each, until the input ends.

    save_memory: file for the memory at the end, also when Ctrl-C ends the waiting for a line, or
    one cannot be encoded; talk: the form of the conversation, none: lines as they are.
    """
    vocabulary, seed = session.predictor.vocabulary, config.seed
    stops, ends = stops_of(config), frozenset() if talk is None else talk.ends
    while True:
        print("> " if sys.stdin.isatty() else "", end="", flush=True)
        line, ids = b"", None
        try:
            line = sys.stdin.buffer.readline()
            ids = encode(vocabulary, line, "the line") if line else None
        finally:
            if ids is None and save_memory is not None:
                memory_file.save_memory(save_memory, session)
        if ids is None:
            return
        session.read([ids if talk is None else talk.asked(line.decode().rstrip("\r\n"))])
        how = Writing(config, config.tokens, [seed], stops, ends)
        (answer,) = session.write(how, lambda _, text: print(text, end="", flush=True))
        print(flush=True)
        if talk is not None:
            session.read([talk.answered(answer.decode(errors="replace"), bool(session.ended))])
        seed += 1


def write_out(path: Path, prompts: list[bytes], texts: list[bytes], config: GenerateConfig) -> None:
    """Write one text with its prompt as it is, several as JSON lines."""
    if len(texts) == 1:
        whole = prompts[0] + texts[0]
    else:
        rows = [
            {
                "prompt": prompts[lane // config.samples].decode(errors="replace"),
                "sample": lane % config.samples,
                "seed": config.seed + lane,
                "text": text.decode(errors="replace"),
            }
            for lane, text in enumerate(texts)
        ]
        whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with writing(path) as place:
        place.write_bytes(whole)
