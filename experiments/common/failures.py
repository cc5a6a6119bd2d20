"""The exit codes of launchers, and the errors that they stand for.

0   done
1   training diverged
2   bad input: flags, data, or a workdir that holds something else or is in use
3   the machine refused: disk full or read-only, no permission, out of memory
4   any other error: a fault of this program, printed with its traceback
5   a process of the run was lost; the same command on all processes resumes
128 + signal, after a signal (130 Ctrl-C, 143 SIGTERM)

Any code but 0 comes with one line on stderr that begins with "error:".
"""

import contextlib
import errno
import logging
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags

from nl_jax import Diverged, InputError, StorageError
from nl_jax.errors import ProcessLost
from nl_jax.parallel.hosts import several
from nl_jax.training import TrainingInterrupted

DIVERGED, BAD_INPUT, REFUSED, FAULT, LOST = 1, 2, 3, 4, 5
# How JAX's errors begin to speak of another process: collectives on CPU and GPU, and the coordination service.
_OF_ANOTHER = re.compile(r"gloo|nccl|coordination.?service|heartbeat|barrier|UNAVAILABLE", re.IGNORECASE)
to_parent: Callable[[int, str], None] | None = None  # set in a child that a parent supervises
READER_GONE = 128 + 13  # as after SIGPIPE, a signal that not every system has
# Error codes of the system for a bad path given by the user.
_BAD_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


class Terminated(KeyboardInterrupt):
    """SIGTERM came while nothing was trained. While something is, `fit` saves it and raises `TrainingInterrupted`."""


def code_and_line(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and the line that describes it."""
    lost = _of_another(error) if several() else None
    if lost is not None:
        reason = re.sub(r"\[external[^]]*\]", "", str(lost))
        error = ProcessLost(textwrap.shorten(reason, 120, placeholder=" ..."))
    match error:
        case ProcessLost():
            return LOST, f"a process of the run was lost ({error}); the same command on all processes resumes"
        case flags.Error() | InputError():
            return BAD_INPUT, str(error)
        case Diverged():
            return DIVERGED, str(error)
        case TrainingInterrupted():
            return 128 + error.signum, f"{error}; the same command resumes from there"
        case Terminated():
            return 128 + signal.SIGTERM, "stopped by SIGTERM; the same command resumes from what was saved"
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "interrupted; the same command resumes from what was saved"
        case BrokenPipeError():
            return READER_GONE, "whoever read the output has closed it"
        case OSError():
            return BAD_INPUT if error.errno in _BAD_PATH else REFUSED, str(error)
        case MemoryError():
            return REFUSED, "out of memory; expected smaller sizes, such as batch_size, seq_len or the preset"
        case jax.errors.JaxRuntimeError() if "RESOURCE_EXHAUSTED" in str(error):
            line = str(error).strip().splitlines()[0][:200]
            return REFUSED, f"{line}; expected smaller sizes, such as batch_size, seq_len or the preset"
    return FAULT, f"{type(error).__name__}: {error} (a fault of this program; the traceback is above)"


def _of_another(error: BaseException) -> BaseException | None:
    """JAX's error about another process: this one, or the one that a failed save names as its cause; None otherwise."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    # JAX raises these three; a path in any other error may well be called nccl_test
    if not isinstance(cause, RuntimeError | ValueError | TimeoutError) or isinstance(cause, InputError):
        return None
    by_system = getattr(cause, "errno", None) is not None or "os_error_code" in str(cause)
    return cause if not by_system and _OF_ANOTHER.search(str(cause)) else None


def with_flags(error: BaseException, values: flags.FlagValues) -> BaseException:
    """The same error. Where an `InputError` names an argument, it now names the flag: ``--seq_len`` for ``seq_len``."""
    if not isinstance(error, InputError):
        return error

    def flag(found: re.Match[str]) -> str:
        return f"--{found[0]}" if found[0] in values else found[0]

    return InputError(re.sub(r"(?<![^\s(])\w+(?==)|^\w+(?=:)", flag, str(error)))


def fail(error: BaseException) -> int:
    """Reports the line of an error, after its traceback if that helps, and returns the exit code."""
    code, line = code_and_line(error)
    if code == FAULT:
        traceback.print_exception(error)
    report(code, " ".join(line.split()))
    return code


def report(code: int, line: str) -> None:
    """Prints a line to stderr. `experiments.common.supervised` sends it to the parent instead, with the code."""
    if to_parent is None:
        print("error:", line, file=sys.stderr)
    else:
        to_parent(code, line)


class WithoutTracebacks(logging.Filter):
    """Drops log records with a traceback, also from threads, since the error itself is reported in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns False for a record with a traceback."""
        return not record.exc_info


def print_anything() -> None:
    """Makes characters that the terminal cannot show print as \\xe9, instead of raising an error."""
    stream = sys.stdout
    if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def without_tracebacks() -> Iterator[None]:
    """Keeps tracebacks of Orbax off stderr: it logs each error of a save several times, and its threads print more.

    After such an error its threads keep failing, and are kept quiet, until the process ends.
    """
    loggers, only, failing = [logging.getLogger(name) for name in ("absl", "asyncio")], WithoutTracebacks(), False
    hook = sys.unraisablehook

    def unless_abandoned(unraisable: Any) -> None:
        # A read or write that has failed leaves others under way, whose results nothing waits for any more.
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        of_orbax = code is not None and "orbax" in Path(code.co_filename).parts
        if not of_orbax and "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    for logger in loggers:
        logger.addFilter(only)
    sys.unraisablehook = unless_abandoned
    try:
        yield
    except StorageError:
        failing = True
        raise
    finally:
        if not failing:
            sys.unraisablehook = hook
        for logger in loggers if not failing else ():
            logger.removeFilter(only)
