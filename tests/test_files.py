"""Paths as users write them, and the lock of a directory."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nl_jax import InputError
from nl_jax.files import local_path, locked, reason

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


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b", "file:///tmp/a", "hf://x/y", "gs:/bucket", "", "a\0b"])
def test_what_is_no_local_path_is_refused(path):
    for given in (path, Path(path)) if path and "\0" not in path else (path,):
        with pytest.raises(InputError, match=r"path .*: expected") as error:
            local_path(given)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such user"):
        local_path("~nobody-of-this-name/x")


def test_local_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, expected in [
        ("~", "/home/me"),
        ("~/runs", "/home/me/runs"),
        ("runs/a:b", "runs/a:b"),
        ("./gs:/odd", "gs:/odd"),
        ("/abs/ é", "/abs/ é"),
    ]:
        assert local_path(given) == Path(expected)


def test_a_lock_names_its_process_and_dies_with_it(tmp_path):
    file = tmp_path / "lock"
    with holder_of(file) as holder:
        with pytest.raises(InputError, match=f"{tmp_path}: process {holder.pid} is writing there"), locked(file):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(file):
            assert file.read_text().split()[0] == str(os.getpid())


def test_a_process_may_take_its_lock_again(tmp_path):
    file = tmp_path / "lock"
    with locked(file):
        with locked(file):
            pass
        assert not free(file)
    assert free(file)


def test_reasons_are_what_the_system_said():
    assert reason(OSError(28, "No space left on device", "/a")) == "No space left on device"
    assert reason(ValueError("Failed to write 3 bytes [os_error_code='28']")) == "No space left on device"
    assert reason(RuntimeError("one\ntwo")) == "RuntimeError: one"
