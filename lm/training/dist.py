"""Ranks: who takes part in a run, and sums over them.

Sums and counts stay whole until one division by what all ranks counted together.
"""

import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from data.common.say import say
from lm.objectives.objective import Term
from lm.threads import available
from lm.training.engine import start_deepspeed
from lm.training.meeting import Place, meet, patience

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among the processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and shows its progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def totals(self, values: list[float]) -> list[float]:
        """Sums of numbers over all ranks, in float64."""
        if self.size == 1:
            return values
        return self.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def random_state(self) -> dict[str, Tensor]:
        """State of this rank's random generators, by `rng.DEVICE`.

        Nothing in training draws from Python's or numpy's global generators.
        """
        state = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `random_state` returned, perhaps on another device."""
        torch.set_rng_state(state["rng.cpu"])
        if "rng.cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng.cuda"], self.device)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def refuse(self, reason: str | OSError | ValueError) -> NoReturn:
        """End every rank, which all call this; the first says why."""
        if self.first:
            raise ValueError(reason) if isinstance(reason, str) else reason
        raise SystemExit(2)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everyone, value)
        return everyone


def on_first(world: World, action: Callable[[], Result]) -> Result | None:
    """Let the first rank do something, and end every rank if it fails.

    Returns:
        The action's result on the first rank, None on the others.

    Raises:
        ValueError: what the action raised, on the first rank; OSError likewise.
        SystemExit: on the others, which have nothing to add.
    """
    result, error = None, None
    if world.first:
        try:
            result = action()
        except (OSError, ValueError) as problem:
            error = problem if isinstance(problem, OSError) else ValueError(str(problem))
    found = world.gather(error)[0]
    if found is not None:
        world.refuse(found)
    return result


def from_first(world: World, action: Callable[[], Result]) -> Result:
    """What the first rank finds, on every rank; errors as in `on_first`."""
    found: Result = world.gather(on_first(world, action))[0]
    return found


def leave(world: World) -> None:
    """End the part in the run of a rank that is through, when all are.

    Without this, gloo's threads may still run while the interpreter takes them down, and abort it.
    """
    world.barrier()
    torch.distributed.destroy_process_group()


def give_up(world: World, error: RuntimeError) -> NoReturn:
    """End this process at once, with its reason on stderr, so that no rank waits for another.

    A rank that has lost another says so in a sentence; whatever else went wrong shows where.
    """
    message = str(error)
    if "gloo" in message or isinstance(error, torch.distributed.DistError):
        line = message.strip().splitlines()[0]
        say(
            f"train: error: rank {world.rank} lost contact with another rank, whose own message "
            f"says why it ended; the same command goes on from the last checkpoint ({line})"
        )
    else:
        say("".join(traceback.format_exception(error)).rstrip())
    # Without the usual clearing up, which may wait for the ranks that are gone.
    os._exit(1)


@contextmanager
def ending_together(world: World) -> Iterator[None]:
    """Context in which a rank that fails, or loses another, ends at once, as `give_up` does."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1:
            raise
        give_up(world, error)


def free_port() -> int:
    """A TCP port of this host that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def join(timeout: float = 10.0, agree: Callable[[Store, Place], None] | None = None) -> World:
    """Join the run that the launcher describes; without a launcher, a run of one process.

    `deepspeed`, `torchrun` and SLURM wrappers set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT; a bare `python -m lm.train` has none of them. A rank that waits for another one
    longer than `timeout` minutes fails instead.

    Args:
        timeout: minutes.
        agree: called where several ranks have met, before they compute anything together.

    Raises:
        ValueError: the environment makes no sense, or the ranks cannot meet.
    """
    place = Place.of_environment()
    for name in ("RANK", "LOCAL_RANK"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    device = torch.device("cpu")
    if not cuda and "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", place.size))
        cores = min(torch.get_num_threads(), available())
        torch.set_num_threads(max(1, cores // local))
    if cuda:
        if place.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {place.local_rank} in the environment, but this machine has "
                f"{torch.cuda.device_count()} GPUs: start one process for each"
            )
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        with patience(place, timeout):
            store = meet(place, timeout)
            if agree is not None and place.size > 1:
                agree(store, place)
            torch.distributed.init_process_group(
                "nccl" if cuda else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(minutes=timeout),
            )
    start_deepspeed()
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


Pair = tuple[float, float]
"""Sum and count over all ranks."""


class Sums:
    """Named losses, each one pair or a pair a layer, gathered over back-propagations and ranks."""

    def __init__(self) -> None:
        self.pairs: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Term]) -> None:
        """Add what one back-propagation read; every rank adds the same names."""
        for whole, term in losses.items():
            name = whole + "/" if term.total.ndim else whole
            pair = torch.stack([term.total.detach().double(), term.counted.double()])
            self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair

    def totals(self, world: World) -> dict[str, Pair]:
        """Sums over all ranks; those by layer are named `NAME/LAYER`."""
        wide = {name: pair.reshape(2, -1) for name, pair in self.pairs.items()}
        totals, counts = world.sum(torch.cat(list(wide.values()), dim=1)).tolist()
        pairs = iter(zip(totals, counts, strict=True))
        return {
            f"{name}{layer}" if name.endswith("/") else name: next(pairs)
            for name, columns in wide.items()
            for layer in range(columns.shape[1])
        }
