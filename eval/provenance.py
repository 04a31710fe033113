"""What a report is made of: each run's configuration and newest sample, and the command itself."""

import shlex
from pathlib import Path

from data.common.say import plain
from eval.pages import Section

MOST = 2000
"""Characters of a sample that are shown."""


def configurations(folders: dict[str, Path]) -> list[Section]:
    """The config.yaml of each run, by its name."""
    found = []
    for name, folder in folders.items():
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if not line.startswith("# sha256 of")]
        found.append(Section(f"Configuration of {name}", code="\n".join(lines)))
    return found


def samples(folders: dict[str, Path]) -> list[Section]:
    """The newest sample of each run that has written some."""
    found = []
    for name, folder in folders.items():
        files = sorted(path for path in (folder / "samples").glob("*") if path.is_file())
        if files:
            text = files[-1].read_text(encoding="utf-8", errors="replace")
            cut = text if len(text) <= MOST else f"{text[:MOST]} ..."
            title = f"Sample of {name}"
            found.append(Section(title, f"{plain(files[-1].name)}, its beginning.", code=cut))
    return found


def command(run: Path, beside: list[Path], split: str, out: Path, anyway: bool) -> Section:
    """The command that makes the page again of what the runs hold."""
    words = ["longrange", "report", "--run", str(run), "--split", split, "--out", str(out)]
    if beside:
        words += ["--beside", f"[{', '.join(map(str, beside))}]"]
    if anyway:
        words += ["--anyway", "true"]
    text = "This page was made of what lies in the runs by"
    return Section("Command", text, code=shlex.join(words))
