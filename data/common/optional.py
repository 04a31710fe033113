"""Packages that only some programs need, and that an ordinary installation lacks."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import inside of this what belongs to an extra of pyproject.toml.

    Args:
        name: the extra.
        what: the program or setting that asks for it.

    Raises:
        ValueError: a package is missing or cannot be imported; says how to install it.
    """
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        reason = f"the package {error.name}" if missing else f"a package that works ({error})"
        raise ValueError(f"{what} needs {reason}: pip install 'longrange-lm[{name}]'") from error
