"""experiments.optimizers speed: what is timed and how, and a whole run."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from launcher_cases import call as call_main
from launcher_cases import results_of

from experiments import optimizers
from experiments.benchmarking.timed_programs import Timing
from experiments.optimizer_comparison import table, update_speed

call = functools.partial(call_main, optimizers.main)


@pytest.mark.parametrize("size", [1e6, 1e7, 1e8])
def test_sizes(size):
    shapes = update_speed.parameter_shapes(size)
    count = sum(np.prod(shape.shape) for shape in shapes.values())
    assert abs(count / size - 1) < 0.2
    expected = {"momentum": 4, "adamw": 8, "muon": 4, "adamuon": 8, "m3": 16, "delta_momentum": 4}
    for name, per_parameter in expected.items():
        transformation = table.OPTIMIZERS[name].make(1.0, 0.1)
        assert update_speed.state_bytes(transformation, shapes) / count == pytest.approx(per_parameter, rel=1e-4)


def test_m3_is_timed_over_a_period():
    row = update_speed._row([Timing([1.0, 3.0, 2.0]), Timing([18.0, 99.0, 18.0])])
    assert row["step_seconds"] == (15 * 2.0 + 18.0) / 16
    assert row["last_of_period_seconds"] == 18.0
    assert update_speed._row([Timing([2.0, 4.0])])["step_seconds"] == 3.0
    assert update_speed._row([Timing([1.0]), Timing([], "no memory")]) == {"problem": "no memory"}


def test_the_last_step_of_a_period_is_another():
    params = {"w": jnp.eye(4)}
    step = update_speed.Step(table.OPTIMIZERS["m3"].make(0.1, 0.0), params, params)
    slow = []
    for count in (0, update_speed.M3_PERIOD - 1):
        step.at(count)()
        slow.append(float(np.abs(optax.tree.get(step._state, "slow_direction")[0]["w"]).max()))
    assert slow[0] == 0 < slow[1]


def test_speed(tmp_path, capsys):
    assert call("speed", f"--workdir={tmp_path}", "--sizes=1e4", "--rounds=1", "--optimizers=muon,m3") == 0
    figures = results_of(tmp_path)["figures"]["1e4"]
    assert figures["parameters"] == 6 * 12 * 64**2
    muon, m3 = (figures["optimizers"][name] for name in ("muon", "m3"))
    assert m3["step_seconds"] > 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("294,912 parameters")
    assert float(out[2].split()[2]) == pytest.approx(m3["step_seconds"] / muon["step_seconds"], abs=0.005)
    assert (tmp_path / "speed.png").stat().st_size > 0


def test_what_does_not_fit_is_reported(tmp_path, capsys, monkeypatch):
    step = update_speed.Step

    def too_large(transformation, gradients, params):
        if optax.tree.get_all_with_path(transformation.init(params), "slow"):
            raise MemoryError("no memory\nfor M3")
        return step(transformation, gradients, params)

    monkeypatch.setattr(update_speed, "Step", too_large)
    assert call("speed", f"--workdir={tmp_path}", "--sizes=1e4", "--rounds=1", "--optimizers=m3,momentum") == 0
    found = results_of(tmp_path)["figures"]["1e4"]["optimizers"]
    assert found["m3"]["problem"] == "no memory for M3"
    assert found["momentum"]["step_seconds"] > 0
    assert "m3: no memory for M3" in capsys.readouterr().out
