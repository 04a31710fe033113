"""A score that is interrupted goes on where it was."""

import time
from pathlib import Path
from typing import Any

from data.common.files import atomic_path, hash_json
from data.common.outputs import check_folder
from data.common.say import warn
from data.common.tensors import TensorFile, save_tensors
from lm.scoring import Scorer, require_finite
from lm.threads import Threads, keep_blocks

FORMAT = 3
"""Of the kept state; an earlier one did not know the weights that it belongs to, or had no sums by
place and frequency."""


class Keeper:
    """Keeps a scorer's state in a folder while it reads, each minute and when it is interrupted."""

    def __init__(self, folder: Path, what: dict[str, Any], rank: int = 0) -> None:
        """State in `folder` of this rank.

        Args:
            folder: where it is kept; made if need be.
            what: of which score it is, in plain values: weights and text by their hashes, and all
                that decides how the text is read.
            rank: of this process.

        Raises:
            ValueError: nothing can be written there.
        """
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / f"state-{rank}.safetensors"
        self.what = hash_json(what | {"format": FORMAT})

    def restore(self, scorer: Scorer[Any]) -> None:
        """Take the scorer to where it was, if anything is kept.

        Raises:
            ValueError: what is kept is damaged, or of another score.
        """
        if not self.file.is_file():
            return
        mend = "remove it, or keep this score in another folder"
        kept = TensorFile(self.file, mend)
        if kept.about.get("what") != self.what:
            raise ValueError(
                f"{self.file} belongs to another score, of other weights, another text or another "
                f"way of reading it; {mend}"
            )
        try:
            scorer.load(dict(kept))
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.file} is damaged ({error}); {mend}") from error

    def save(self, scorer: Scorer[Any]) -> None:
        """Write the scorer's state; where it finds no room, the score goes on without."""
        try:
            with atomic_path(self.file) as temporary:
                save_tensors(scorer.kept(), temporary, {"what": self.what})
        except OSError as error:
            warn(f"{self.file} was not written ({error.strerror}); the score goes on without it")


def read_to_end(
    scorer: Scorer[Any], keeper: Keeper | None = None, progress: bool = True, every: float = 60.0
) -> None:
    """Read to the end, from where the keeper left off.

    Args:
        scorer: what is to be scored.
        keeper: where its state is kept, if anywhere.
        progress: show progress.
        every: seconds between two states.

    Raises:
        ValueError: the text costs no finite number of nats.
    """
    # Ranks share the cores of their machine.
    if scorer.predictor.device.type == "cpu":
        keep_blocks()
    alone = scorer.predictor.device.type == "cpu" and scorer.rows == slice(None)
    scorer.threads = Threads(scorer.config.threads, fixed=not alone)
    if keeper is not None:
        keeper.restore(scorer)
    begun = written = time.monotonic()
    there = scorer.tokens
    try:
        for _ in scorer.through(progress=progress):
            require_finite(scorer.document_nats)
            if keeper is not None and time.monotonic() - written > every:
                keeper.save(scorer)
                written = time.monotonic()
    except KeyboardInterrupt:
        if keeper is not None:
            keeper.save(scorer)
        raise
    if scorer.tokens > there:
        scorer.rate = (scorer.tokens - there) / (time.monotonic() - begun)
    require_finite(scorer.document_nats)
    if keeper is not None:
        keeper.save(scorer)
