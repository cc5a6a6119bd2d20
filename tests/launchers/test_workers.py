"""Cells of an evaluation in several processes: the same results, and what is saved when one of them fails or ends."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from launcher_table import without_speeds

from experiments.eval_runs.main import main
from experiments.eval_runs.workers import _portable
from experiments.evals import recall
from nl_jax import Diverged, InputError

ROOT = Path(recall.__file__).parents[2]
SMALL = "--width=8 --num_layers=1 --num_heads=1 --chunk_size=4 --batch_size=4 --eval_every=2 --vocab_size=12"
CELLS = "--models=linear_attention,transformer --attention_heads=1 --subtasks=32x4 --learning_rates=1e-3,1e-2 --seeds=2"


def evaluate(workdir, *more, steps=3):
    """Exit code of an evaluation with two cells."""
    return recall.main(["recall", *SMALL.split(), *CELLS.split(), f"--steps={steps}", f"--workdir={workdir}", *more])


def cells_of(workdir):
    """Each model's cell of results.json, speeds aside."""
    return without_speeds(json.loads((workdir / "results.json").read_text())["subtasks"]["32x4"])


def figures(content):
    """All numbers of JSON, in order."""
    if isinstance(content, dict):
        content = [content[key] for key in sorted(content)]
    return [x for each in content for x in figures(each)] if isinstance(content, list) else [content]


@pytest.mark.slow
def test_workers_give_the_results_of_one_process(tmp_path, capsys):
    assert evaluate(tmp_path / "one", "--workers=1") == 0
    assert evaluate(tmp_path / "two", "--workers=2") == 0
    one, two = cells_of(tmp_path / "one"), cells_of(tmp_path / "two")
    assert set(one) == set(two) == {"linear_attention", "transformer"}
    assert [len(cell["seeds"]) for cell in two.values()] == [2, 2]
    np.testing.assert_allclose(figures(two), figures(one), rtol=1e-4)
    for cell in ("linear_attention", "transformer"):
        rows, others = (
            [json.loads(line) for line in (tmp_path / name / "32x4" / cell / "metrics.jsonl").read_text().splitlines()]
            for name in ("one", "two")
        )
        assert [(row["model"], row["step"]) for row in rows] == [(row["model"], row["step"]) for row in others]
        assert len(rows) == 3 * 3  # two rates, of which the better has another seed
    assert multiprocessing.active_children() == []
    assert "32x4, linear_attention: at most 8 runs are left" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_of_a_worker_ends_the_run_with_its_line_and_the_rest_is_kept(tmp_path, capsys):
    (tmp_path / "run/32x4").mkdir(parents=True)
    (tmp_path / "run/32x4/transformer").write_text("in the way of the folder")
    assert evaluate(tmp_path / "run", "--workers=2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:")
    assert "32x4/transformer" in error
    assert multiprocessing.active_children() == []
    (tmp_path / "run/32x4/transformer").unlink()
    assert evaluate(tmp_path / "run", "--workers=1") == 0
    assert [len(cell["seeds"]) for cell in cells_of(tmp_path / "run").values()] == [2, 2]


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_goes_on(tmp_path, capsys):
    def kill_one():
        while not list((tmp_path / "run").rglob("metrics.jsonl")):
            time.sleep(0.1)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert evaluate(tmp_path / "run", "--eval_every=100", "--workers=2", steps=300) == 5
    thread.join()
    assert "a process of the run was lost (the worker of 32x4, " in capsys.readouterr().err.splitlines()[-1]
    assert multiprocessing.active_children() == []
    assert evaluate(tmp_path / "run", "--eval_every=100", "--workers=2", steps=300) == 0
    assert [len(cell["seeds"]) for cell in cells_of(tmp_path / "run").values()] == [2, 2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_command(tmp_path, by):
    flags = [*SMALL.split(), *CELLS.split(), "--steps=100000", f"--workdir={tmp_path / 'run'}", "--workers=2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts in the background ignore it
    command = subprocess.Popen(
        [sys.executable, "-m", "experiments.evals.recall", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    while len(list((tmp_path / "run").rglob("metrics.jsonl"))) < 2:
        assert command.poll() is None
        time.sleep(0.2)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    assert len(children) >= 2
    command.send_signal(by)
    _, error = command.communicate(timeout=60)
    assert command.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[by]
    assert "Traceback" not in error
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_errors_keep_their_kind_where_that_can_be_sent():
    for error in (InputError("seeds=0"), Diverged("not finite", level="memory"), MemoryError()):
        found = _portable(error)
        assert type(found) is type(error)
        assert str(found) == str(error)

    class Odd(Exception):  # local classes cannot be sent
        pass

    assert type(_portable(Odd("what it says"))) is RuntimeError
    assert "Odd: what it says" in str(_portable(Odd("what it says")))


def test_an_evaluation_of_the_users_own_has_one_worker(tmp_path, capsys):
    own = dataclasses.replace(recall.EVALUATION, name="evals.own")
    assert main(own, "", ["own", *SMALL.split(), *CELLS.split(), f"--workdir={tmp_path / 'run'}", "--workers=2"]) == 2
    assert "--workers=2: expected 1, since workers cannot import evals.own" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_accelerator_has_one_worker(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert evaluate(tmp_path / "run", "--workers=2") == 2
    assert "--workers=2: expected 1, since one process takes the whole accelerator" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
