"""Program: continue texts with a trained model and its compressed memory."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.common import command
from data.common.files import atomic_path
from data.common.progress import Progress
from data.common.say import reader_left, say
from data.common.schema import Count
from data.vocab import Vocabulary, WordVocabulary
from data.vocabularies.words import UNKNOWN
from lm.inference.predictor import ModelState
from lm.loading import Lengths, LoadedRun, load_run
from lm.memory_file import load_memory, save_memory
from lm.sampling import SamplingConfig
from lm.session import Session, Writing, encode
from lm.stops import check_stops


@dataclass(frozen=True)
class GenerateConfig(SamplingConfig, Lengths):
    """What is continued, how, and how far; lengths default to those of training."""

    prompt: str | None = None
    """Text to continue."""
    prompt_file: Path | None = None
    """File that holds the text to continue, of any length."""
    prompts_file: Path | None = None
    """File with a text to continue on each line; all are read side by side."""
    tokens: int = 500
    """Most tokens that are written to a text; 0 only reads, for save_memory."""
    samples: int = 1
    """Continuations of each text, which is read once."""
    seed: Count = 0
    """Of the draws of the first continuation; the next ones have the numbers that follow. The same
    seed gives the same text on the same machine, alone or beside others."""
    stop: tuple[str, ...] = ()
    """Strings at which a continuation ends; they are not written."""
    interactive: bool = False
    """Read a line from the standard input, continue the text, read the next line, and so on, until
    the input ends; memory holds the whole conversation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 0:
            raise ValueError(f"tokens must be at least 0, not {self.tokens}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        given = [self.prompt, self.prompt_file, self.prompts_file]
        if sum(value is not None for value in given) > 1:
            raise ValueError("give one of --prompt, --prompt-file and --prompts-file")
        if self.interactive and (self.samples > 1 or self.prompts_file is not None):
            raise ValueError("--interactive holds one conversation; leave out other texts")
        if not self.tokens and (self.interactive or self.samples > 1 or self.stop):
            raise ValueError("--interactive, --samples and --stop need --tokens of at least 1")


def main(
    run: Path,
    sampling: GenerateConfig,
    checkpoint: str | None = None,
    load_memory: Path | None = None,
    save_memory: Path | None = None,
    out: Path | None = None,
) -> None:
    """Continue texts; a single one is written to the standard output as it comes.

    Args:
        run: folder of the run.
        sampling: what is continued, how, and how far.
        checkpoint: name of the checkpoint, by default the newest.
        load_memory: memory that --save-memory wrote; texts go on from there.
        save_memory: file for the memory of what was read, or of the whole conversation.
        out: file for text and continuation; for several, one JSON object to a line.
    """
    if sampling.tokens == 0 and save_memory is None:
        raise ValueError("tokens 0 writes nothing; give --save-memory, or more tokens")
    if out is not None and (sampling.interactive or not sampling.tokens):
        raise ValueError("--out has no effect without a continuation of a given text; leave it out")
    texts = prompts(sampling)
    loaded = load_run(run, checkpoint, sampling)
    check_stops([stop.encode() for stop in sampling.stop], loaded.vocabulary)
    session = opened(loaded, texts, load_memory)
    if sampling.interactive:
        converse(session, sampling)
    if save_memory is not None:
        store(save_memory, session)
    if sampling.tokens and not sampling.interactive:
        written = continued(session.repeat(sampling.samples), sampling, kept=out is not None)
        if out is not None:
            write_out(out, texts, written, sampling)


def prompts(config: GenerateConfig) -> list[bytes]:
    """The texts to continue; a single empty one where none is given.

    Raises:
        ValueError: a file is empty.
    """
    if config.prompt_file is not None:
        text = config.prompt_file.read_bytes()
        if not text:
            raise ValueError(f"{config.prompt_file} is empty; give a text to continue")
        return [text]
    if config.prompts_file is not None:
        texts = [line for line in config.prompts_file.read_bytes().splitlines() if line]
        if not texts:
            raise ValueError(f"{config.prompts_file} has no line with a text to continue")
        return texts
    return [(config.prompt or "").encode()]


def opened(loaded: LoadedRun, texts: list[bytes], memory: Path | None) -> Session[ModelState]:
    """A session that has read the texts, after the text that `memory` holds, if any."""
    names = ["the prompt"] if len(texts) == 1 else [f"prompt {i + 1}" for i in range(len(texts))]
    ids = [encode(loaded.vocabulary, t, n) for t, n in zip(texts, names, strict=True)]
    for text, some, name in zip(texts, ids, names, strict=True):
        tell_unknown(loaded.vocabulary, text, some, name)
    if memory is None:
        session = Session.begin(loaded.predictor, len(texts))
    else:
        session = load_memory(memory, loaded).repeat(len(texts))
    session.read(ids)
    return session


def tell_unknown(vocabulary: Vocabulary, text: bytes, ids: np.ndarray, name: str) -> None:
    """Say on stderr how many words of a text a vocabulary of words does not know."""
    if isinstance(vocabulary, WordVocabulary):
        unknown = np.count_nonzero(ids == vocabulary.unknown) - text.split().count(UNKNOWN)
        if unknown:
            say(
                f"{unknown} of {len(ids)} words of {name} are not in the vocabulary "
                f"{vocabulary.name} and are read as {UNKNOWN.decode()}"
            )


def store(path: Path, session: Session[ModelState]) -> None:
    """Save the memory of one text.

    Raises:
        ValueError: there are several.
    """
    if session.lanes > 1:
        raise ValueError("--save-memory keeps the memory of one text; give one prompt")
    save_memory(path, session)


def continued(
    session: Session[ModelState], config: GenerateConfig, kept: bool = True
) -> list[bytes]:
    """Write the continuations: one as it comes, several when all are done.

    kept: whether they are wanted even if nobody reads the standard output any more.
    """

    def show(_: int, text: str) -> None:
        print(text, end="", flush=True)
        if not kept and reader_left():
            raise BrokenPipeError

    seeds = range(config.seed, config.seed + session.lanes)
    how = Writing(config, config.tokens, seeds, [stop.encode() for stop in config.stop])
    if session.lanes == 1:
        texts = session.write(how, show)
        print(flush=True)
        return texts
    shown: list[list[str]] = [[] for _ in seeds]
    with Progress("write", None, "character") as bar:

        def collect(lane: int, text: str) -> None:
            shown[lane].append(text)
            bar.update(len(text))

        texts = session.write(how, collect)
    for lane, pieces in enumerate(shown):
        prompt, sample = divmod(lane, config.samples)
        print(f"=== prompt {prompt + 1}, sample {sample + 1}, seed {seeds[lane]} ===")
        print("".join(pieces))
    return texts


def converse(session: Session[ModelState], config: GenerateConfig) -> None:
    """Read lines and continue the text after each, until the input ends."""
    vocabulary, seed = session.predictor.vocabulary, config.seed
    stops = [stop.encode() for stop in config.stop]
    while True:
        print("> " if sys.stdin.isatty() else "", end="", flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        session.read([encode(vocabulary, line, "the line")])
        how = Writing(config, config.tokens, [seed], stops)
        session.write(how, lambda _, text: print(text, end="", flush=True))
        print(flush=True)
        seed += 1


def write_out(path: Path, prompts: list[bytes], texts: list[bytes], config: GenerateConfig) -> None:
    """Write one text with its prompt as it is, several as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(texts) == 1:
        content = prompts[0] + texts[0]
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
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


if __name__ == "__main__":
    command.run(main, section="sampling")
