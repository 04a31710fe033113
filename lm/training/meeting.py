"""How the ranks of a run find each other, and make sure that they are ranks of one run.

A launcher tells each process its place by environment variables. The ranks meet at a store that the
first one keeps, compare there what they are about to do, and look for a file that the first one
writes to the run's folder. All that is before anything is computed, or written elsewhere.
"""

import hashlib
import importlib.metadata
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import HashStore, Store, TCPStore

from data.common.say import say
from data.shards import Shards
from lm.runs.run_config import RunConfig, settings

NOTICE_S = 10.0
"""After so long a rank that waits for others says so."""
SHARED_S = 60.0
"""So long a network file system may take to show one machine what another has written."""
PACKAGES = ("torch", "deepspeed", "numpy")
OWN = ("data.shards", "data.source", "sparse.reservoir")
"""Settings that a rank may have for itself: where its machine keeps something."""
MEND = "start the run by tools.launch, or unset WORLD_SIZE for a run of one process"


@dataclass(frozen=True)
class Place:
    """A process among those that a launcher has started."""

    rank: int = 0
    local_rank: int = 0
    """Number on its machine."""
    size: int = 1
    host: str = ""
    """Machine of the first rank."""
    port: int = 0

    @property
    def where(self) -> str:
        """Where the ranks meet."""
        return f"{self.host}:{self.port}"

    @staticmethod
    def of_environment() -> "Place":
        """What `deepspeed`, `torchrun` and SLURM scripts set; a process alone without these.

        Raises:
            ValueError: a variable is missing or senseless, as when some are left over from another
                run.
        """
        given = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        if given["WORLD_SIZE"] is None:
            if given["RANK"] not in (None, "0"):
                raise ValueError(f"RANK is set in the environment but WORLD_SIZE is not: {MEND}")
            return Place()
        size = number("WORLD_SIZE", 1, 1 << 20)
        if size == 1:
            # An address that is left over from another run is nothing to a process alone.
            number("RANK", 0, 0, fallback=0)
            return Place(local_rank=number("LOCAL_RANK", 0, 1 << 20, fallback=0))
        host = os.environ.get("MASTER_ADDR", "")
        for name, value in (given | {"MASTER_ADDR": host}).items():
            if not value:
                raise ValueError(
                    f"WORLD_SIZE is {size} in the environment but {name} is not set: {MEND}"
                )
        return Place(
            number("RANK", 0, size - 1),
            number("LOCAL_RANK", 0, size - 1),
            size,
            host,
            number("MASTER_PORT", 1, (1 << 16) - 1),
        )


def number(name: str, least: int, most: int, fallback: int | None = None) -> int:
    """An environment variable as a number within bounds."""
    text = os.environ.get(name)
    if text is None and fallback is not None:
        return fallback
    if text is None or not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        bounds = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(f"{name} in the environment must be {bounds}, not {text!r}: {MEND}")
    return int(text)


def meet(place: Place, timeout: float) -> Store:
    """The store at which all ranks meet; only for a process alone one without a network.

    Args:
        place: this rank.
        timeout: minutes to wait for another rank.

    Raises:
        ValueError: the host has no address, the port is taken, or another job meets there.
    """
    if place.size == 1:
        return HashStore()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosting = place.rank == 0 and not agent
    try:
        addresses = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"MASTER_ADDR {place.host!r} is the name of no machine that this one knows ({error}): "
            "give one that all machines know"
        ) from None
    if hosting:
        require_free(place.port)
    else:
        wait_for_listener(addresses)
    wait = timedelta(minutes=timeout)
    store = TCPStore(place.host, place.port, place.size, hosting, wait, False, multi_tenant=True)
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID") or ""
    if place.rank == 0:
        store.set("job", job)
    elif store.get("job").decode() != job or store.add(f"rank {place.rank}", 1) > 1:
        raise ValueError(
            f"at {place.where} the ranks of another run meet: give this run another port"
        )
    return store


def require_free(port: int) -> None:
    """ValueError if something listens on a port of this machine."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"the ranks cannot meet at port {port} of this machine ({error.strerror}): give "
                "the run another port"
            ) from None


def wait_for_listener(addresses: list[Any]) -> None:
    """Wait until something listens at one of some addresses; torch would log each attempt."""
    while True:
        for family, kind, protocol, _, address in addresses:
            with suppress(OSError), socket.socket(family, kind, protocol) as client:
                client.settimeout(5)
                client.connect(address)
                return
        time.sleep(0.1)


@contextmanager
def patience(place: Place, timeout: float) -> Iterator[None]:
    """Context in which ranks wait for each other; too long a wait ends the process.

    A thread looks at the clock, because a rank may wait in a library that does not.
    """
    if place.size == 1:
        yield
        return
    done = threading.Event()
    known = f"all {place.size} ranks at {place.where}"

    def watch() -> None:
        if done.wait(min(NOTICE_S, 60 * timeout)):
            return
        say(f"rank {place.rank} waits for {known}; for a run of one process unset WORLD_SIZE")
        if not done.wait(60 * timeout - NOTICE_S):
            say(f"train: error: rank {place.rank} has waited {timeout:g} minutes for {known}")
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def agree(store: Store, place: Place, facts: Mapping[str, str], run: Path) -> None:
    """Make sure that all ranks are about to do the same, in one folder.

    Args:
        store: where they meet.
        place: this rank.
        facts: what must be the same, by what it is called in a sentence.
        run: the run's folder, which the first rank makes.

    Raises:
        ValueError: on the first rank: they are not; names the first rank and fact that differ.
        SystemExit: on the others, with the same status.
    """
    facts = {"number of ranks": str(place.size), **facts}
    if place.rank == 0:
        verdict = compare(store, place, facts, run)
        store.set("verdict", verdict)
    else:
        store.set(f"facts {place.rank}", json.dumps(facts))
        name = store.get("token").decode()
        store.set(f"seen {place.rank}", "yes" if name and waited(run / name) else "")
        verdict = store.get("verdict").decode()
    # The first rank, which keeps the store and says what is wrong, is the last to go.
    read = store.add("read", 1)
    deadline = time.monotonic() + 10
    while place.rank == 0 and read < place.size and time.monotonic() < deadline:
        time.sleep(0.01)
        read = store.add("read", 0)
    if verdict and place.rank == 0:
        raise ValueError(verdict)
    if verdict:
        time.sleep(1)
        raise SystemExit(2)


def facts_of(config: RunConfig, shards: Shards) -> dict[str, str]:
    """What all ranks must have the same."""
    versions = {f"package {name}": importlib.metadata.version(name) for name in PACKAGES}
    chosen = {name: repr(value) for name, value in settings(config) if name not in OWN}
    return chosen | {"the shards": shards.hash, "the code": code_hash(), **versions}


def code_hash() -> str:
    """Of the files of this program, which are the same where they run from the same commit."""
    root, whole = Path(__file__).parents[2], hashlib.sha256()
    for folder in ("data", "lm"):
        for path in sorted((root / folder).rglob("*.py")):
            whole.update(f"{path.relative_to(root)}\0{len(path.read_bytes())}\0".encode())
            whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def compare(store: Store, place: Place, facts: Mapping[str, str], run: Path) -> str:
    """What is wrong with the other ranks, or nothing; leaves the folder as it was."""
    for rank in range(1, place.size):
        if found := difference(rank, json.loads(store.get(f"facts {rank}")), facts):
            store.set("token", "")
            return found
    made = [path for path in (run, *run.parents) if not path.exists()]
    # A name of its own: another run may be trying the same folder.
    token = run / f".ranks-{secrets.token_hex(8)}.partial"
    try:
        run.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        store.set("token", "")
        return f"{run} may not be written ({error.strerror}): give another --run folder"
    try:
        store.set("token", token.name)
        blind = [rank for rank in range(1, place.size) if not store.get(f"seen {rank}")]
    finally:
        with suppress(OSError):
            token.unlink()
            for path in made:
                path.rmdir()
    if not blind:
        return ""
    return (
        f"rank {blind[0]} does not see what rank 0 writes to {run}: give a --run folder on a disk "
        "that all machines share"
    )


def difference(rank: int, theirs: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """The first fact in which a rank differs from the first rank, as a sentence; or nothing."""
    for name in [*facts, *theirs]:
        there, here = theirs.get(name, "nothing"), facts.get(name, "nothing")
        if there != here:
            return (
                f"rank {rank} has {name} {there} where rank 0 has {here}: start all ranks with the "
                "same command, software and data"
            )
    return ""


def waited(path: Path) -> bool:
    """Whether a file is there before long."""
    deadline = time.monotonic() + SHARED_S
    while True:
        # To list a folder makes a network file system look again.
        with suppress(OSError):
            if path in path.parent.iterdir():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
