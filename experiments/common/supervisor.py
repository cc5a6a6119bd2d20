"""The parent of one of several processes that train together.

If a process of such a run is lost, JAX aborts the others from C++: a stack trace, and exit code 134. So the command
itself only watches: it runs the launcher in a child process, forwards signals to it, and turns its end into one line
and an exit code of the table in ``failures.py``. If the parent is killed, the child ends, too.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from experiments.common.failures import BAD_INPUT, FAULT, LOST
from nl_jax.parallel.hosts import HEARTBEAT_SECONDS, Hosts

CHILD = "NL_JAX_CHILD"  # environment variable of the child: numbers of the files that it shares with the parent
MODULE = "experiments.common.supervised"
POLL_SECONDS = 0.05
STOPPED_SECONDS = HEARTBEAT_SECONDS + 2  # by then the others have given up a child that is stopped (SIGSTOP)
FORWARDED = (signal.SIGTERM, signal.SIGINT)


def module_of(body: Callable[..., Any]) -> str:
    """The name of the module of a launcher's function, also if it runs as ``__main__``."""
    spec = sys.modules[body.__module__].__spec__
    return body.__module__ if spec is None else spec.name


def supervise(module: str, argv: list[str], hosts: Hosts, start_timeout: int) -> int:
    """Runs a launcher in a child process, and returns its exit code.

    It prints the child's error line, or one of its own if the child ended before it could say anything.

    Args:
        module: name of the launcher's module.
        argv: program name and arguments.
        hosts: the processes that train together.
        start_timeout: value of the flag, for the message.
    """
    lifeline, lifeline_end = os.pipe()  # the child reads to its end, which comes when this process ends
    verdict, verdict_end = os.pipe()  # the child's exit code and error, since its end can be an abort even then
    with tempfile.TemporaryFile() as noise:
        shared = (lifeline, verdict_end, noise.fileno())
        child = subprocess.Popen(
            [sys.executable, "-m", MODULE, module, *argv[1:]],
            env={**os.environ, CHILD: ",".join(map(str, shared))},
            pass_fds=shared,
            process_group=0,  # Ctrl-C reaches this process, which forwards it once
        )
        os.close(lifeline)
        os.close(verdict_end)

        def forward(signum: int, _: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signum)  # child.send_signal would take the child's end from the wait below

        previous = {s: signal.signal(s, forward) for s in FORWARDED}
        try:
            status = _watch(child)
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            os.close(lifeline_end)
        with open(verdict, "rb") as file:
            said = file.readline().decode()
        if said:
            number, _, line = said.rstrip("\n").partition(" ")
            if line:
                print("error:", line, file=sys.stderr)
            return int(number)
        noise.seek(0)
        text = noise.read().decode(errors="replace")
    code, line, expected = explain(status, text, hosts, start_timeout)
    if not expected:
        print(text[-10_000:], file=sys.stderr)
    print("error:", line, file=sys.stderr)
    return code


def _watch(child: subprocess.Popen[Any]) -> int | None:
    """Waits for the child, and returns its wait status, or None if it was stopped for too long."""
    stopped: float | None = None
    while True:
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid and not (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
            child.returncode = os.waitstatus_to_exitcode(status)
            return status
        if pid:
            stopped = time.monotonic() if os.WIFSTOPPED(status) else None
        if stopped is not None and time.monotonic() > stopped + STOPPED_SECONDS:
            child.kill()
            child.wait()
            return None
        time.sleep(POLL_SECONDS)


def explain(status: int | None, noise: str, hosts: Hosts, start_timeout: int) -> tuple[int, str, bool]:
    """What the end of a child means that said nothing itself.

    Args:
        status: its wait status, or None if it was stopped for too long.
        noise: what C++ has printed.
        hosts, start_timeout: as for `supervise`.

    Returns:
        Exit code, line, and whether such an end is expected; else the noise helps.
    """
    again = "the same command on all processes resumes from the last checkpoint"
    if status is None:
        return LOST, f"this process was stopped for {STOPPED_SECONDS} s, and the others ended; {again}", True
    if "RegisterTask" in noise and "DEADLINE_EXCEEDED" in noise:
        line = f"--num_processes={hosts.num_processes}: not all of them came within --start_timeout={start_timeout} s"
        return BAD_INPUT, f"{line}; expected one for each --process_id from 0 to {hosts.num_processes - 1}", True
    if "Unexpected task registered" in noise:
        line = f"--process_id={hosts.process_id} --num_processes={hosts.num_processes}: the coordinator at "
        return BAD_INPUT, f"{line}{hosts.coordinator} has fewer processes; expected the same number on all", True
    if "JAX distributed service detected fatal errors" in noise:
        return LOST, f"{_who(noise)} of the run was lost; {again}", True
    signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if signum in FORWARDED:
        return 128 + signum, f"stopped by {signal.Signals(signum).name}; {again}", True
    if signum == signal.SIGKILL:
        return 128 + signum, f"killed by SIGKILL, as the system does when memory is short; {again}", True
    if signum:
        return 128 + signum, f"ended by {signal.Signals(signum).name} (its output is above); {again}", False
    ended = f"ended with status {os.WEXITSTATUS(status)} and no message"
    return FAULT, f"{ended} (its output is above)", False


def _who(noise: str) -> str:
    """Names the process that was lost, as far as JAX says it."""
    named = re.search(r"stopped sending heartbeats\):\s*(\d+)|[Tt]ask (\d+) heartbeat", noise)
    if named:
        return f"process {named[1] or named[2]}"
    coordinator = "failed to connect" in noise or "Socket closed" in noise or "Connection reset" in noise
    return "the coordinator (process 0)" if coordinator else "a process"
