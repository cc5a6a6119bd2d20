"""Several processes on loopback that train one model: equal to one process, and through every loss."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from host_cases import child_of, ends_of, finish, free_port, rows_of, start_run, wait_for_step
from launcher_cases import error_line

from experiments import recall
from experiments.common import launcher
from experiments.common.supervisor import explain
from nl_jax.parallel.hosts import Hosts

LOST_SECONDS, DISAGREE_SECONDS = 15, 60
STEPS = "--steps=10"


HOSTS = Hosts("10.0.0.1:8476", 4, 2)
ABORTED = """F1127 client.h:80] Terminating process because the JAX distributed service detected fatal errors. {}
*** Check failure stack trace: ***
"""
UNHEALTHY = ABORTED.format("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks")
REGISTER = "RPC: /xla.coordination.CoordinationService/RegisterTask"


@pytest.mark.parametrize(
    ("status", "noise", "code", "line"),
    [
        (signal.SIGABRT, UNHEALTHY, 5, "process 1 of the run was lost"),
        (signal.SIGABRT, ABORTED.format("UNAVAILABLE: failed to connect"), 5, "the coordinator (process 0) of the run"),
        (signal.SIGABRT, ABORTED.format(f"DEADLINE_EXCEEDED {REGISTER}"), 2, "not all of them came within"),
        (signal.SIGABRT, ABORTED.format(f"Unexpected task registered {REGISTER}"), 2, "has fewer processes"),
        (None, "", 5, "this process was stopped for 12 s"),
        (signal.SIGTERM, "", 143, "stopped by SIGTERM"),
        (signal.SIGKILL, "", 137, "killed by SIGKILL"),
        (signal.SIGSEGV, "stack", 139, "ended by SIGSEGV (its output is above)"),
        (1 << 8, "", 4, "ended with status 1 and no message (its output is above)"),
    ],
)
def test_every_end_of_a_child_is_one_line_and_a_code(status, noise, code, line):
    found = explain(status, noise, HOSTS, 50)
    assert found[0] == code
    assert line in found[1]
    assert found[2] == ("above" not in line)


def test_a_launcher_for_one_process_refuses_several(monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert recall.main(["recall", "--workdir=none"]) == 2
    assert "JAX_NUM_PROCESSES=2: expected 1, or none" in error_line(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "data.txt"
    path.write_bytes(Path(launcher.__file__).read_bytes())
    return path


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Rows of metrics.jsonl of a run of two processes, and its results."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    ends = finish(workdir, data, 2, STEPS)
    assert ends[0][1].startswith("model ")  # a table and nothing of gloo
    assert (ends[1][1], ends[1][2]) == ("", [])
    return workdir


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())["models"]["transformer"]


def assert_close(workdir, other):
    rows, others = rows_of(workdir), rows_of(other)
    assert [sorted(row) for row in rows] == [sorted(row) for row in others]
    for row, expected in zip(rows, others, strict=True):
        assert row.pop("model") == expected.pop("model")
        np.testing.assert_allclose([*row.values()], [*expected.values()], rtol=2e-3)
    figures = [results_of(path)["test_bits_per_byte"] for path in (workdir, other)]
    np.testing.assert_allclose(*figures, rtol=1e-3)


def error_of(end):
    """The exit code and the error of a process, if it is the last line and the only one of its kind."""
    code, _, lines = end
    assert [line.startswith("error: ") for line in lines].count(True) == 1, lines
    assert lines[-1].startswith("error: ")
    assert not any("Check failure" in line or "Traceback" in line for line in lines)
    return code, lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "mesh"), [(2, 1, "data:2"), (4, 1, "data:2,tensor:2"), (2, 2, "fsdp:2,tensor:2")]
)
def test_processes_equal_one_with_as_many_devices(count, devices, mesh, data, tmp_path):
    finish(tmp_path / "several", data, count, STEPS, f"--mesh={mesh}", devices=[devices] * count)
    finish(tmp_path / "one", data, 1, STEPS, f"--mesh={mesh}", devices=[count * devices])
    assert_close(tmp_path / "several", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "whom"), [(0, "parent"), (1, "child")])
def test_a_killed_process_ends_the_other_and_the_same_command_resumes(lost, whom, undisturbed, data, tmp_path):
    processes = start_run(tmp_path / "run", data, 2, STEPS)
    wait_for_step(tmp_path / "run", 5, processes)
    os.kill(processes[lost].pid if whom == "parent" else child_of(processes[lost]), signal.SIGKILL)
    ends, seconds = ends_of(processes)
    print(f"kill of process {lost} ({whom}): {seconds:.1f} s, {ends[1 - lost][2][-1]}")
    code, line = error_of(ends[1 - lost])
    assert code == 5
    assert "lost" in line
    assert seconds < LOST_SECONDS
    assert ends[lost][0] == (-9 if whom == "parent" else 137)
    started = time.monotonic()
    finish(tmp_path / "run", data, 2, STEPS)
    print(f"resumed and finished in {time.monotonic() - started:.1f} s")
    assert rows_of(tmp_path / "run") == rows_of(undisturbed)
    assert results_of(tmp_path / "run")["test_bits_per_byte"] == results_of(undisturbed)["test_bits_per_byte"]


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "signum"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_signal_to_one_stops_all_at_the_same_step(stopped, signum, undisturbed, data, tmp_path):
    processes = start_run(tmp_path / "run", data, 2, STEPS)
    wait_for_step(tmp_path / "run", 3, processes)
    processes[stopped].send_signal(signum)
    ends, seconds = ends_of(processes)
    lines = [error_of(end) for end in ends]
    print(f"signal to process {stopped}: {seconds:.1f} s, {lines}")
    assert lines[0] == lines[1]
    assert lines[0][0] == 128 + signum
    assert "which is saved" in lines[0][1]
    finish(tmp_path / "run", data, 2, STEPS)
    assert rows_of(tmp_path / "run") == rows_of(undisturbed)


@pytest.mark.slow
def test_a_stopped_process_ends_the_run(data, tmp_path):
    processes = start_run(tmp_path / "run", data, 2, STEPS)
    wait_for_step(tmp_path / "run", 3, processes)
    os.kill(child_of(processes[1]), signal.SIGSTOP)
    ends, seconds = ends_of(processes)
    print(f"SIGSTOP: {seconds:.1f} s, {[error_of(end) for end in ends]}")
    assert [error_of(end)[0] for end in ends] == [5, 5]
    assert seconds < LOST_SECONDS + 2


@pytest.mark.slow
def test_another_number_of_processes_resumes(undisturbed, data, tmp_path):
    processes = start_run(tmp_path / "run", data, 2, STEPS)
    wait_for_step(tmp_path / "run", 5, processes)
    processes[1].terminate()
    ends_of(processes)
    finish(tmp_path / "run", data, 1, STEPS, devices=[2])
    assert_close(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "devices", "what"),
    [
        (["--steps=12", "--steps=14"], (1, 1), "--steps is 12 on process 0, 14 on process 1"),
        (["--data={data}", "--data={data}.other"], (1, 1), "data (sha256) is"),
        (["", ""], (1, 2), "devices is 1 x cpu on process 0, 2 x cpu on process 1"),
    ],
)
def test_processes_that_disagree_say_so(each, devices, what, data, tmp_path):
    data.with_name("data.txt.other").write_bytes(data.read_bytes() + b"more")
    more = [[flag.format(data=data)] if flag else [] for flag in each]
    ends, seconds = ends_of(start_run(tmp_path / "run", data, 2, each=more, devices=devices))
    print(f"disagreement: {seconds:.1f} s, {ends[0][2][-1]}")
    lines = [error_of(end) for end in ends]
    assert lines[0] == lines[1]
    assert lines[0][0] == 2
    assert what in lines[0][1]
    assert seconds < DISAGREE_SECONDS
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_of_another_run_is_refused_by_all(data, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ends, _ = ends_of(start_run(tmp_path, data, 2, STEPS))
    assert [error_of(end)[0] for end in ends] == [2, 2]
    assert "expected a workdir of 'language_model', or a new one" in ends[1][2][-1]


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_come_are_one_line(process, data, tmp_path):
    each = [[f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--process_id={process}"]]
    ends, seconds = ends_of(start_run(tmp_path / "run", data, 1, "--start_timeout=3", each=each))
    print(f"alone: {seconds:.1f} s, {ends}")
    code, line = error_of(ends[0])
    assert code == 2
    assert ("not all of them came within" if process == 0 else "nobody listens there after 3 s") in line


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other(data, tmp_path):
    ends, _ = ends_of(start_run(tmp_path / "run", data, 2, STEPS, each=[[], ["--data=/absent"]]))
    assert [error_of(end)[0] for end in ends] == [5, 2]
    assert "lost" in ends[0][2][-1]
    assert "/absent" in ends[1][2][-1]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_by_all(undisturbed, data, tmp_path):
    run, checkpoints = tmp_path / "run", tmp_path / "run/transformer/checkpoints"
    processes = start_run(run, data, 2, STEPS)
    wait_for_step(run, 5, processes)
    processes[0].terminate()
    ends_of(processes)
    newest = max(checkpoints.iterdir(), key=lambda path: int(path.name))
    os.truncate(newest / "model/_METADATA", 5)
    finish(run, data, 2, STEPS)
    assert (checkpoints / f"{newest.name}.damaged").exists()
    assert rows_of(run) == rows_of(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        ("compare", "--seeds=1 --points=2 --learning_rate=0.05 --matrix_learning_rate=0.8"),
        ("context", "--seeds=2"),
    ],
)
def test_other_launchers_of_texts(launcher, flags, data, tmp_path):
    flags = [*flags.split(), "--steps=2", "--mesh=data:2"]
    ends = finish(tmp_path / "two", data, 2, *flags, launcher=launcher)
    finish(tmp_path / "one", data, 1, *flags, launcher=launcher, devices=[2])
    assert f"Everything is in {tmp_path / 'two'}" in ends[0][1]
    assert ends[1][1:] == ("", [])
    rows = [[[*row.values()][1:] for row in rows_of(tmp_path / name)] for name in ("two", "one")]
    np.testing.assert_allclose([sum(row) for row in rows[0]], [sum(row) for row in rows[1]], rtol=2e-3)
