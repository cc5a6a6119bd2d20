"""A lock held by another process, for tests."""

import contextlib
import fcntl
import os
import subprocess
import sys

HOLD = """
import sys, time
from pathlib import Path
from nl_jax.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder_of(file):
    """Another process that holds the lock of a file."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, file], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def free(file):
    """Whether another process could take the lock: the system tells apart files by how often they were opened."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
