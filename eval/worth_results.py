"""What a breakdown's file holds of memory's worth, as it is read back."""

from typing import Annotated, Literal

from pydantic import Field

from data.common.schema import Count, Record, Size

BESIDE = {"segment": "the segment alone", "memory": "no compressed memory"}
"""What a local reading sees, in words."""


class Worth(Record):
    """What memory tells, in nats, a mean."""

    worth: float
    """KL of the full reading from the local one."""
    difference: float
    """What it saves on the tokens that came."""


class WorthByPlace(Worth):
    """Of tokens, by their place in the document."""

    first: Annotated[Count, Field(alias="from")]
    to: Size
    tokens: Size


class WorthByFrequency(Worth):
    """Of words, by their occurrences in the training text."""

    name: str
    words: Size


class WorthOfAll(Worth):
    """Of tokens, and its parts."""

    local: Literal["segment", "memory"]
    """What the local reading saw."""
    tokens: Size
    position: Annotated[list[WorthByPlace], Field(min_length=1)]
    frequency: list[WorthByFrequency]
