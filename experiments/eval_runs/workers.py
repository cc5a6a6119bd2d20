"""Processes that share the cells of an evaluation: a small model gains little from more than two cores.

Each worker has its own cores, and sends what a cell has after each run; only the command's own process writes results.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments.common import launcher
from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.flags import MOST_WORKERS, define_flags
from experiments.eval_runs.running import Cell, Runner, cells_of
from nl_jax import InputError
from nl_jax.errors import ProcessLost

Entry = dict[str, Any]


class Job(NamedTuple):
    """A cell that is not finished, and what results.json has of it."""

    cell: Cell
    entry: Entry
    left: int  # runs, at most


def check_workers(evaluation: Evaluation, values: flags.FlagValues) -> None:
    """Raises `InputError` for fewer processes than one, or for several where there can be only one."""
    if values.workers is None:
        return
    launcher.check_range(values, "workers", 1)
    if values.workers > 1 and (reason := _reason_for_one(evaluation)):
        raise InputError(f"--workers={values.workers}: expected 1, since {reason}")


def _reason_for_one(evaluation: Evaluation) -> str | None:
    """Why there can be no second process, or None."""
    if jax.default_backend() != "cpu":
        return "one process takes the whole accelerator"
    if importlib.util.find_spec(f"experiments.{evaluation.name}") is None:
        return f"workers cannot import {evaluation.name}, which is no module of experiments"
    return None


def run_jobs(
    evaluation: Evaluation,
    values: flags.FlagValues,
    workdir: Path,
    jobs: Sequence[Job],
    save: Callable[[], None],
) -> None:
    """Runs jobs, in this process or in several, and saves what each run gives by ``save()`` at once.

    Raises:
        ProcessLost: if a worker ends before its job, as when the system is out of memory.
        Exception: what a worker raises.
    """
    default = 1 if _reason_for_one(evaluation) else min(max(1, len(_cores()) // 2), MOST_WORKERS)
    number, left = min(values.workers or default, len(jobs)), sum(job.left for job in jobs)

    def begins(job: Job) -> Job:
        nonlocal left
        launcher.say(f"{job.cell.subtask}, {job.cell.model}: at most {left} runs are left")
        left -= job.left
        return job

    waiting = map(begins, jobs)
    if number <= 1:
        runner = Runner(evaluation, values, workdir, save)
        for job in waiting:
            runner.run(job.cell, job.entry)
        return
    given = evaluation.name, {name: values[name].value for name in values}, str(workdir)
    with _workers(number, given) as idle:
        busy: dict[Connection, Job] = {}
        while True:
            for worker, job in zip(idle, waiting, strict=False):
                worker.send((job.cell.subtask, job.cell.model, job.entry))
                busy[worker] = job
            if not busy:
                return
            ready: list[Any] = wait(list(busy))
            idle = [worker for worker in ready if _ended(worker, busy[worker], save)]
            for worker in idle:
                del busy[worker]


def _ended(worker: Connection, job: Job, save: Callable[[], None]) -> bool:
    """Takes one message of a worker: whether it is that its job has ended, not what the job's cell has now."""
    try:
        message = worker.recv()
    except (EOFError, ConnectionError) as error:
        raise ProcessLost(f"the worker of {job.cell.subtask}, {job.cell.model} has ended") from error
    if isinstance(message, Exception):
        raise message
    if message is None:
        return True
    job.entry.clear()
    job.entry.update(message)
    save()
    return False


@contextlib.contextmanager
def _workers(number: int, given: tuple[str, Mapping[str, Any], str]) -> Iterator[list[Connection]]:
    """Connections to workers, which end with the context."""
    context, cores, started = multiprocessing.get_context("spawn"), _cores(), []
    connections: list[Connection] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as programs:
        try:
            for i in range(number):
                here, there = context.Pipe()
                share = cores[i::number] if len(cores) >= number else cores
                # daemons end with this process
                process = context.Process(target=_work, args=(there, given, share, programs), daemon=True)
                with _environment("TQDM_POSITION", str(i)) if sys.stderr.isatty() else contextlib.nullcontext():
                    process.start()  # each worker's bar has its own line of a terminal
                there.close()
                started.append(process)
                connections.append(here)
            yield connections
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.join()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable of processes that start within the context."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _work(connection: Connection, given: tuple[str, Mapping[str, Any], str], cores: list[int], programs: str) -> None:
    """The body of a worker: runs the cells that it is told, until its process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command's own process, too, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX counts them
    if jax.config.values["jax_compilation_cache_dir"] is None:  # a worker finds what others have compiled
        jax.config.update("jax_compilation_cache_dir", programs)
    try:
        name, content, workdir = given
        evaluation: Evaluation = importlib.import_module(f"experiments.{name}").EVALUATION
        values = define_flags(evaluation)
        for flag, value in content.items():
            values[flag].value = value
        values.mark_as_parsed()
        cells = {(cell.subtask, cell.model): cell for cell in cells_of(evaluation, values)}
        entry: Entry = {}
        runner = Runner(evaluation, values, Path(workdir), lambda: connection.send(entry))
        while True:
            subtask, model, found = connection.recv()
            entry.clear()
            entry.update(found)
            runner.run(cells[subtask, model], entry)
            connection.send(None)
    except Exception as error:
        connection.send(_portable(error))


def _end_with_parent() -> None:
    """Ends this process when the command's own one has been killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error that another process can raise, with its traceback as a note."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its constructor wants
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
