"""Paths as users write them, and the lock of a directory."""

import os
import signal
from pathlib import Path

import pytest
from locks import free, holder_of

from nl_jax import InputError
from nl_jax.files import local_path, locked, reason


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
