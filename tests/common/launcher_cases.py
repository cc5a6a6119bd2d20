"""What tests of launchers share."""

import contextlib
import json
import os
import resource
import subprocess

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# What results.json has of each model that experiments.language_model has trained.
MODEL_FIGURES = (
    "parameters",
    "tokens",
    "validation_bits_per_byte",
    "test_bits_per_byte",
    "tokens_per_second",
    "peak_memory_bytes",
    "skipped",
)


def error_line(capsys):
    """What is on stderr, if it is one line and stdout is empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


@contextlib.contextmanager
def no_compilation_cache():
    """Leaves out the cache of compiled programs: the benchmark of compile times refuses one."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def small_files(size):
    """Lets no file grow beyond so many bytes: writes then fail where they would on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def disk_of(directory, size):
    """A disk of so many bytes, mounted on a directory; skips the test where that is not allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@contextlib.contextmanager
def read_only(directory):
    """Lets nothing be written into a directory; skips the test where the system does not allow that."""
    if os.geteuid():
        mode = directory.stat().st_mode
        directory.chmod(0o555)
        try:
            yield
        finally:
            directory.chmod(mode)
        return
    if subprocess.run(["mount", "--bind", directory, directory], capture_output=True).returncode:
        pytest.skip("root can write everywhere, and file systems cannot be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(directory):
    """Takes what room a disk has left."""
    with contextlib.suppress(OSError), (directory / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def call(main, *arguments):
    """Exit code of a launcher run in this process."""
    return main(["launcher", *map(str, arguments)])
