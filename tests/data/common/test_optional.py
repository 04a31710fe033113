"""A package that is not there is named, with what installs it."""

import sys

import pytest

from data.common.requirements import extra


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
