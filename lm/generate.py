"""Program: continue texts with a trained model and its compressed memory."""

from functools import partial
from pathlib import Path

from data.common import command
from data.common.outputs import check_output, resolved
from lm.inference.inference_config import PLAIN, GenerateConfig, LookupConfig


def main(
    run: Path,
    sampling: GenerateConfig,
    checkpoint: str | None = None,
    load_memory: Path | None = None,
    save_memory: Path | None = None,
    out: Path | None = None,
    adapt: LookupConfig = PLAIN,
    library: Path | None = None,
) -> None:
    """Continue texts; a single one is written to the standard output as it comes.

    Args:
        run: folder of the run.
        sampling: what is continued, how, and how far.
        checkpoint: name of the checkpoint, by default the newest.
        load_memory: memory that --save-memory wrote; texts go on from there.
        save_memory: file for the memory of what was read, or of the whole conversation.
        adapt: what is looked up in the text so far, to change predictions by.
        library: memories of other texts (longrange library add); each text begins with the one that
            tells its first tokens best of those that are like it, or with none if that does by far.
        out: file for text and continuation; for several, one JSON object to a line.
    """
    from lm.inference import memory_file
    from lm.inference.chat import conversation_of
    from lm.inference.loading import load_run, parts_of
    from lm.inference.session import check_stops
    from lm.inference.writing import (
        continued,
        converse,
        opened,
        prompts,
        require_lanes,
        stops_of,
        write_out,
    )

    if sampling.tokens == 0 and save_memory is None:
        raise ValueError("tokens 0 writes nothing; give --save-memory, or more tokens")
    if out is not None and (sampling.interactive or not sampling.tokens):
        raise ValueError("--out has no effect without a continuation of a given text; leave it out")
    read = (sampling.prompt_file, sampling.prompts_file, *parts_of(run))
    check_output(out, load_memory, *read)
    check_output(save_memory, *read)
    if out is not None and save_memory is not None and resolved(out) == resolved(save_memory):
        raise ValueError("--out and --save-memory name one file; give two")
    read_once = (load_memory, save_memory, library, None if adapt == PLAIN else adapt)
    if sampling.memory_weight is not None and any(each is not None for each in read_once):
        raise ValueError(
            "--memory-weight reads a text in two ways, which files of memory and --adapt do not; "
            "leave --load-memory, --save-memory, --library and --adapt out"
        )
    if library is not None and load_memory is not None:
        raise ValueError("--load-memory says what the text begins with; leave --library out")
    if library is None and sampling.library_candidates is not None:
        raise ValueError("--library-candidates has no effect without --library; leave it out")
    texts = prompts(sampling)
    if library is not None and b"" in texts:
        raise ValueError("--library looks up how a text begins; give one with --prompt")
    if save_memory is not None and len(texts) > 1:
        raise ValueError("--save-memory keeps the memory of one text; give one prompt")
    loaded = load_run(run, checkpoint, sampling, sampling)
    check_stops(stops_of(sampling), loaded.vocabulary)
    readings = 1 if sampling.memory_weight is None else 2
    require_lanes(loaded, len(texts) * sampling.samples * readings, adapt)
    fresh = load_memory is None and texts == [b""]
    talk = conversation_of(loaded.vocabulary, sampling, fresh) if sampling.interactive else None
    session = opened(loaded, texts, sampling, load_memory, adapt, library)
    if sampling.interactive:
        converse(session, sampling, save_memory, talk)
        return
    if save_memory is not None:
        memory_file.save_memory(save_memory, session)
    if sampling.tokens:
        keep_text = None if out is None else partial(write_out, out, texts, config=sampling)
        continued(session.repeat(sampling.samples), sampling, keep_text)


if __name__ == "__main__":
    command.run(main, section="sampling")
