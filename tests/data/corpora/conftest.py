"""Building shards of a source and looking at the texts in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.prepare import DataConfig, prepare


@pytest.fixture
def texts_of(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Function from a source of corpus text to each document's text by name."""

    def texts(source: Path | str, **options: Any) -> dict[str, bytes]:
        place = tmp_path / f"shards{len(list(tmp_path.iterdir()))}"
        shards = prepare(DataConfig("text", place, str(source), **options), workers=1)
        found: dict[str, bytes] = {}
        for name in shards.splits:
            split = shards.split(name)
            for document, title in zip(split.documents, split.names, strict=True):
                ids = split.tokens[document["offset"] : document["offset"] + document["tokens"]]
                assert title not in found
                found[title] = shards.vocabulary.decode(ids)
        return found

    return texts
