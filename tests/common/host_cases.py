"""Several processes of one run on this machine, for tests."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nl_jax
from nl_jax.training.metrics import is_measured

ROOT = Path(nl_jax.__file__).parents[1]
SMALL = ["--models=transformer", "--batch_size=4", "--seq_len=16", "--eval_every=4", "--checkpoint_every=2"]
LOOPBACK = "127.0.0.1"


def free_port():
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def environment(devices):
    """The environment of a process with so many CPU devices, without what would make it one of several."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_NUM", "JAX_PROC"))}
    return {**kept, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(command, devices=1, **more):
    """Starts a process whose output is captured."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([sys.executable, *command], env={**environment(devices), **more}, **pipes)


def start_run(workdir, data, count, *flags, devices=(), each=(), port=None, launcher="language_model"):
    """Starts the processes of a run.

    Args:
        workdir, data: values of these flags.
        count: number of processes; 1 runs without the flags of several.
        flags: more flags of all processes.
        devices: CPU devices of each process, by default one.
        each: more flags of each process.
        port: the coordinator's.
    """
    command = ["-m", f"experiments.{launcher}", f"--workdir={workdir}", f"--data={data}", *SMALL, *flags]
    port, processes = port or free_port(), []
    for i in range(count):
        own = [f"--coordinator={LOOPBACK}:{port}", f"--num_processes={count}", f"--process_id={i}"] if count > 1 else []
        more = each[i] if each else []
        processes.append(start([*command, *own, *more], devices[i] if devices else 1))
    return processes


def ends_of(processes, timeout=600):
    """Exit code, stdout and lines of stderr of each process, and the seconds until the last has ended."""
    started = time.monotonic()
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    ends = [(process.returncode, out, err.splitlines()) for process, (out, err) in zip(processes, outputs, strict=True)]
    return ends, time.monotonic() - started


def finish(*arguments, **named):
    """Runs the processes of a run until all have ended well."""
    ends, _ = ends_of(start_run(*arguments, **named))
    assert [code for code, _, _ in ends] == [0] * len(ends), ends
    return ends


def rows_of(workdir, *left_out):
    """The rows of metrics.jsonl without what is measured."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [{key: row[key] for key in row if key not in left_out and not is_measured(key)} for row in rows]


def wait_for_step(workdir, step, processes, timeout=200):
    """Waits until a run has reported a step."""
    end = time.monotonic() + timeout
    while not any(row["step"] >= step for row in rows_of(workdir)):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.02)


def child_of(process):
    """The process id of a process' child."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
