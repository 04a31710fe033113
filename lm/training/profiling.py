"""A record of what the machine does in some training steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from data.common.say import warn


class ProfileWindow:
    """Records some steps of one rank and writes them as a Chrome trace.

    The trace opens in https://ui.perfetto.dev or chrome://tracing.

    Args:
        folder: where the trace goes.
        first: step before which recording begins (0 for the first of the run).
        count: steps recorded.
    """

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self.folder, self.first, self.count = folder, first, count
        self.profile: profile | None = None

    def before(self, step: int) -> None:
        """To be called before each step, with the number of steps done."""
        if step != self.first:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        started = profile(activities=activities, record_shapes=True)
        with _spoken():
            started.start()
            self.profile = started

    def after(self, step: int, last: bool) -> Path | None:
        """To be called after each step, with the number of steps done; returns a finished trace.

        Recording ends with the window, or with the last step of the run.
        """
        if self.profile is None or (step < self.first + self.count and not last):
            return None
        finished, self.profile = self.profile, None
        path = self.folder / f"steps-{self.first + 1:08d}-{step:08d}.json.gz"
        with _spoken():
            finished.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(path))
            return path
        return None


@contextmanager
def _spoken() -> Iterator[None]:
    """Context in which what goes wrong costs the trace, and not the run."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        warn(f"there will be no trace of report.profile ({error})")
