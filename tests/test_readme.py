"""README is a short page for newcomers, its links lead somewhere, and its Python runs as it is."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert README.count("\n") <= 200


def test_links_lead_to_files() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
        gone = [link for link in links if not (page.parent / link).exists()]
        assert not gone, f"{page.name} links to {gone}"


def test_its_python_runs(trained_run: Path, tmp_path: Path) -> None:
    """Word for word, in a folder that has the run and the book that it names."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "books").symlink_to(trained_run)
    (tmp_path / "book.txt").write_text("the long book of memory and time " * 40)
    script = tmp_path / "ten_lines.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) > 1
