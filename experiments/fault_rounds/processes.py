"""Processes on this machine: a port for them to meet at, and ending them with their children."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

LOOPBACK = "127.0.0.1"


def host_flags(count: int) -> list[list[str]]:
    """The flags that make each of ``count`` processes part of one run, at a port that is free now."""
    if count == 1:
        return [[]]
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        together = [f"--coordinator={LOOPBACK}:{probe.getsockname()[1]}", f"--num_processes={count}"]
    return [[*together, f"--process_id={index}"] for index in range(count)]


def children_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the children of a process; none if it has ended, or the system is not Linux."""
    try:
        return [int(text) for text in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


def kill(process: subprocess.Popen) -> None:
    """Kills a process and its children. A child ends with its parent by itself, but not while it is stopped."""
    children = children_of(process) if process.poll() is None else []
    process.kill()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.wait()
