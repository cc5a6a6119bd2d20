"""experiments.optimizers toy: its steps against plain loops, and a whole run."""

import functools

import jax
import numpy as np
import pytest
from launcher_cases import call as call_main
from launcher_cases import results_of

from experiments import optimizers
from experiments.optimizer_comparison import toy_problem

call = functools.partial(call_main, optimizers.main)


def momentum_steps(rate, setting):
    """Plain momentum on Eq. 53, its gradient by hand."""
    (k, a, omega), (r, theta) = setting, toy_problem.START
    m = np.zeros(2)
    for step in range(toy_problem.STEPS):
        inner = r - theta + a * np.sin(omega * r)
        if r**2 + k * inner**2 < toy_problem.GOAL:
            return step
        m = 0.9 * m + np.array([2 * r + 2 * k * inner * (1 + a * omega * np.cos(omega * r)), -2 * k * inner])
        r, theta = np.array([r, theta]) - rate * m
    return None


def test_toy_steps_equal_a_loop(monkeypatch):
    monkeypatch.setattr(toy_problem, "RATES", np.array([2e-3, 4.5e-3, 0.02]))
    monkeypatch.setattr(toy_problem, "STEPS", 400)
    settings = (toy_problem.SETTINGS[0], (1.0, 0.0, 1.0))
    with jax.enable_x64(True):
        paths = toy_problem.descend(toy_problem.OPTIMIZERS["momentum"], settings)
    for setting, path in zip(settings, paths, strict=True):
        steps = [momentum_steps(rate, setting) for rate in toy_problem.RATES]
        best = min(step for step in steps if step is not None)
        assert path.steps == best
        assert path.rate == toy_problem.RATES[steps.index(best)]
        assert path.points[0] == list(toy_problem.START)
        assert len(path.points) == best + 1
        assert float(toy_problem.loss(path.points[-1], setting)) < toy_problem.GOAL


def test_toy_goal_that_no_rate_reaches(monkeypatch):
    monkeypatch.setattr(toy_problem, "STEPS", 3)
    (path,) = toy_problem.descend(toy_problem.OPTIMIZERS["sgd"], toy_problem.SETTINGS[:1])
    assert (path.steps, path.points) == (None, [])


def test_toy(tmp_path, capsys):
    assert call("toy", f"--workdir={tmp_path}", "--optimizers=momentum,delta_momentum,muon") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["momentum", "delta_momentum", "muon"]
    steps = {name: paths[0]["steps"] for name, paths in results_of(tmp_path)["figures"].items()}
    assert steps["delta_momentum"] <= 0.7 * steps["momentum"]  # in the paper's setting
    ratio = out.splitlines()[4].split()[3]
    assert float(ratio) == pytest.approx(steps["delta_momentum"] / steps["momentum"], abs=0.005)
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    assert out.splitlines()[-1].endswith("results.json, toy.png")
