"""The launcher that compares models at their best learning rates, from its command line."""

import json
import math
import signal
from pathlib import Path

import pytest
from launcher_cases import call, results_of

from experiments import compare
from experiments.common import launcher
from nl_jax.training import TrainingDiverged, TrainingInterrupted

FLAGS = ["--models=transformer,hope_frozen", "--steps=2", "--batch_size=2", "--seq_len=16", "--seeds=2", "--points=2"]
FLAGS += ["--eval_every=1", "--checkpoint_every=2"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(Path(launcher.__file__).read_bytes())
    return path


class Progress:
    tokens = 64
    tokens_per_second = 100.0

    def __init__(self, bits):
        self.validation_bits_per_byte = bits


def test_every_model_tries_the_same_factors_until_the_best_lies_inside(data, tmp_path, monkeypatch, capsys):
    """Bits per byte of a made-up model: best at four times the rates for one, at a half for the other."""
    calls = []

    def fit_model(run, config, batches, values, workdir, mesh, seed, rate_factor):
        calls.append((run, seed, rate_factor))
        best = 4.0 if run.startswith("transformer") else 0.5
        if rate_factor > 4.0:
            raise TrainingDiverged("too fast")
        return type("State", (), {"model": {}})(), Progress(
            2.0 + abs(math.log2(rate_factor / best)) + 0.01 * (seed == 1)
        )

    monkeypatch.setattr(compare, "fit_model", fit_model)
    monkeypatch.setattr(compare, "evaluate", lambda model, data, mesh: 3.0)
    arguments = [f"--workdir={tmp_path / 'run'}", f"--data={data}", *FLAGS]
    assert call(compare.main, *arguments) == 0
    results = results_of(tmp_path / "run")
    assert results["models"]["transformer"]["tuning"] == {"0.5": 5.0, "1.0": 4.0, "2.0": 3.0, "4.0": 2.0, "8.0": None}
    assert set(results["models"]["hope_frozen"]["tuning"]) == {"0.25", "0.5", "1.0"}
    finals = [(run, factor) for run, seed, factor in calls if seed != compare.TUNING_SEED]
    assert finals == [
        ("transformer/seed_0", 4.0),
        ("hope_frozen/seed_0", 0.5),
        ("transformer/seed_1", 4.0),
        ("hope_frozen/seed_1", 0.5),
    ]
    table = capsys.readouterr().out
    assert "2.005 ± 0.007" in table
    assert "gzip -9" in table
    count = len(calls)
    assert call(compare.main, *arguments) == 0  # all is done: the same table, and nothing trained
    assert capsys.readouterr().out == table
    assert len(calls) == count


@pytest.fixture
def trained(monkeypatch):
    """The runs that are trained, where the best factor is 4 with few steps and a half with more; no model is built."""
    calls = []

    def fit_model(run, config, batches, values, workdir, mesh, seed, rate_factor):
        calls.append((run, values.steps, rate_factor))
        if len(calls) == trained.stop:
            raise TrainingInterrupted("stopped", signal.SIGTERM)
        bits = 2.0 + abs(math.log2(rate_factor / (4.0 if values.steps == 2 else 0.5)))
        return type("State", (), {"model": {}})(), Progress(bits)

    monkeypatch.setattr(compare, "fit_model", fit_model)
    monkeypatch.setattr(compare, "evaluate", lambda model, data, mesh: 3.0)
    trained = type("Trained", (), {"calls": calls, "stop": None})
    return trained


MORE = ["--models=transformer", "--schedule=constant", "--warmup_steps=1", "--seeds=2"]


def test_a_run_with_more_steps_keeps_the_factor_of_its_checkpoints(data, tmp_path, trained, capsys):
    arguments = [f"--workdir={tmp_path / 'run'}", f"--data={data}", *FLAGS, *MORE]
    assert call(compare.main, *arguments) == 0
    first = results_of(tmp_path / "run")["models"]["transformer"]["tuning"]
    for steps in (4, 8):
        trained.calls.clear()
        capsys.readouterr()
        assert call(compare.main, *arguments, f"--steps={steps}") == 0
        assert trained.calls == [("transformer/seed_0", steps, 4.0), ("transformer/seed_1", steps, 4.0)]
        results = results_of(tmp_path / "run")
        assert (results["models"]["transformer"]["tuning"], results["tuned_at_steps"]) == (first, 2)
        out = capsys.readouterr().out
        assert out.splitlines()[1].split()[3] == "4"  # rates times
        assert f"The rates were chosen at --steps=2, before this run was given {steps}." in out


def test_a_run_with_more_steps_tries_the_factors_if_it_had_not_tried_all(data, tmp_path, trained):
    arguments = [f"--workdir={tmp_path / 'run'}", f"--data={data}", *FLAGS, *MORE]
    trained.stop = 2
    assert call(compare.main, *arguments) == 128 + signal.SIGTERM
    trained.stop = None
    trained.calls.clear()
    assert call(compare.main, *arguments, "--steps=4") == 0
    assert trained.calls[-1] == ("transformer/seed_1", 4, 0.5)
    assert set(results_of(tmp_path / "run")["models"]["transformer"]["tuning"]) == {"0.25", "0.5", "1.0"}


@pytest.mark.slow
def test_a_whole_run(data, tmp_path, capsys):
    arguments = [f"--workdir={tmp_path / 'run'}", f"--data={data}", *FLAGS, "--models=transformer", "--seeds=1"]
    assert call(compare.main, *arguments) == 0
    results = results_of(tmp_path / "run")
    (seed,) = results["models"]["transformer"]["seeds"]
    assert 0 < seed["test_bits_per_byte"] < 14
    assert (tmp_path / "run" / "compare.png").exists()
    flags = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]
    assert (flags["optimizer"], flags["learning_rate"], flags["matrix_learning_rate"]) == ("m3", 0.003, 0.05)
