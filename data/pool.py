"""A pool of worker processes that ends with its parent, however the parent ends."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")

OF_TERMINALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def work_in_pool(
    workers: int, work: Callable[..., Result], shared: Any, items: Iterable[tuple[int, Any]]
) -> Iterator[Result]:
    """Yield `work(shared, index, item)` of numbered items as it comes, in any order.

    One worker works in this process; of more, each is a process. `work` and `shared` must be
    picklable; `shared` is sent to each worker once. ChildProcessError when a worker was killed; an
    error of `work` is raised as it is.
    """
    waiting = deque(items)
    workers = min(workers, len(waiting))
    if workers <= 1:
        for index, item in waiting:
            yield work(shared, index, item)
        return
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with unheard():
        # Makes the process that looks after semaphores, too.
        pool = ProcessPoolExecutor(workers, spawn, start_worker, (work, shared))
    try:
        working: set[Future[Any]] = set()
        while waiting or working:
            # Few are handed out ahead, so that few results are held at a time.
            while waiting and len(working) < 2 * workers:
                working.add(submit(pool, working, waiting.popleft()))
            done, working = wait(working, return_when=FIRST_COMPLETED)
            while done:
                yield done.pop().result()
    except KeyboardInterrupt:
        # What they work on is written whole or not at all; nobody waits for it.
        end_workers(others)
        raise
    except BrokenProcessPool as error:
        # The pool does not know of a worker that was starting when another one was killed; it
        # would wait for work for ever, and this process at its end for it.
        end_workers(others)
        raise ChildProcessError(
            "a worker was killed, perhaps for want of memory: call again with fewer workers "
            "and the build continues"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_workers(others: set[Any]) -> None:
    """End all processes of this one that are not among `others`."""
    for worker in set(multiprocessing.active_children()) - others:
        worker.terminate()
        worker.join()


def submit(
    pool: ProcessPoolExecutor, working: Iterable[Future[Any]], numbered: tuple[int, Any]
) -> Future[Any]:
    """Hand out an item, for which a worker may be started."""
    try:
        with unheard():
            return pool.submit(work_on, *numbered)
    except OSError:
        # The pool has closed its pipes if a worker was killed while this one was starting; what
        # others were working on says so.
        for future in working:
            if future.done():
                future.result()
        raise


@contextmanager
def unheard() -> Iterator[None]:
    """Context in which processes are started that hear nothing of what a terminal sends to all of
    them: the parent does, and ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_here: dict[str, Any] = {}


def start_worker(work: Callable[..., Any], shared: Any) -> None:
    """Keep what every call needs, and leave if the parent is killed."""
    _here.update(work=work, shared=shared)
    # Workers share the cores already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Ctrl-C reaches every process of a terminal; the parent ends the work for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def work_on(index: int, item: Any) -> Any:
    """One call of `work` in a worker process."""
    return _here["work"](_here["shared"], index, item)
