"""experiments.optimizers continual: its orthogonal tasks against plain loops, and a whole run."""

import functools

import numpy as np
import optax
from launcher_cases import call as call_main
from launcher_cases import results_of

from experiments import optimizers
from experiments.optimizer_comparison import continual_tasks

call = functools.partial(call_main, optimizers.main)


def test_orthogonal_tasks_cost_gradient_descent_nothing_and_adam_something():
    sizes = {"num_tasks": 4, "steps": 60}
    sgd = continual_tasks.learn(optax.sgd, [0.0, 0.05], [0, 1], **sizes)
    assert sgd.losses.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(sgd.losses[0], np.broadcast_to(sgd.losses[0, :, :1], (2, 4, 4)))  # rate 0
    np.testing.assert_allclose(sgd.losses[0].mean(), 1.0, atol=0.3)  # targets vary by 1
    assert sgd.learned[1].max() < 0.05
    assert np.abs(sgd.forgetting[1]).max() < 1e-5
    adam = continual_tasks.learn(optax.adam, [0.01], [0, 1], **sizes)
    assert adam.forgetting[0].min() > 0.01


def test_forgetting_is_the_mean_over_the_tasks_before():
    rng = np.random.default_rng(0)
    losses = rng.random((2, 3, 4, 4))
    outcome = continual_tasks.Outcome(losses)
    for rate in range(2):
        for seed in range(3):
            grid = losses[rate, seed]
            for n in range(1, 4):
                expected = np.mean([grid[n, task] - grid[task, task] for task in range(n)])
                np.testing.assert_allclose(outcome.forgetting[rate, seed, n - 1], expected)
            seen = [grid[n, : n + 1].mean() for n in range(4)]
            np.testing.assert_allclose(outcome.seen[rate, seed], seen)
            np.testing.assert_allclose(outcome.final[rate, seed], seen[-1])
    losses[0, 0, 3, 0] = np.nan
    assert continual_tasks.Outcome(losses).final[0, 0] == np.inf


def test_continual(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(continual_tasks, "RATES", np.array([1e-3, 0.05, 100.0]))
    flags = ["--optimizers=sgd,adamw", "--num_tasks=3", "--task_steps=30", "--seeds=2"]
    assert call("continual", f"--workdir={tmp_path}", *flags) == 0
    sgd, adamw = (results_of(tmp_path)["figures"][name] for name in ("sgd", "adamw"))
    assert sgd["rate"] == 0.05
    assert sgd["tuning_losses"][1] == min(sgd["tuning_losses"][:2])
    assert sgd["tuning_losses"][2] is None  # it diverged
    assert np.shape(sgd["forgetting"]) == (2, 2)
    assert np.mean(adamw["forgetting"]) > np.abs(sgd["forgetting"]).max()
    assert (tmp_path / "continual.png").stat().st_size > 0
    assert "loss after own task" in capsys.readouterr().out
