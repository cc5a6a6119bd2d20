"""The exit codes of launchers, and the errors that they stand for.

0   done
1   training diverged
2   bad input: flags, data, or a workdir that holds something else or is in use
3   the machine refused: disk full or read-only, no permission, out of memory
4   any other error: a fault of this program, printed with its traceback
128 + signal, after a signal (130 Ctrl-C, 143 SIGTERM)

Any code but 0 comes with one line on stderr that begins with "error:".
"""

import errno
import logging
import signal
import sys
import traceback

import jax
from absl import flags

from nl_jax import Diverged, InputError
from nl_jax.training import TrainingInterrupted

DIVERGED, BAD_INPUT, REFUSED, FAULT = 1, 2, 3, 4
READER_GONE = 128 + 13  # as after SIGPIPE, a signal that not every system has
# Error codes of the system for a bad path given by the user.
_BAD_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


class Terminated(KeyboardInterrupt):
    """SIGTERM came while nothing was trained. While something is, `fit` saves it and raises `TrainingInterrupted`."""


def code_and_line(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and the line that describes it."""
    match error:
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


def fail(error: BaseException) -> int:
    """Prints the line of an error to stderr, after its traceback if that helps, and returns the exit code."""
    code, line = code_and_line(error)
    if code == FAULT:
        traceback.print_exception(error)
    print("error:", " ".join(line.split()), file=sys.stderr)
    return code


class WithoutTracebacks(logging.Filter):
    """Drops log records with a traceback, also from threads, since the error itself is reported in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns False for a record with a traceback."""
        return not record.exc_info
