"""The run that faults disturb: ``experiments.language_model`` in a process of its own, small and quick."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nl_jax.training.metrics import METRICS

MODEL = "transformer"
STEPS, CHECKPOINT_EVERY = 24, 4
FLAGS = (
    *(f"--models={MODEL}", f"--steps={STEPS}", f"--checkpoint_every={CHECKPOINT_EVERY}", "--eval_every=8"),
    *("--batch_size=2", "--seq_len=32", "--mesh=data:1"),
)
TIMES = re.compile(r"second|tokens_per")  # figures that differ from run to run
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
    """

    text: Path
    cache: Path

    @contextlib.contextmanager
    def start(self, workdir: Path, *flags: str, cached: bool = True, prepare: str = "") -> Iterator["Run"]:
        """Starts the command, and kills it at the end of the context if it still runs.

        Args:
            workdir: the run's workdir; the files ``WORKDIR.out`` and ``WORKDIR.err`` beside it get its output.
            flags: flags beside the usual ones.
            cached: whether compiled programs are taken from the cache.
            prepare: Python statements that the new process executes before it becomes the command.
        """
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.cache)
        environment["JAX_ENABLE_COMPILATION_CACHE"] = str(cached).lower()
        python = [sys.executable, "-c", prepare + EXECUTE, sys.executable, "-m", "experiments.language_model"]
        arguments = [f"--workdir={workdir}", f"--data={self.text}", *FLAGS, *flags]
        with workdir.with_suffix(".out").open("w") as out, workdir.with_suffix(".err").open("w") as err:
            process = subprocess.Popen(
                [*python, *arguments], env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL
            )
        try:
            yield Run(process, workdir, time.monotonic())
        finally:
            process.kill()
            process.wait()


@dataclasses.dataclass(frozen=True)
class Run:
    """A process that runs the command.

    Attributes:
        process: the process.
        workdir: its workdir.
        started: when it was started, by `time.monotonic`.
    """

    process: subprocess.Popen
    workdir: Path
    started: float

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    @property
    def stderr(self) -> str:
        """What it has written on stderr so far."""
        return self.workdir.with_suffix(".err").read_text(errors="replace")

    @property
    def finished(self) -> bool:
        """Whether it has printed its results."""
        return "Everything is in" in self.workdir.with_suffix(".out").read_text()

    @property
    def checkpoints(self) -> Path:
        """The directory of its checkpoints."""
        return self.workdir / MODEL / "checkpoints"

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
        """Waits until the process has ended, and returns its exit code."""
        self.until(lambda: False)
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


def steps_saved(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that are complete, newest first."""
    names = [path.name for path in checkpoints.glob("*")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def figures_of(workdir: Path) -> dict[str, Any]:
    """The rows of metrics.jsonl and the figures of results.json, without times."""
    rows = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    models = json.loads((workdir / "results.json").read_text())["models"]
    return {"rows": [without_times(row) for row in rows], "models": {k: without_times(v) for k, v in models.items()}}


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that are the same in every run."""
    return {name: value for name, value in figures.items() if not TIMES.search(name)}
