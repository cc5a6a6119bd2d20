"""Work in threads that nothing can stop, as XLA's compilations: how much is under way, and an end that does not wait.

Python joins such threads when a process ends, however long they take.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
_STARTED: set["Future[Any]"] = set()  # without those that have ended, so that nothing here holds their results


def start(work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]]) -> list["Future[Result]"]:
    """Calls ``work`` with the arguments of each job, all at the same time."""
    pool = ThreadPoolExecutor(len(jobs))
    futures = [pool.submit(work, *job) for job in jobs]
    for future in futures:
        _STARTED.add(future)
        future.add_done_callback(_STARTED.discard)
    pool.shutdown(wait=False)
    return futures


def under_way() -> int:
    """The number of calls that have been started and have not ended."""
    return sum(not future.done() for future in tuple(_STARTED))


def end_process(code: int) -> None:
    """Ends the process with an exit code at once, without cleaning up, if calls are under way; else does nothing."""
    if not under_way():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
