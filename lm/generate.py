"""Program: continue a text with a trained model and its compressed memory."""

import codecs
from pathlib import Path

import numpy as np
import torch

from data import command
from data.progress import Progress
from lm.loading import LoadedRun, load_run
from lm.model.incremental import Reader
from lm.sampling import SamplingConfig, sample

PROMPT_PART = 4096
"""Prompt tokens read between two updates of the progress display."""


def main(
    run: Path,
    sampling: SamplingConfig,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    tokens: int = 500,
    seed: int = 0,
    checkpoint: str | None = None,
    out: Path | None = None,
) -> None:
    """Continue a text; the continuation is written to the standard output as it comes.

    Args:
        run: folder of the run.
        sampling: how each token is drawn.
        prompt: text to continue.
        prompt_file: file that holds the text to continue, of any length.
        tokens: how many tokens to write.
        seed: of the draws; the same seed gives the same text on the same machine.
        checkpoint: name of the checkpoint, by default the newest.
        out: file for prompt and continuation.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, not {tokens}")
    given = prompt_text(prompt, prompt_file)
    loaded = load_run(run, checkpoint)
    generator = torch.Generator().manual_seed(seed)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    written = bytearray()
    with torch.no_grad():
        reader = read_prompt(loaded, given)
        for _ in range(tokens):
            token = sample(reader.logits().cpu(), sampling, generator)
            piece = loaded.vocabulary.decode(token.numpy())
            written += piece
            print(decoder.decode(piece), end="", flush=True)
            reader.read(token[:, None].to(reader.last_BD.device))
    print(decoder.decode(b"", final=True), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(given + bytes(written))


def prompt_text(prompt: str | None, prompt_file: Path | None) -> bytes:
    """The prompt's bytes; empty without one.

    Raises:
        ValueError: both were given, or the file is empty.
    """
    if prompt is not None and prompt_file is not None:
        raise ValueError("give either --prompt or --prompt-file")
    if prompt_file is None:
        return (prompt or "").encode()
    text = prompt_file.read_bytes()
    if not text:
        raise ValueError(f"{prompt_file} is empty; give a text to continue")
    return text


def read_prompt(loaded: LoadedRun, text: bytes) -> Reader:
    """Read a prompt of any length; returns its reader, which knows what follows."""
    vocabulary, model = loaded.vocabulary, loaded.model
    ids = np.concatenate([[vocabulary.start], vocabulary.encode(text).astype(np.int64)])
    tokens_1t = torch.from_numpy(ids)[None].to(model.embedding.weight.device)
    reader = Reader(model, model.empty_memory(1))
    enabled = len(ids) > PROMPT_PART
    with Progress("read", len(ids), "token", scale=True, enabled=enabled) as bar:
        for part in tokens_1t.split(PROMPT_PART, dim=1):
            reader.read(part)
            bar.update(part.shape[1])
    return reader


if __name__ == "__main__":
    command.run(main, section="sampling")
