"""Room is asked for before it is taken, and a package that is not there is named."""

import sys
from pathlib import Path

import pytest

from data.common import requirements
from data.common.requirements import extra, in_bytes, machine_memory, require_memory


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    require_memory(10, "the memory of 3 lanes (lower --lanes)", available=10)
    with pytest.raises(
        ValueError,
        match=r"^the memory of 3 lanes \(lower --lanes\) needs at least 2\.0 GiB of memory, "
        r"and there are 1\.5 KiB$",
    ):
        require_memory(2 << 30, "the memory of 3 lanes (lower --lanes)", available=1536)
    with pytest.raises(ValueError, match=r"over 10\^8 PiB"):
        require_memory(10**60, "the model")


def test_a_container_has_less_than_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = machine_memory()
    assert whole > 1 << 20
    (tmp_path / "limit").write_text("12345\n")
    (tmp_path / "none").write_text("max\n")
    limits = tuple(str(tmp_path / name) for name in ("none", "lacks", "limit"))
    monkeypatch.setattr(requirements, "LIMITS", limits)
    assert machine_memory() == 12345


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 50, "5.0 PiB")],
)
def test_bytes_are_read_in_units(number: int, text: str) -> None:
    assert in_bytes(number) == text


def test_a_package_that_is_missing_or_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = r"^--this needs the package nowhere_to_be: pip install 'longrange-lm\[all\]'$"
    with pytest.raises(ValueError, match=sentence), extra("all", "--this"):
        import nowhere_to_be  # type: ignore[import-not-found]  # noqa: F401
    broken = pytest.raises(ValueError, match=r"needs a package that works \(cannot import name")
    with broken, extra("all", "--this"):
        from json import nothing  # type: ignore[attr-defined]  # noqa: F401
    monkeypatch.setitem(sys.modules, "decimal", None)
    with pytest.raises(ValueError, match="needs the package decimal"), extra("all", "--this"):
        import decimal  # noqa: F401
