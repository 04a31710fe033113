"""Program: keep memories of texts in a library that other texts begin with, and list them.

`longrange library add --run RUN --text BOOK` reads a text and keeps the memory of it in RUN/library
or `--library DIR`; `longrange library list --run RUN` says what is kept. `longrange generate` and
`longrange score` with `--library DIR` begin each text with the memory, of those that are like it,
that tells its opening best.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from data.common import command
from data.common.outputs import check_folder
from data.common.say import plain, say, tell, warn
from data.common.schema import Size
from data.common.values import require_ranges
from lm.inference.inference_config import Lengths, Placement

LIBRARY = "library"
"""In a run's folder, where no other place is given."""


@dataclass(frozen=True)
class LibraryConfig(Lengths, Placement):
    """How a text is read; lengths default to those of training."""

    opening: Size | None = None
    """First tokens of a text that it is found by; a library has one such number; none: a quarter of
    what memories span, 512 at most and a segment at least."""

    def __post_init__(self) -> None:
        require_ranges(self)


def add(
    run: Path,
    text: Path,
    reading: LibraryConfig,
    library: Path | None = None,
    checkpoint: str | None = None,
) -> None:
    """Read a text, or each file of a folder, and keep its memory.

    Args:
        run: folder of the run.
        text: a file, or a folder of files.
        reading: how the text is read.
        library: folder of the memories, by default `library` in the run's; made if need be.
        checkpoint: name of the checkpoint, by default the newest.
    """
    from lm.inference import episodes
    from lm.inference.loading import load_run, parts_of
    from lm.inference.session import encode
    from lm.inference.writing import content, look_at, tell_unknown

    shelf = library or run / LIBRARY
    check_folder(shelf, *parts_of(run), text)
    if not text.exists():
        raise ValueError(f"{text} is not there; give a file or a folder of files")
    files = sorted(path for path in text.iterdir() if path.is_file()) if text.is_dir() else [text]
    if not files:
        raise ValueError(f"{text} holds no file; give a text")
    loaded = load_run(run, checkpoint, reading, reading)
    opening = reading.opening or episodes.usual_opening(loaded.predictor)
    episodes.require_opening(loaded.predictor, opening)

    # All are looked at before the first is kept.
    short = set()
    for file in files:
        whole = content(file)
        if loaded.vocabulary.kind != "mulaw":
            look_at(whole, str(file))
        ids = encode(loaded.vocabulary, whole, str(file))
        if len(files) == 1:
            episodes.require_segment(loaded.predictor, ids, file.name)
        elif not episodes.fills(loaded.predictor, ids):
            short.add(file)
    if len(short) == len(files):
        raise ValueError(f"no file of {text} has a whole segment of tokens; give longer texts")
    shelf.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file in short:
            warn(f"{file} is shorter than a segment and enters no memory; passed over")
            continue
        whole = content(file)
        ids = encode(loaded.vocabulary, whole, str(file))
        tell_unknown(loaded.vocabulary, whole, ids, str(file))
        made = episodes.add(shelf, loaded, (whole, ids, file.name), opening)
        print(f"{plain(made)}: {plain(file.name)}, {len(ids):,} tokens")


def show(library: Path | None = None, run: Path | None = None) -> None:
    """Say what a library holds.

    Args:
        library: its folder.
        run: folder of a run, whose own library is listed.
    """
    from lm.inference.episodes import episodes

    if (library is None) == (run is None):
        raise ValueError("give --library, or --run for the library in a run's folder")
    shelf = library or (run or Path()) / LIBRARY
    found = [episode for episode, _ in episodes(shelf)]
    models = sorted({episode.model for episode in found})
    for model in models:
        alike = [episode for episode in found if episode.model == model]
        print(f"model {model[:12]}, found by their first {alike[0].opening:,} tokens:")
        for episode in alike:
            size = f"{episode.tokens:,}"
            print(f"  {plain(episode.name):<40}{size:>12} tokens  text {episode.text[:12]}")


def main() -> None:
    """The action that the first word names, with the rest as its options.

    Raises:
        SystemExit: status 2 for a mistake of the user.
    """
    action, *options = sys.argv[1:] or [""]
    if action == "add":
        command.run(add, section="reading", argv=options, called="longrange library add")
    elif action == "list":
        command.run(show, argv=options, called="longrange library list")
    elif action in ("-h", "--help"):
        tell((__doc__ or "").strip())
    else:
        say("library: error: the first word must be add or list")
        raise SystemExit(2)


if __name__ == "__main__":
    main()
