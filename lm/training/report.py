"""What a run shows of itself while it trains."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from data.common.files import atomic_path
from data.common.optional import extra
from data.common.say import warn
from lm.training.runlog import MetricsLog


@dataclass(frozen=True)
class ReportConfig:
    """What a run shows of itself; metrics.jsonl is always written."""

    tensorboard: bool = False
    """Also write the records to tensorboard/ in the run's folder."""
    wandb: str | None = None
    """Also send the records to this project of Weights & Biases."""
    sample_every: int | None = None
    """Steps between samples, written to samples/ in the run's folder: the model goes on with the
    first words of the validation split."""
    sample_tokens: int = 300
    """Length of these samples."""
    profile: tuple[int, int] | None = None
    """Record what the machine does in some steps, as [first step, number], as a Chrome trace in
    profile/ in the run's folder."""

    def __post_init__(self) -> None:
        if self.sample_every is not None and self.sample_every < 1:
            raise ValueError(f"report.sample_every must be at least 1, not {self.sample_every}")
        if self.sample_tokens < 1:
            raise ValueError(f"report.sample_tokens must be at least 1, not {self.sample_tokens}")
        if self.profile is not None and (self.profile[0] < 0 or self.profile[1] < 1):
            raise ValueError("report.profile must be [first step, number of steps], as [100, 5]")


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
