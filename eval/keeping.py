"""A score that is interrupted goes on where it was, and so does a comparison of several."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.common.files import atomic_path, hash_json
from data.common.integrity import write_sealed
from data.common.outputs import check_folder
from data.common.say import warn
from data.common.schema import Record, Sha256, read_record
from data.common.tensors import TensorFile, save_tensors
from lm.scoring import Score, Scorer, require_finite
from lm.threads import Threads, keep_blocks

FORMAT = 3
"""Of the kept state; an earlier one did not know the weights that it belongs to, or had no sums by
place and frequency."""


class Keeper:
    """Keeps a scorer's state in a folder while it reads, each minute and when it is interrupted."""

    def __init__(self, folder: Path, what: dict[str, Any], part: int | str = 0) -> None:
        """State in `folder` of this rank or pass.

        Args:
            folder: where it is kept; made if need be.
            what: of which score it is, in plain values: weights and text by their hashes, and all
                that decides how the text is read.
            part: rank of this process, or name of the pass.

        Raises:
            ValueError: nothing can be written there.
        """
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / f"state-{part}.safetensors"
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


class Kept(Record):
    """The file of passes."""

    what: Sha256
    passes: dict[Sha256, Any]


class Passes:
    """What the passes of a comparison came to, kept in a folder: one that is interrupted goes on in
    the pass that was being read.
    """

    def __init__(self, folder: Path | None = None, what: dict[str, Any] | None = None) -> None:
        """Passes that are kept, if a folder is given.

        Args:
            folder: where; made if need be.
            what: plain values that decide what any pass comes to, as of a Keeper.

        Raises:
            ValueError: nothing can be written there, or what is kept is damaged or of another
                comparison.
        """
        self.folder, self.what = folder, {"format": FORMAT} | (what or {})
        self.known: dict[str, Any] = {}
        if folder is None:
            return
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "passes.json"
        if self.file.is_file():
            mend = "remove it, or keep this comparison in another folder"
            kept = read_record(Kept, self.file, mend)
            if kept.what != hash_json(self.what):
                raise ValueError(
                    f"{self.file} belongs to another comparison, of other weights, another text or "
                    f"another way of reading it; {mend}"
                )
            self.known = dict(kept.passes)

    def once(self, of: dict[str, Any], make: Callable[[Keeper | None], Any]) -> Any:
        """What a pass came to, in plain values.

        Args:
            of: plain values that decide it besides what all passes share.
            make: reads the text, where it is not known; is given what keeps its state.
        """
        key = hash_json(of)
        keeper = None if self.folder is None else Keeper(self.folder, self.what | of, key[:16])
        if key not in self.known:
            self.known[key] = make(keeper)
            self._write()
        if keeper is not None:
            keeper.file.unlink(missing_ok=True)
        return self.known[key]

    def _write(self) -> None:
        if self.folder is None:
            return
        try:
            write_sealed(self.file, {"what": hash_json(self.what), "passes": self.known})
        except OSError as error:
            warn(f"{self.file} was not written ({error.strerror}); the work goes on without it")


def values_of(score: Score) -> dict[str, Any]:
    """A score without cuts in plain values."""
    nats = score.document_nats.tolist()
    return {"nats": score.nats, "tokens": score.tokens, "bytes": score.bytes, "documents": nats}


def score_of(values: dict[str, Any]) -> Score:
    """The inverse of `values_of`."""
    documents = np.array(values["documents"], dtype=np.float64)
    return Score(values["nats"], values["tokens"], values["bytes"], documents)


def read_on(
    scorer: Scorer[Any],
    keeper: Keeper | None,
    *,
    limit: int | None = None,
    name: str | None = None,
    progress: bool = True,
    every: float = 60.0,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Read to the end, and keep the state on the way.

    Args:
        scorer: what is to be scored, as the keeper has restored it.
        keeper: where its state is kept, if anywhere.
        limit: read only this many segments of each lane.
        name: what progress calls it.
        progress: show progress.
        every: seconds between two states.
        between: called after each segment; what it raises ends the pass.
    """
    written = time.monotonic()
    stop = len(scorer) if limit is None else min(limit, len(scorer))
    try:
        for _ in scorer.through(limit, name, progress):
            between()
            late = time.monotonic() - written > every
            if keeper is not None and late and scorer.step < stop:
                keeper.save(scorer)
                written = time.monotonic()
    except KeyboardInterrupt:
        # In the middle of a segment there is nothing to go on from but the state kept last.
        if keeper is not None and scorer.whole and scorer.step < stop:
            keeper.save(scorer)
        raise


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
    begun, there = time.monotonic(), scorer.tokens

    def between() -> None:
        require_finite(scorer.document_nats)

    read_on(scorer, keeper, progress=progress, every=every, between=between)
    if scorer.tokens > there:
        scorer.rate = (scorer.tokens - there) / (time.monotonic() - begun)
    require_finite(scorer.document_nats)
    if keeper is not None:
        keeper.save(scorer)
