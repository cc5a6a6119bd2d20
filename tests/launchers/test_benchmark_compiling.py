"""What the benchmark does with programs that do not compile in time; nothing here is compiled."""

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from experiments import benchmark
from experiments.benchmarking import compiling, gpu
from nl_jax.models import named_config

LATE = gpu.Row("late", named_config("transformer", "tiny", context_length=8), 1)


def run_with(kept: dict[str, Any]):
    """A run of the benchmark that keeps figures in a dictionary."""

    class run:
        memory_limit = 0

        class record:
            get = staticmethod(kept.get)
            keep = staticmethod(kept.__setitem__)

    return run


def test_a_late_program_tries_no_other_policy(monkeypatch):
    tried = []

    class too_large:
        def __init__(self, config, *_):
            tried.append(config.remat)

        def check_memory(self, limit):
            time.sleep(0.05)
            raise MemoryError

    monkeypatch.setattr(gpu, "Training", too_large)
    with pytest.raises(gpu.OutOfTime):
        gpu.build(LATE, 0, end=time.monotonic() + 0.01)
    assert tried == [gpu.POLICIES[0]]


def test_a_program_that_gave_up_is_no_problem_of_its_own(monkeypatch, capsys):
    """It is left out, so that the same command with more minutes measures it."""

    def build(row, limit, end):
        raise gpu.OutOfTime

    monkeypatch.setattr(gpu, "build", build)
    gpu.measure_wave(run_with({}), [LATE], time.monotonic() + 60)
    assert "not compiled in time: late 8:1" in capsys.readouterr().err


def test_figures_say_that_another_program_was_still_compiling(monkeypatch, capsys):
    kept, go_on = {}, threading.Event()
    monkeypatch.setattr(gpu, "build", lambda row, limit, end: row is LATE and go_on.wait(10))
    monkeypatch.setattr(gpu, "measure_row", lambda *_: {"step_seconds": 1.0})
    before = compiling.under_way()
    try:
        gpu.measure_wave(run_with(kept), [LATE._replace(title="quick"), LATE], time.monotonic() + 1.5)
    finally:
        go_on.set()
    assert kept == {"quick 8:1": {"step_seconds": 1.0, gpu.DISTURBED: before + 1}}
    gpu.print_remarks("quick", kept["quick 8:1"])
    assert f"quick: measured while others ({before + 1}) were still compiling" in capsys.readouterr().out


def test_a_process_ends_without_what_still_compiles():
    code = "import time; from experiments.benchmarking import compiling; compiling.start(time.sleep, [({},)]);"
    code += "print('written'); {} compiling.end_process(3)"
    started = time.monotonic()
    late = subprocess.run([sys.executable, "-c", code.format(60, "")], capture_output=True, text=True, check=False)
    assert (late.returncode, late.stdout, late.stderr) == (3, "written\n", "")
    assert time.monotonic() - started < 30
    done = subprocess.run([sys.executable, "-c", code.format(0, "time.sleep(0.1);")], check=False)
    assert done.returncode == 0  # nothing is under way: the process ends as usual


def test_only_a_command_ends_its_process(monkeypatch):
    ended = []
    monkeypatch.setattr(benchmark, "end_process", ended.append)
    monkeypatch.setattr(benchmark.launcher, "run_subject", lambda *_: 2)
    monkeypatch.setattr(sys, "argv", ["benchmark", "gpu"])
    assert benchmark.main(["benchmark", "gpu"]) == 2
    assert ended == []
    assert benchmark.main() == 2
    assert ended == [2]
