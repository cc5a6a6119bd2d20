"""The faults, by kind: each disturbs a run once and says how the run ended, and how it must end."""

import contextlib
import dataclasses
import functools
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.failures import BAD_INPUT, DIVERGED, REFUSED
from experiments.fault_rounds.disturbed_run import (
    CHECKPOINT_EVERY,
    COMPILING,
    RESTORING,
    STEPS,
    Command,
    Run,
    checkpoints_of,
)
from nl_jax.training.checkpoint import saved_steps

# What is promised of a run of this size: seconds from a fault to the end of the run, and from its start to a step.
EXIT_SECONDS, START_SECONDS = 15.0, 60.0
COMPILE_SECONDS = 2.0  # about the time to compile a step
FILE_BYTES = 1_000_000  # as large as a file may grow on the full disk; the arrays of a checkpoint are larger
OVERFLOW = ("--learning_rate=1000", "--matrix_learning_rate=1000", "--steps=60")  # parameters grow until they overflow
DIVERGENCE = r"error: transformer diverged at step \d+, .*"
SKIPPED = r"skipped \S+/checkpoints/\d+: cannot be read"
SMALL_FILES = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_BYTES}, {FILE_BYTES}))"
# Takes from root the right to write what modes forbid: PR_CAPBSET_DROP, CAP_DAC_OVERRIDE.
OBEY_MODES = "import ctypes; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What a fault did.

    Attributes:
        run: the run that it hit, which has ended.
        seconds: from the fault to the end of that run; None if the run was not meant to end by it.
        codes: the exit codes that are right.
        line: a regular expression that one line on stderr must match; None if there is no line, as after SIGKILL.
        limit: the most seconds that this may take.
        flags: flags of the run beside the usual ones.
        finishes: whether the same command, started again, comes to the figures of a run that was not disturbed.
            Otherwise it must end as the disturbed run did.
        others: of a run of several processes, what the fault did to the others.
        in_one_process: whether the run goes on in one process with as many devices, to equal figures up to rounding.
    """

    run: Run
    seconds: float | None
    codes: tuple[int, ...]
    line: str | None = None
    limit: float = EXIT_SECONDS
    flags: tuple[str, ...] = ()
    finishes: bool = True
    others: tuple["Disturbance", ...] = ()
    in_one_process: bool = False

    @property
    def all(self) -> tuple["Disturbance", ...]:
        """This one and those of other processes."""
        return (self, *self.others)


@dataclasses.dataclass(frozen=True)
class Round:
    """What a fault may use.

    Attributes:
        command: the command to disturb.
        workdir: a workdir that does not exist yet.
        random: draws the moments.
        duration: seconds that a run takes that is not disturbed.
    """

    command: Command
    workdir: Path
    random: random.Random
    duration: float

    def wait(self, seconds: float) -> None:
        """Waits up to so many seconds."""
        time.sleep(self.random.uniform(0, seconds))

    def interrupt(self) -> None:
        """Trains until some of the checkpoints are there and kills the run."""
        least = self.random.randrange(2, STEPS // CHECKPOINT_EVERY) * CHECKPOINT_EVERY
        with self.command.start(self.workdir) as run:
            run.until(lambda: len(saved := saved_steps(run.checkpoints)) > 1 and saved[0] >= least)


Fault = Callable[[Round], Disturbance]


def _ended(run: Run, signum: signal.Signals) -> Disturbance:
    """Sends a signal that must end the run. A run that was done before it came has ended well."""
    run.process.send_signal(signum)
    sent = time.monotonic()
    run.wait()
    seconds = time.monotonic() - sent
    if run.finished:  # it came too late
        return Disturbance(run, seconds, (0, -signum))
    if signum == signal.SIGKILL:
        return Disturbance(run, seconds, (-signum,))
    return Disturbance(run, seconds, (128 + signum,), r"error: .*the same command resumes from .*")


def kill_anywhere(task: Round) -> Disturbance:
    """SIGKILL at a moment drawn from the whole run."""
    with task.command.start(task.workdir) as run:
        task.wait(task.duration)
        return _ended(run, signal.SIGKILL)


def kill_compile(task: Round) -> Disturbance:
    """SIGKILL while the step is compiled."""
    with task.command.start(task.workdir, cached=False) as run:
        run.until(lambda: COMPILING.format(done=0) in run.stderr)
        task.wait(COMPILE_SECONDS)
        return _ended(run, signal.SIGKILL)


def kill_step(task: Round) -> Disturbance:
    """SIGKILL after a number of steps."""
    steps = task.random.randrange(1, STEPS)
    with task.command.start(task.workdir) as run:
        run.until(lambda: run.rows >= steps)
        task.wait(0.02)
        return _ended(run, signal.SIGKILL)


def kill_save(task: Round) -> Disturbance:
    """SIGKILL while a checkpoint is written."""
    after = task.random.randrange(0, STEPS, CHECKPOINT_EVERY)
    with task.command.start(task.workdir) as run:
        run.until(lambda: run.saving and (not after or after <= max(saved_steps(run.checkpoints), default=0)))
        task.wait(0.05)
        return _ended(run, signal.SIGKILL)


def kill_restore(task: Round) -> Disturbance:
    """SIGKILL while a checkpoint is read."""
    task.interrupt()
    with task.command.start(task.workdir) as run:
        run.until(lambda: RESTORING in run.stderr)
        task.wait(1.0)
        return _ended(run, signal.SIGKILL)


def stopped_by(signum: signal.Signals, task: Round) -> Disturbance:
    """A signal that asks the run to end, at a moment drawn from the time since its first line."""
    with task.command.start(task.workdir) as run:
        run.until(lambda: bool(run.stderr))
        task.wait(task.duration / 2)
        return _ended(run, signum)


def frozen(task: Round) -> Disturbance:
    """SIGSTOP, and SIGCONT after some seconds: the run goes on as if nothing had happened."""
    with task.command.start(task.workdir) as run:
        task.wait(task.duration)
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(task.random.uniform(1, 3))
        run.process.send_signal(signal.SIGCONT)
        run.wait()
        return Disturbance(run, None, (0,))


def disk_full(task: Round) -> Disturbance:
    """A disk that is full when a checkpoint is saved: no file can grow beyond `FILE_BYTES`."""
    if task.random.random() < 0.5:
        task.interrupt()  # it is full when the run has resumed
    with task.command.start(task.workdir, prepare=SMALL_FILES) as run:
        run.until(lambda: run.saving)
        full = time.monotonic()
        run.wait()
        line = r"error: .*could not be written \(File too large\).*"
        return Disturbance(run, time.monotonic() - full, (REFUSED,), line)


def _shard(task: Round) -> Path:
    """A file with arrays of the newest checkpoint."""
    checkpoints = checkpoints_of(task.workdir)
    newest = checkpoints / str(saved_steps(checkpoints)[0])
    part = task.random.choice(["model", "optimizer"])
    return max(newest.glob(f"{part}/*/d/*"), key=lambda path: path.stat().st_size)  # the small ones are indices


def _resumed(task: Round) -> Disturbance:
    with task.command.start(task.workdir) as run:
        run.wait()
        return Disturbance(run, None, (0,), SKIPPED)


def truncated(task: Round) -> Disturbance:
    """A file of the newest checkpoint that has lost its end."""
    task.interrupt()
    shard = _shard(task)
    content = shard.read_bytes()
    shard.write_bytes(content[: task.random.randrange(len(content))])
    return _resumed(task)


def corrupted(task: Round) -> Disturbance:
    """A bit that has changed in a file of the newest checkpoint."""
    task.interrupt()
    shard = _shard(task)
    content = bytearray(shard.read_bytes())
    content[task.random.randrange(len(content))] ^= 1 << task.random.randrange(8)
    shard.write_bytes(content)
    return _resumed(task)


def diverging(task: Round) -> Disturbance:
    """Updates that overflow, so that losses and gradients are NaN: the run ends and has saved nothing of them."""
    with task.command.start(task.workdir, *OVERFLOW) as run:
        run.wait()
        return Disturbance(run, None, (DIVERGED,), DIVERGENCE, flags=OVERFLOW, finishes=False)


def two_runs(task: Round) -> Disturbance:
    """The same command a second time while the first runs: the second ends, the first does not notice."""
    steps = task.random.randrange(1, STEPS // 2)
    with task.command.start(task.workdir) as first:
        first.until(lambda: first.rows >= steps)
        first.process.send_signal(signal.SIGSTOP)  # so that it cannot end before the second one has begun
        second = task.command.start(task.workdir.with_name(f"{task.workdir.name}-second"), f"--workdir={task.workdir}")
        with second as run:
            run.wait()
        first.process.send_signal(signal.SIGCONT)
        if first.wait():
            raise RuntimeError(f"the first of two runs ended with code {first.process.returncode}")
        return Disturbance(run, run.seconds(), (BAD_INPUT,), r"error: .*process \d+ is writing there.*", START_SECONDS)


def read_only(task: Round) -> Disturbance:
    """A workdir in which nothing can be written any more."""
    task.interrupt()
    directories = [task.workdir, *(path for path in task.workdir.rglob("*") if path.is_dir())]
    modes = {path: path.stat().st_mode for path in directories}
    for path in directories:
        path.chmod(0o555)
    try:
        with task.command.start(task.workdir, prepare=OBEY_MODES) as run:
            run.wait()
            return Disturbance(
                run, run.seconds(), (REFUSED,), r"error: .*(Permission denied|Read-only).*", START_SECONDS
            )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def not_finite(checkpoints: Path) -> list[str]:
    """The parts of saved checkpoints that hold a number that is not finite."""
    parts = [checkpoints / str(step) / part for step in saved_steps(checkpoints) for part in ("model", "optimizer")]
    return [str(part) for part in parts if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_read(part)))]


def _read(part: Path) -> Any:
    """The numbers of a part of a checkpoint, on whatever devices it was saved."""
    with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), reader.metadata(part.absolute()).tree)
        return reader.restore(part.absolute(), args=ocp.args.StandardRestore(like))


KINDS: dict[str, Fault] = {
    "kill_anywhere": kill_anywhere,
    "kill_compile": kill_compile,
    "kill_step": kill_step,
    "kill_save": kill_save,
    "kill_restore": kill_restore,
    "sigterm": functools.partial(stopped_by, signal.SIGTERM),
    "sigint": functools.partial(stopped_by, signal.SIGINT),
    "frozen": frozen,
    "disk_full": disk_full,
    "truncated": truncated,
    "corrupted": corrupted,
    "diverging": diverging,
    "two_runs": two_runs,
    "read_only": read_only,
}
