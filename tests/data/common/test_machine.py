"""What does not fit is refused before it is made, at any size."""

from pathlib import Path

import pytest

from data.common import machine
from data.common.machine import host_memory, in_bytes, require_memory


def test_what_fits_passes_and_what_does_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_memory() > 1 << 27
    require_memory(host_memory(), "this", "make it smaller")
    monkeypatch.setattr(machine, "host_memory", lambda: 2_000_000_000)
    for needed, said in ((2_100_000_000, "2.1 GB"), (10**400, "many TB"), (7 * 10**13, "70.0 TB")):
        with pytest.raises(ValueError, match=f"^this takes at least {said} .* 2.0 GB here: less$"):
            require_memory(needed, "this", "less")
    with pytest.raises(ValueError, match=r"11 bytes of memory, but there are 10 bytes"):
        require_memory(11, "this", "less", room=10)
    assert [in_bytes(count) for count in (0, 1500, 2_500_000)] == ["0 bytes", "1.5 kB", "2.5 MB"]


def test_a_container_has_what_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (tmp_path / "none", tmp_path / "x"))
    whole = host_memory()
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    assert host_memory() == 1_000_000 < whole
