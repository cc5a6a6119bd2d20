"""The faults of a run of four processes on loopback: one of them is lost, frozen, or asked to end."""

import contextlib
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Sequence

from experiments.common.failures import LOST
from experiments.fault_rounds.disturbed_run import CHECKPOINT_EVERY, STEPS, Run
from experiments.fault_rounds.kinds import KINDS, Disturbance, Fault, Round
from experiments.fault_rounds.processes import children_of
from nl_jax.training.checkpoint import saved_steps

PROCESSES = 4
SURVIVED = r"error: .*of the run was lost.*; the same command on all processes resumes.*"
FROZEN = r"error: this process was stopped for \d+ s, and the others ended; the same command on all processes .*"
KILLED = r"error: killed by SIGKILL.*; the same command on all processes resumes.*"


def _trains(task: Round, run: Run, steps: int) -> None:
    """Waits for a step before ``steps``, drawn at random, and a moment longer."""
    before = task.random.randrange(1, steps)
    run.until(lambda: run.rows >= before)
    task.wait(0.05)


def _ended(
    run: Run, struck: Run, since: float, codes: tuple[int, ...], line: str | None, frozen: Sequence[int] = ()
) -> Disturbance:
    """How the survivors ended, and then the process that was struck, with exit code and line as given.

    Args:
        run, struck: the run, and the process of it that was struck.
        since: when it was, by `time.monotonic`.
        codes, line: how it must end.
        frozen: ids of processes to continue once the survivors have ended.
    """
    for part in run.all:
        if part is not struck:
            part.until(lambda: False)
    seconds = time.monotonic() - since
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    run.wait()
    ends = [
        Disturbance(part, seconds, (0,))  # the fault came when it was done
        if part.process.returncode == 0 and run.finished
        else Disturbance(part, None, codes, line)
        if part is struck
        else Disturbance(part, seconds, (LOST,), SURVIVED)
        for part in run.all
    ]
    first, *others = sorted(ends, key=lambda end: end.run is struck)
    return dataclasses.replace(first, others=tuple(others))


def kill(candidates: slice, task: Round) -> Disturbance:
    """SIGKILL of one of the candidates after a number of steps: of the command, or of the child that trains."""
    with task.command.start(task.workdir) as run:
        struck = task.random.choice(run.all[candidates])
        _trains(task, run, STEPS)
        children = children_of(struck.process) if task.random.random() < 0.5 else []
        since = time.monotonic()
        if not children:
            struck.process.kill()
            return _ended(run, struck, since, (-signal.SIGKILL,), None)
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[0], signal.SIGKILL)
        return _ended(run, struck, since, (128 + signal.SIGKILL,), KILLED)


def kill_and_resume_in_one(task: Round) -> Disturbance:
    """SIGKILL of one of four, after which the run goes on in one process."""
    return dataclasses.replace(kill(slice(None), task), in_one_process=True)


def stop(task: Round) -> Disturbance:
    """SIGSTOP of one for longer than the others wait: of the child that trains, or of all, and SIGCONT in the end."""
    with task.command.start(task.workdir) as run:
        struck = task.random.choice(run.all)
        _trains(task, run, STEPS - CHECKPOINT_EVERY)
        stopped = children_of(struck.process)
        whole = task.random.random() < 0.5
        if whole:
            stopped.append(struck.process.pid)
        since = time.monotonic()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        if whole:
            return _ended(run, struck, since, (LOST,), SURVIVED, stopped)
        return _ended(run, struck, since, (LOST,), FROZEN)


def terminate(task: Round) -> Disturbance:
    """SIGTERM to one: all stop after the same step, which is saved."""
    with task.command.start(task.workdir) as run:
        _trains(task, run, STEPS - 2 * CHECKPOINT_EVERY)
        since = time.monotonic()
        task.random.choice(run.all).process.terminate()
        run.wait()
        seconds = time.monotonic() - since
        newest = max(saved_steps(run.checkpoints), default=0)
        line = rf"error: .*stopped after step {newest}, which is saved; the same command .*"
        first, *others = [Disturbance(part, seconds, (128 + signal.SIGTERM,), line) for part in run.all]
        return dataclasses.replace(first, others=tuple(others))


KINDS_OF_FOUR: dict[str, Fault] = {
    "kill_of_four": functools.partial(kill, slice(1, None)),
    "kill_coordinator": functools.partial(kill, slice(1)),
    "stop_of_four": stop,
    "sigterm_of_four": terminate,
    "four_to_one": kill_and_resume_in_one,
}
ALL_KINDS = KINDS | KINDS_OF_FOUR
