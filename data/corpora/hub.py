"""Data sets of the Hugging Face hub, streamed: nothing is downloaded but what is read."""

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpora.local import DAMAGE
from data.documents import Block, Part
from data.manifest import SourceFacts
from data.records import Rows

HUB = "hub"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class HubName:
    """A data set on the hub: `owner/name`, or the folder of a copy; configuration; revision."""

    name: str
    config: str | None = None
    revision: str | None = None

    @property
    def facts(self) -> dict[str, str | None]:
        """What the manifest says of it."""
        return {"hub": self.name, "config": self.config, "revision": self.revision}

    def made(self, facts: SourceFacts) -> bool:
        """Whether facts of a manifest are of this data set, at whatever revision."""
        return (facts.hub, facts.config) == (self.name, self.config)


def parse_hub(source: str | None, default: HubName | None) -> HubName | None:
    """The hub data set that `hub` or `hub:NAME[:CONFIG]` means; None for any other source.

    ValueError for a bare `hub` where there is no default.
    """
    if source is None or source.partition(":")[0] != HUB:
        return None
    name, _, config = source.partition(":")[2].partition(":")
    if config.startswith("//") or (name and not (NAME.fullmatch(name) or is_path(name))):
        raise ValueError(
            f"{ascii(source)[1:-1]} names no data set: it is hub:OWNER/NAME[:CONFIG], or hub: and "
            "the folder of a copy"
        )
    if name:
        return HubName(name, config or None)
    if default is None:
        raise ValueError("say which data set of the hub is meant: hub:OWNER/NAME[:CONFIG]")
    return default


def is_path(name: str) -> bool:
    """Whether a name is that of a folder, and of nothing on the hub."""
    return Path(name).is_absolute() or name.startswith(("./", "../")) or Path(name).is_dir()


def stream(hub: HubName, alternative: str, **options: Any) -> Any:
    """`datasets.load_dataset` in streaming mode.

    alternative: what else can be given as a source, for the sentence that a ValueError bears when
    the hub cannot be reached, the data set is not there, or it needs a loading script.
    """
    import datasets
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    # What it logs as an error is raised too.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        return datasets.load_dataset(
            hub.name, hub.config, revision=hub.revision, streaming=True, **options
        )
    except RuntimeError as error:
        if "script" not in str(error):
            raise damaged(hub, error) from error
        raise ValueError(
            f"{hub.name} needs a loading script, which datasets no longer runs: use a copy in "
            f"parquet, or give --source {alternative}"
        ) from error
    except OSError as error:
        raise unreachable(hub, alternative, error) from error
    except Exception as error:
        # Its readers of formats raise what they like: a damaged .zip, pickles in a .tar, and more.
        raise damaged(hub, error) from error


def unreachable(hub: HubName, alternative: str, error: Exception) -> ValueError:
    """The sentence for a data set that is not there or cannot be reached."""
    if is_path(hub.name):
        state = "holds no data set" if Path(hub.name).is_dir() else "is no folder"
        return ValueError(f"{hub.name} {state} ({first_line(error)}): give --source {alternative}")
    return ValueError(
        f"{hub.name} cannot be reached on the hub ({type(error).__name__}): check the name and the "
        f"network, or give --source {alternative}"
    )


def damaged(hub: HubName, error: Exception) -> ValueError:
    """The sentence for files of a data set that cannot be read."""
    reason = first_line(error)
    if "pickle" in reason or isinstance(error, pickle.UnpicklingError):
        # The libraries' own advice is to open them.
        reason = "it holds pickles, which are never opened"
    return ValueError(
        f"{hub.name} has a file that cannot be read ({reason}): mend it, or take another copy or "
        "revision"
    )


def first_line(error: Exception) -> str:
    """What an error says first; its kind if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def pinned(hub: HubName, alternative: str) -> HubName:
    """The data set at the commit it has now, so that all workers and later calls read the same."""
    from huggingface_hub import HfApi

    if Path(hub.name).is_dir():
        return hub
    if is_path(hub.name):
        raise unreachable(hub, alternative, FileNotFoundError("it is not there"))
    try:
        commit = HfApi().dataset_info(hub.name, revision=hub.revision).sha
    except Exception as error:
        # Without a network, the errors are those of whatever HTTP library the client uses.
        raise unreachable(hub, alternative, error) from error
    return HubName(hub.name, hub.config, commit)


def rows_of(hub: HubName, data: Any) -> Iterator[dict[str, Any]]:
    """Rows of a streamed split; ConnectionError when the stream breaks off, ValueError when what
    it brings cannot be read.
    """
    rows = iter(data)
    while True:
        try:
            row = next(rows, None)
        except (ValueError, *DAMAGE, ImportError, pickle.UnpicklingError) as error:
            raise damaged(hub, error) from error
        except Exception as error:
            # As in `pinned`. Not a ValueError: what was read before is worth keeping.
            raise ConnectionError(
                f"the stream of {hub.name} broke off ({type(error).__name__}): call again, and the "
                "build continues"
            ) from error
        if row is None:
            return
        yield row


def texts_of(hub: HubName, data: Any) -> Iterator[str | None]:
    """The column text of a streamed split; ValueError where there is none, or it is no text."""
    for row in rows_of(hub, data):
        if type(row.get("text", 0)) not in (str, type(None)):
            known = ", ".join(row)
            raise ValueError(f"{hub.name} has no text in column 'text'; its columns are {known}")
        yield row["text"]


@dataclass(frozen=True)
class HubPart(Part):
    """One of the files that a split of a hub data set is stored in."""

    hub: HubName
    split: str
    index: int
    count: int
    rows: Rows
    alternative: str

    def read(self) -> Iterator[Block]:
        """Yield each row's document."""
        try:
            data = stream(self.hub, self.alternative, split=self.split)
        except ValueError as error:
            # It was there when the parts were listed.
            raise ConnectionError(str(error)) from error
        shard = data.shard(num_shards=self.count, index=self.index)
        for number, row in enumerate(rows_of(self.hub, shard)):
            name = f"{self.split}-{self.index:05d}#{number}"
            yield from self.rows.blocks(row, name, f"{self.hub.name}, {name}")


def hub_parts(hub: HubName, split: str, data: Any, rows: Rows, alternative: str) -> list[HubPart]:
    """The parts of one split, opened as `data`; ValueError unless it has the columns wanted."""
    known = data.column_names
    missing = [column for column in rows.columns if known is not None and column not in known]
    if missing:
        raise ValueError(
            f"{hub.name} has no column {missing[0]!r}; its columns are {', '.join(known)}"
        )
    count = data.num_shards
    return [HubPart(hub, split, index, count, rows, alternative) for index in range(count)]
