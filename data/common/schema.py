"""Records that programs write and read back, checked whole before anything is done with them.

A record is a frozen class over `Record` whose annotations say what each field may be; `read_record`
turns a file into one, or says in a sentence which field is not as it must be. Files of one JSON
object a line (logs) go through `read_lines`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data.common.files import parse_json
from data.common.integrity import read_sealed

Kind = TypeVar("Kind")

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of things, or a place among them."""
Size = Annotated[int, Field(ge=1, lt=1 << 63)]
"""How many there are of what there must be one of."""
Positive = Annotated[float, Field(gt=0)]
"""A number above zero."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal digits."""


class Record(BaseModel):
    """Base of what is read back: no conversions, no infinite numbers, no unknown field."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


def read_record(kind: type[Kind], path: Path, mend: str, sealed: bool = True) -> Kind:
    """Read a JSON file as a record, and check it against its hash if it has one.

    Args:
        kind: a `Record`, or any annotation that pydantic knows, such as `list[Entry]`.
        path: the file.
        mend: what the user can do about a file that is not as it must be; ends the sentence.
        sealed: whether `write_sealed` writes such files, so that one without a hash is told.

    Raises:
        ValueError: not JSON, changed since it was written (`write_sealed`), or a field that is
            missing, unknown, mistyped or out of range.
        OSError: the file cannot be read.
    """
    value = read_sealed(path, mend, sealed)
    try:
        return as_record(kind, value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {mend}") from None


def as_record(kind: type[Kind], value: Any) -> Kind:
    """A parsed value as a record; ValueError names the first field that is not as it must be."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def read_lines(kind: type[Kind], path: Path, mend: str) -> Iterator[Kind]:
    """Records of a file of one JSON value a line; blank lines are passed over.

    Raises:
        ValueError: as `read_record`, with the line's number.
    """
    adapter = TypeAdapter(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield adapter.validate_python(parse_json(line))
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {complaint(error)}; {mend}") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}; {mend}") from None


def complaint(error: ValidationError) -> str:
    """The first thing that a validation found, such as "splits.train.tokens is missing"."""
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(str(part) for part in first["loc"])
    subject = place or "the whole"
    if first["type"] == "missing":
        return f"{subject} is missing"
    if first["type"] == "extra_forbidden":
        return f"{subject} is not known"
    reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{subject} {reason[:1].lower()}{reason[1:]}, not {shown(first['input'])}"


def shown(value: Any) -> str:
    """A value in a sentence, however long or strange it is."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
