"""A score that is interrupted goes on where it was."""

import json
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data.common.files import atomic_path, hash_json
from data.common.progress import Progress
from data.common.tensors import save_tensors
from lm.scoring import Scorer


class Keeper:
    """Keeps a scorer's state in a folder while it reads, each minute and when it is interrupted."""

    def __init__(self, folder: Path, what: dict[str, Any], rank: int = 0) -> None:
        """State in `folder` of this rank; `what` says of which score, in plain values."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / f"state-{rank}.safetensors"
        self.what = hash_json(what)

    def restore(self, scorer: Scorer) -> None:
        """Take the scorer to where it was, if anything is kept.

        Raises:
            ValueError: what is kept is damaged, or of another score.
        """
        if not self.file.is_file():
            return
        mend = "remove it, or keep this score in another folder"
        try:
            with safe_open(self.file, framework="pt") as file:
                what = json.loads((file.metadata() or {}).get("what", "null"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.file} is damaged; {mend}") from error
        if what != self.what:
            raise ValueError(f"{self.file} belongs to another score; {mend}")
        scorer.load_state(state)

    def save(self, scorer: Scorer) -> None:
        """Write the scorer's state."""
        with atomic_path(self.file) as temporary:
            save_tensors(scorer.state(), temporary, {"what": json.dumps(self.what)})


def read_to_end(
    scorer: Scorer, keeper: Keeper | None = None, progress: bool = True, every: float = 60.0
) -> None:
    """Read to the end, from where the keeper left off.

    Args:
        scorer: what is to be scored.
        keeper: where its state is kept, if anywhere.
        progress: show progress.
        every: seconds between two states.
    """
    if keeper is not None:
        keeper.restore(scorer)
    written = time.monotonic()
    name, segments = f"score {scorer.split.name}", len(scorer)
    with Progress(name, segments, "segment", enabled=progress, begun=scorer.step) as bar:
        try:
            for _ in scorer:
                bar.update()
                if keeper is not None and time.monotonic() - written > every:
                    keeper.save(scorer)
                    written = time.monotonic()
        except KeyboardInterrupt:
            if keeper is not None:
                keeper.save(scorer)
            raise
    if keeper is not None:
        keeper.save(scorer)
