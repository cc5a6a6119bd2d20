"""The child of ``experiments/common/supervisor.py``: runs a launcher, and says how it ended before JAX shuts down.

Python's stdout and stderr stay those of the command. What C++ prints there, such as gloo's connections and the stack
trace of an abort, goes to a file that the parent reads.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading

CHILD = "NL_JAX_CHILD"  # as in supervisor.py, which imports JAX: too early here
MOST_CHARACTERS = 10_000  # of a line: a pipe holds 64 KiB, and the parent reads when this process has ended


def main() -> None:
    """Runs the launcher named by the first argument, and ends this process."""
    lifeline, verdict, noise = map(int, os.environ[CHILD].split(","))
    _keep_streams(noise)
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    from experiments.common import failures

    def say(code: int, line: str = "") -> None:
        # At once, since JAX may abort this process at any moment: the parent prints this line or one of its own.
        os.write(verdict, f"{code} {line[:MOST_CHARACTERS]}\n".encode(errors="replace"))

    failures.to_parent = say
    name, *arguments = sys.argv[1:]
    try:
        code = importlib.import_module(name).main([name, *arguments])
    except BaseException as error:
        code = failures.fail(error)
    from nl_jax.parallel import hosts

    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    say(code)  # the parent reads the first line only
    if code == 0:
        hosts.finish()
    else:
        hosts.leave()
    os._exit(code)


def _keep_streams(noise: int) -> None:
    """Moves Python's streams to copies of their files, and lets the originals, which C++ knows by number, be noise."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        copy = open(  # noqa: SIM115 (until the process ends)
            os.dup(number),
            "w",
            buffering=1 if number == 2 or stream.isatty() else -1,
            encoding=stream.encoding,
            errors=stream.errors,
        )
        setattr(sys, name, copy)
        os.dup2(noise, number)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
