"""What launchers share: a workdir with one owner, one line and a documented exit code for what goes wrong."""

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from absl import flags
from launcher_cases import error_line
from locks import free

from experiments.common import failures, launcher
from experiments.common.failures import without_tracebacks
from nl_jax import InputError, StorageError
from nl_jax.training import TrainingDiverged, TrainingInterrupted

CONFIG = {"launcher": "x", "flags": {}, "data": {}, "models": {}}


def test_a_new_workdir_is_locked_until_the_launcher_ends(tmp_path):
    workdir = tmp_path / "run"

    def claim(values):
        for _ in range(2):  # one launcher inside another
            launcher.run(lambda values: launcher.claim_workdir(workdir, CONFIG, {}), flags.FlagValues(), "", ["x"])
        launcher.claim_workdir(workdir, CONFIG, {})
        assert not free(workdir / launcher.LOCK)

    assert launcher.run(claim, flags.FlagValues(), "", ["x"]) == 0
    assert free(workdir / launcher.LOCK)


@pytest.mark.parametrize("file", ["metrics.jsonl", "results.json", "figure.png", "hope"])
def test_a_new_workdir_with_files_that_would_be_replaced_is_refused(file, tmp_path):
    (tmp_path / file).write_text("mine")
    with pytest.raises(InputError, match=f"{file}: there without a config.json"):
        launcher.claim_workdir(tmp_path, CONFIG, {}, written=("figure.png", "hope"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(file, "mine")]


def test_an_error_about_an_argument_speaks_of_the_flag_of_that_name(capsys):
    values = flags.FlagValues()
    for name in ("seq_len", "pairs"):
        flags.DEFINE_integer(name, 8, "", flag_values=values)

    def body(values):
        raise InputError("seq_len=8: expected four times pairs=4 (pairs=2), and width=8, rule=pairs=1, x-pairs=1")

    assert launcher.run(body, values, "", ["x"]) == 2
    expected = "--seq_len=8: expected four times --pairs=4 (--pairs=2), and width=8, rule=pairs=1, x-pairs=1"
    assert error_line(capsys) == f"error: {expected}"


def test_sigterm_outside_of_training_is_one_line_and_the_code_of_a_shell(capsys):
    handled = []

    def body(values):
        signal.raise_signal(signal.SIGTERM)
        handled.append("went on")

    assert launcher.run(body, flags.FlagValues(), "", ["x"]) == 143
    assert "stopped by SIGTERM; the same command resumes" in error_line(capsys)
    assert handled == []
    previous = signal.signal(signal.SIGTERM, lambda *_: handled.append("caller"))
    try:
        assert launcher.run(body, flags.FlagValues(), "", ["x"]) == 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert handled == ["caller", "went on"]


NOT_WRITTEN = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 281474976710656 bytes."


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("one\ntwo"), 2),
        (flags.IllegalFlagValueError("bad"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 2),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a"), 2),
        (TrainingDiverged("at step 3"), 1),
        (TrainingInterrupted("stopped", 15), 143),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
        (StorageError("disk full"), 3),
        (MemoryError(), 3),
        (jax.errors.JaxRuntimeError(OUT_OF_MEMORY), 3),
        *((OSError(number, os.strerror(number), "a"), 3) for number in NOT_WRITTEN),
    ],
)
def test_errors_end_in_one_line_and_the_documented_code(error, code, capsys):
    def body(values):
        raise error

    assert launcher.run(body, flags.FlagValues(), "", ["x"]) == code
    error_line(capsys)


LOST = jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo all-reduce failed: Connection closed by peer")


def not_saved(cause):
    error = StorageError("/data/nccl_test: a checkpoint could not be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LOST, 5),
        (ValueError("UNKNOWN: Gloo AllGather failed"), 5),
        (RuntimeError("Barrier timed out"), 5),
        (TimeoutError("no heartbeat"), 5),
        (not_saved(LOST), 5),
        (not_saved(OSError(errno.ENOSPC, "No space left on device", "/data/nccl_test")), 3),
        (not_saved(ValueError("UNKNOWN: Error writing /data/nccl_test [os_error_code='28']")), 3),
        (StorageError("/data/nccl_test: disk full"), 3),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/nccl_test"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "/data/gloo"), 3),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/data/barrier"), 3),
        (BrokenPipeError(errno.EPIPE, "Broken pipe", "gloo"), 141),
        (InputError("--workdir=/data/nccl_test: expected a directory"), 2),
        (flags.IllegalFlagValueError("barrier"), 2),
        (TrainingDiverged("gloo at step 3"), 1),
        (TrainingInterrupted("barrier", 15), 143),
        (KeyboardInterrupt("barrier"), 130),
        (KeyError("heartbeat"), 4),
    ],
)
def test_of_several_processes_only_an_error_of_jax_says_that_one_was_lost(error, code, monkeypatch):
    monkeypatch.setattr(failures, "several", lambda: True)
    assert failures.code_and_line(error)[0] == code
    monkeypatch.setattr(failures, "several", lambda: False)
    assert failures.code_and_line(error)[0] != 5


def test_a_fault_of_the_program_keeps_its_traceback_and_is_no_divergence(capsys):
    def body(values):
        return {}["missing"]

    assert launcher.run(body, flags.FlagValues(), "", ["x"]) == 4
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: KeyError: 'missing'")


def test_out_of_memory_for_real(capsys):
    def body(values):
        jax.block_until_ready(jax.numpy.zeros(1 << 46))

    assert launcher.run(body, flags.FlagValues(), "", ["x"]) == 3
    assert "Out of memory" in error_line(capsys)


def test_text_that_the_terminal_cannot_show(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert launcher.run(lambda values: print("é ±"), flags.FlagValues(), "", ["x"]) == 0
    assert out.buffer.getvalue() == b"\\xe9 \\xb1\n"


SCRIPT = """
import sys
from absl import flags
from experiments.common import launcher
sys.exit(launcher.run(lambda values: print("x" * 100_000), flags.FlagValues(), "", ["x"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(("file", "shown"), [("site-packages/orbax/checkpoint/reading.py", False), ("mine.py", True)])
def test_only_reads_that_orbax_abandons_are_quiet(file, shown, capsys, monkeypatch):
    """A read that fails leaves others under way; Python reports such a coroutine, if it fails at its end, by a hook."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # not pytest's own
    program = "async def read():\n  try:\n    await pause\n  except GeneratorExit:\n    raise Exception('no file')\n"
    names = {"pause": types.coroutine(lambda: (yield))()}
    exec(compile(program, file, "exec"), names)
    with without_tracebacks():
        coroutine = names["read"]()
        coroutine.send(None)
        del coroutine
        gc.collect()
    assert ("Traceback" in capsys.readouterr().err) == shown
