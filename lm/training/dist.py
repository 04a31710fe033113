"""Ranks: who takes part in a run, and sums over them."""

import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from data.common.say import say

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

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            torch.distributed.barrier()

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
        ValueError: what the action raised, on all ranks; OSError likewise.
    """
    result, error = None, None
    if world.first:
        try:
            result = action()
        except (OSError, ValueError) as problem:
            error = problem if isinstance(problem, OSError) else ValueError(str(problem))
    found = world.gather(error)[0]
    if found is not None:
        raise found
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


def join(timeout: float = 10.0) -> World:
    """Join the run that the launcher describes; without a launcher, a run of one process.

    `deepspeed`, `torchrun` and SLURM wrappers set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT; a bare `python -m lm.train` has none of them. A rank that waits for another one
    longer than `timeout` minutes fails instead.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    own_port = "MASTER_PORT" not in os.environ
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    # Imported here because it takes seconds and writes to the log.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed would compile this shared-memory helper with c++, or fail where there is none; only
    # its inference engine uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if not cuda and "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(
            "nccl" if cuda else "gloo", verbose=False, timeout=timedelta(minutes=timeout)
        )
    _name_collectives(deepspeed.comm.comm.cdb)
    if own_port:
        # It is this process's alone: a run that it starts must find another.
        del os.environ["MASTER_PORT"]
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def _name_collectives(backend: Any) -> None:
    """Have DeepSpeed call two collectives by their present names; torch warns at each call by the
    former ones.
    """
    for attribute, name in (
        ("all_gather_function", "all_gather_single"),
        ("reduce_scatter_function", "reduce_scatter_single"),
    ):
        if hasattr(torch.distributed, name):
            setattr(backend, attribute, getattr(torch.distributed, name))
