"""Every launcher: paths read alike, a workdir with one owner, one line and a documented code for what goes wrong."""

import errno
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from launcher_cases import error_line
from locks import free, holder_of

from experiments import generate, stream
from experiments.common import launcher
from experiments.common.path_flags import PathListParser, PathParser
from nl_jax import InputError, StorageError
from nl_jax.models import LanguageModelConfig
from nl_jax.training import TrainingDiverged, TrainingInterrupted

# Of each launcher: what gives its flags, and the subject that it wants before them.
LAUNCHERS = {
    "language_model": ("define_flags", []),
    "compare": ("compare_flags", []),
    "context": ("context_flags", []),
    "generate": ("define_flags", []),
    "stream": ("define_flags", []),
    "subjects": ("subjects_flags", []),
    "recall": ("define_flags", []),
    "parity": ("define_flags", []),
    "optimizers": ("define_flags", ["toy"]),
    "benchmark": ("define_flags", ["mixers"]),
}
WRITERS = [name for name in LAUNCHERS if name not in ("generate", "stream")]  # stream: below


def module_of(name):
    return importlib.import_module(f"experiments.{name}")


def path_flags(name):
    values = getattr(module_of(name), LAUNCHERS[name][0])()
    return [flag for flag in values if isinstance(values[flag].parser, PathParser | PathListParser)]


def call(name, *arguments):
    return module_of(name).main([name, *LAUNCHERS[name][1], *map(str, arguments)])


def test_the_list_of_launchers_is_complete():
    files = {file.stem: file.read_text() for file in Path(launcher.__file__).parent.glob("*.py")}
    del files["__main__"]  # which runs any of them
    assert {name for name, text in files.items() if "def main(" in text} == set(LAUNCHERS)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_flag_that_is_a_path_is_read_as_one(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    values = getattr(module_of(name), LAUNCHERS[name][0])()
    named = {
        flag
        for flag in values
        if re.search(r"directory|\bfiles?\b|workdir of|tokenizer\.json", values[flag].help, re.I)
    }
    assert named == set(path_flags(name))
    assert "workdir" in named
    for flag in named:
        assert call(name, "--workdir=run", f"--{flag}=gs://bucket/run") == 2
        line = error_line(capsys)
        assert f"flag --{flag}=gs://bucket/run" in line
        assert "expected a path on this machine" in line
        values.unparse_flags()
        values(["x", f"--{flag}=~/a"])
        assert values[flag].value in (str(tmp_path / "me/a"), [str(tmp_path / "me/a")])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def in_use(tmp_path_factory):
    """A workdir that another process has, and that process."""
    workdir = tmp_path_factory.mktemp("run")
    with holder_of(workdir / launcher.LOCK) as process:
        yield workdir, process.pid


@pytest.mark.parametrize("name", WRITERS)
def test_a_workdir_in_use_is_refused(name, in_use, capsys):
    workdir, pid = in_use
    assert call(name, f"--workdir={workdir}") == 2
    assert f"{workdir}: process {pid} is writing there" in error_line(capsys)
    assert list(workdir.iterdir()) == [workdir / launcher.LOCK]


def test_a_run_in_use_is_still_read_but_its_stream_has_one_owner(in_use, capsys, monkeypatch):
    workdir, pid = in_use
    chosen = workdir, LanguageModelConfig("oja", 9, 8, 1, 1, 8, cms_periods=(64,), cms_regime="online").to_json(), None
    monkeypatch.setattr(generate, "chosen_model", lambda values: chosen)
    monkeypatch.setattr(generate, "restore", lambda *_: None)
    monkeypatch.setattr(stream, "LOCK", launcher.LOCK)
    assert call("stream", f"--workdir={workdir}") == 2
    assert f"{workdir}: process {pid} is writing there" in error_line(capsys)


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
from experiments import generate, launcher, stream
sys.exit(launcher.run(lambda values: print("x" * 100_000), flags.FlagValues(), "", ["x"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "No space left on device" in done.stderr
