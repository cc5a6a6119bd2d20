"""The run that faults disturb: ``experiments.language_model`` in processes of its own, small and quick."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.fault_rounds.processes import host_flags, kill
from nl_jax.training.loop import CHECKPOINTS
from nl_jax.training.metrics import METRICS, is_measured

MODEL = "transformer"
STEPS, CHECKPOINT_EVERY = 24, 4
FLAGS = (
    *(f"--models={MODEL}", f"--steps={STEPS}", f"--checkpoint_every={CHECKPOINT_EVERY}", "--eval_every=8"),
    *("--batch_size=2", "--seq_len=32", "--mesh=data:1"),
)
WORDS = 4000  # of the text
# What stderr shows when the checkpoint is about to be read, and when the step is about to be compiled.
RESTORING, COMPILING = "updates in the first", f" step {{done}}/{STEPS} "
EXECUTE = "\nimport os, sys\nos.execv(sys.argv[1], sys.argv[1:])"
POLL_SECONDS = 0.001
LONGEST_SECONDS = 600.0  # a run that takes longer hangs


@dataclasses.dataclass(frozen=True)
class Command:
    """The command whose runs are disturbed.

    Attributes:
        text: the file that it trains on.
        cache: JAX's cache of compiled programs, which makes all runs but the first quick.
        processes: number of processes that train together, on loopback.
        devices: virtual CPU devices of each process. With more than one in all, each trains on one sequence of four.
    """

    text: Path
    cache: Path
    processes: int = 1
    devices: int = 1

    @contextlib.contextmanager
    def start(self, workdir: Path, *flags: str, cached: bool = True, prepare: str = "") -> Iterator["Run"]:
        """Starts the command, and kills its processes at the end of the context if they still run.

        Args:
            workdir: the run's workdir; files beside it get the output of each process (`output_of`).
            flags: flags beside the usual ones.
            cached: whether compiled programs are taken from the cache.
            prepare: Python statements that each new process executes before it becomes the command.
        """
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.cache)
        environment["JAX_ENABLE_COMPILATION_CACHE"] = str(cached).lower()
        split = self.processes * self.devices
        if split > 1:
            devices = f"--xla_force_host_platform_device_count={self.devices}"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {devices}"
            flags = (f"--mesh=data:{split}", "--batch_size=4", *flags)
        command = [sys.executable, "-c", prepare + EXECUTE, sys.executable, "-m", "experiments.language_model"]
        command += [f"--workdir={workdir}", f"--data={self.text}", *FLAGS, *flags]
        with contextlib.ExitStack() as stack:
            parts = [
                stack.enter_context(_started([*command, *own], environment, workdir, index))
                for index, own in enumerate(host_flags(self.processes))
            ]
            yield dataclasses.replace(parts[0], others=tuple(parts[1:]))

    def in_one_process(self) -> "Command":
        """The same command in one process with as many devices."""
        return dataclasses.replace(self, processes=1, devices=self.processes * self.devices)


@contextlib.contextmanager
def _started(command: list[str], environment: dict[str, str], workdir: Path, index: int) -> Iterator["Run"]:
    out, err = (output_of(workdir, index, suffix) for suffix in ("out", "err"))
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL)
    try:
        yield Run(process, workdir, time.monotonic(), index)
    finally:
        kill(process)


def checkpoints_of(workdir: Path) -> Path:
    """The directory of a run's checkpoints."""
    return workdir / MODEL / CHECKPOINTS


def output_of(workdir: Path, index: int, suffix: str) -> Path:
    """The file beside a workdir that gets stdout (``out``) or stderr (``err``) of a process, by its index."""
    return workdir.with_name(f"{workdir.name}{f'-{index}' if index else ''}.{suffix}")


@dataclasses.dataclass(frozen=True)
class Run:
    """A process that runs the command, and the others that train with it.

    Attributes:
        process: the process.
        workdir: its workdir.
        started: when it was started, by `time.monotonic`.
        index: its index, if it is one of several.
        others: the other processes of the run; only process 0, which writes the files of the run, knows them.
    """

    process: subprocess.Popen
    workdir: Path
    started: float
    index: int = 0
    others: tuple["Run", ...] = ()

    @property
    def all(self) -> tuple["Run", ...]:
        """This process and the others."""
        return (self, *self.others)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    @property
    def stderr(self) -> str:
        """What it has written on stderr so far."""
        return output_of(self.workdir, self.index, "err").read_text(errors="replace")

    @property
    def finished(self) -> bool:
        """Whether it has printed its results."""
        return "Everything is in" in output_of(self.workdir, self.index, "out").read_text()

    @property
    def checkpoints(self) -> Path:
        """The directory of its checkpoints."""
        return checkpoints_of(self.workdir)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(self.checkpoints.glob("*.orbax-checkpoint-tmp*"))

    @property
    def rows(self) -> int:
        """Number of lines of metrics.jsonl."""
        path = self.workdir / METRICS
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds or the process has ended."""
        while not (self.ended or condition()):
            if time.monotonic() > self.started + LONGEST_SECONDS:
                raise TimeoutError(f"{self.workdir}: the run takes longer than {LONGEST_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def wait(self) -> int:
        """Waits until all processes have ended, and returns the exit code of this one."""
        for run in self.all:
            run.until(lambda: False)
        return self.process.wait()

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def until_training(self) -> float:
        """Waits until the run has recorded a step of its own or ended; returns the seconds since its start."""
        metrics = self.workdir / METRICS
        before = metrics.stat().st_ino if metrics.exists() else None
        self.until(lambda: metrics.exists() and metrics.stat().st_ino != before)  # rows to keep are written anew
        kept = self.rows
        self.until(lambda: self.rows > kept)
        return self.seconds()


def write_text(path: Path) -> None:
    """Writes a text to train on: numbers as words, which every version of Python writes alike."""
    path.write_text(" ".join(str(7919 * n % 3001) for n in range(WORDS)))


def figures_of(workdir: Path) -> dict[str, Any]:
    """The rows of metrics.jsonl and the figures of results.json, without times."""
    rows = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    models = json.loads((workdir / "results.json").read_text())["models"]
    return {"rows": [without_times(row) for row in rows], "models": {k: without_times(v) for k, v in models.items()}}


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that are the same in every run."""
    return {name: value for name, value in figures.items() if not is_measured(name)}


def close(figures: Any, others: Any, tolerance: float) -> bool:
    """Whether two values of JSON are equal, numbers up to this relative difference."""
    if isinstance(figures, dict) and isinstance(others, dict):
        return figures.keys() == others.keys() and all(close(figures[k], others[k], tolerance) for k in figures)
    if isinstance(figures, list) and isinstance(others, list):
        return len(figures) == len(others) and all(map(close, figures, others, [tolerance] * len(figures)))
    if isinstance(figures, float) and isinstance(others, float):
        return math.isclose(figures, others, rel_tol=tolerance)
    return figures == others
