"""Where records of training go: TensorBoard, Weights & Biases, traces of the profiler."""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from data.common.files import atomic_path
from data.common.requirements import extra
from data.common.say import warn
from lm.runs.run_config import ReportConfig
from lm.runs.runlog import MetricsLog


class Sink(Protocol):
    """Where records go."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take a record: numbers by name, with its `step`."""

    def close(self) -> None:
        """Let nothing wait in a buffer."""


class TensorBoard:
    """Records as TensorBoard's event files."""

    def __init__(self, folder: Path, step: int) -> None:
        with extra("tensorboard", "report.tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        # What an earlier process wrote after the step that is continued from is hidden.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a scalar for each number."""
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write out what waits."""
        self.writer.close()


class WeightsAndBiases:
    """Records sent to Weights & Biases; a run that goes on keeps its page there."""

    def __init__(self, project: str, run: Path, config: Any) -> None:
        with extra("wandb", "report.wandb"):
            import wandb
        page = run / "wandb" / "page"
        page.parent.mkdir(exist_ok=True)
        name = page.read_text().strip() if page.is_file() else secrets.token_hex(4)
        self.run = wandb.init(
            project=project,
            id=name,
            name=run.name,
            dir=str(run),
            config=json.loads(json.dumps(asdict(config), default=str)),
            resume="allow",
        )
        with atomic_path(page) as temporary:
            temporary.write_text(name + "\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Send the numbers; those of steps that a resumed run repeats are passed over there."""
        numbers = {name: value for name, value in record.items() if name != "step"}
        self.run.log(numbers, step=int(record["step"]))

    def close(self) -> None:
        """Send what waits."""
        self.run.finish()


class Beside:
    """A sink beside metrics.jsonl: what becomes of it is no reason to stop a run."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        """`name`: of the setting that asks for it.

        Raises:
            ValueError: a package that it needs is not there.
        """
        self.name = name
        self.sink: Sink | None = None
        try:
            self.sink = make()
        except ValueError:
            raise
        except Exception as error:
            self._give_up(error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Hand a record on."""
        self._try(lambda sink: sink.write(record))

    def close(self) -> None:
        """Let nothing wait in a buffer."""
        self._try(lambda sink: sink.close())

    def _try(self, action: Callable[[Sink], None]) -> None:
        try:
            if self.sink is not None:
                action(self.sink)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.sink = None
        reason = " ".join(str(error).split()) or type(error).__name__
        warn(f"{self.name} gets no more records ({reason}); metrics.jsonl has them all")


def open_sinks(run: Path, config: Any, step: int) -> list[Sink]:
    """Where the first rank's records go.

    Args:
        run: the run's folder.
        config: the whole RunConfig.
        step: the step that the run continues from.

    Raises:
        ValueError: a package that the config asks for is not there.
    """
    report: ReportConfig = config.report
    sinks: list[Sink] = [MetricsLog(run / "metrics.jsonl")]
    if report.tensorboard:
        folder = run / "tensorboard"
        sinks.append(Beside("report.tensorboard", lambda: TensorBoard(folder, step)))
    if (project := report.wandb) is not None:
        sinks.append(Beside("report.wandb", lambda: WeightsAndBiases(project, run, config)))
    return sinks


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
