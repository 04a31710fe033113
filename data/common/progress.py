"""One progress display for every long job: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from data.common.say import say

LINE_INTERVAL_S = 10.0
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Progress:
    """Context manager that shows work done, rate and time left on stderr.

    description: what is being done; total: number of units, None when unknown (may change); unit:
    one step of work; scale: write large numbers as k, M, G (for bytes and tokens); enabled: False
    shows nothing (ranks other than 0); begun: units done before, which say nothing of the rate;
    first: the value beside the rate that is named before all others, so that a narrow terminal, for
    which the last ones are left out, keeps it in sight.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        unit: str = "step",
        scale: bool = False,
        enabled: bool = True,
        begun: int = 0,
        first: str | None = None,
    ) -> None:
        self.description, self.total, self.unit, self.scale = description, total, unit, scale
        self.enabled, self.first = enabled, first
        self.done = self.begun = begun
        self._postfix: dict[str, str | float] = {}
        self._started = self._last_line = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if enabled and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                desc=description,
                unit=unit,
                unit_scale=scale,
                initial=begun,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.enabled and kind is None:
            self._print(self.line())

    def update(self, n: int = 1, **postfix: str | float) -> None:
        """Count `n` more units as done; `postfix` values are shown beside the rate."""
        self.done += n
        named = self._postfix | postfix
        self._postfix = {name: named[name] for name in sorted(named, key=lambda n: n != self.first)}
        if self._bar is not None:
            self._bar.total = self.total
            if postfix:
                self._fit(self._bar)
            self._bar.update(n)
        elif self.enabled and time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._print(self.line())

    def _fit(self, bar: "tqdm[Any]") -> None:
        """Show as many values as the terminal has room for."""
        kept = list(self._postfix)
        while True:
            bar.set_postfix({name: self._postfix[name] for name in kept}, refresh=False)
            shape = bar.format_dict
            # Without a width, the bar itself has ten characters; one is enough, and a few more for
            # a rate that grows.
            least = len(bar.format_meter(**{**shape, "ncols": None})) - 7
            if len(kept) <= 1 or not shape["ncols"] or least <= shape["ncols"]:
                return
            kept.pop()

    def write(self, line: str) -> None:
        """Print a line on stderr without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self.enabled:
            self._print(line)

    def line(self) -> str:
        """The state in words: done/total, rate, time left and the postfix."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self.begun) / elapsed
        parts = [f"{self.description}: {self._number(self.done)}"]
        if self.total is not None:
            parts[0] += f"/{self._number(self.total)}"
        parts[0] += f" {self.unit}"
        parts.append(f"{self._number(rate)} {self.unit}/s")
        if self.total is None or self.done >= self.total or rate == 0:
            parts.append(f"{clock(elapsed)} elapsed")
        else:
            parts.append(f"{clock((self.total - self.done) / rate)} left")
        for key, value in self._postfix.items():
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
        return ", ".join(parts)

    def _number(self, value: float) -> str:
        if self.scale:
            for factor, letter in SCALES:
                if value >= factor:
                    return f"{value / factor:.3g}{letter}"
        return str(value) if isinstance(value, int) else f"{value:.3g}"

    def _print(self, line: str) -> None:
        say(line)
        self._last_line = time.monotonic()


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
