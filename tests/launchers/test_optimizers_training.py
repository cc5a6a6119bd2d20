"""experiments.optimizers training: grids of rates and trainers against plain loops, and whole runs."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from image_cases import write_images
from launcher_cases import call as call_main
from launcher_cases import results_of

from experiments import optimizers
from experiments.common.grid import Grid, best_rate, rate_name
from experiments.optimizer_comparison import table, tasks, training
from experiments.optimizer_comparison.tasks import ComparisonTask
from experiments.optimizer_comparison.training_runs import Trainer
from nl_jax.optim import newton_schulz

call = functools.partial(call_main, optimizers.main)


def test_grid_is_extended_until_the_best_is_inside():
    def search(best, points=3, most=8):
        losses = {}
        for rates in Grid(points, most=most).search(1.0, losses):
            losses |= {rate_name(rate): abs(np.log2(rate / best)) for rate in rates}
        return losses

    assert sorted(map(float, search(best=1.0))) == [0.5, 1.0, 2.0]
    assert sorted(map(float, search(best=8.0))) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert sorted(map(float, search(best=0.25, points=4))) == [0.125, 0.25, 0.5, 1.0, 2.0]
    assert len(search(best=1e9, most=2)) == 5
    assert best_rate(search(best=8.0)) == 8.0
    assert best_rate({"0.5": None, "1.0": 2.0, "2.0": 1.0}) == 2.0
    losses = search(best=8.0)  # as after a stop: it finds its way through what is there
    assert list(Grid(3).search(1.0, losses)) == []
    losses = {rate_name(rate): None for rate in (0.5, 1.0, 2.0)}  # all diverged: smaller ones are tried
    assert next(Grid(3).search(1.0, losses)) == [0.25]


@pytest.fixture
def regression():
    """A task of eight numbers: y = W x."""
    data = jax.random.normal(jax.random.key(0), (40, 6))
    loss = lambda w, batch: jnp.mean((batch[:, :4] @ w - batch[:, 4:]) ** 2)  # noqa: E731
    return ComparisonTask(
        metadata={},
        parameters=8,
        init=lambda key: jax.random.normal(key, (4, 2)),
        batch=lambda train, key: train[jax.random.randint(key, (5,), 0, len(train))],
        loss=loss,
        score=lambda w, held_out: {"loss": loss(w, held_out), "twice": 2 * loss(w, held_out)},
        train=data[:20],
        validation=data[20:30],
        test=data[30:],
    )


def loop(task, rate, seed, steps, interval):
    """SGD with momentum 0.9, clipping, warm-up and cosine, written out."""
    keys = jax.random.split(jax.random.key(seed))
    w = np.asarray(task.init(keys[0]), np.float64)
    m, losses, curves = 0.0, [], {"train_loss": [], "loss": []}
    warmup = steps // 10
    for step in range(steps):
        batch = task.batch(task.train, jax.random.fold_in(keys[1], step))
        loss, g = jax.value_and_grad(task.loss)(jnp.asarray(w, jnp.float32), batch)
        losses.append(float(loss))
        g = np.asarray(g, np.float64)
        m = 0.9 * m + g * min(1.0, 1.0 / np.linalg.norm(g))
        if step < warmup:
            scale = (1 + step * warmup / warmup) / (warmup + 1)
        else:
            scale = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
        w = w - rate * scale * m
        if (step + 1) % interval == 0:
            curves["train_loss"].append(np.mean(losses[-interval:]))
            curves["loss"].append(float(task.loss(jnp.asarray(w, jnp.float32), task.test)))
    return curves


@pytest.mark.parametrize("lanes", [1, 3])
def test_trainer_equals_a_loop(regression, lanes):
    trainer = Trainer(regression, lambda rate: optax.sgd(rate, 0.9), steps=20, interval=5, lanes=lanes)
    pairs = [(0.1, 0), (0.02, 1), (0.1, 1), (0.3, 2)]
    done = []
    runs = list(trainer.runs(*zip(*pairs, strict=True), regression.test, done.append))
    assert sum(done) == len(pairs) * 4
    for (rate, seed), curves in zip(pairs, runs, strict=True):
        expected = loop(regression, rate, seed, 20, 5)
        for name in expected:
            np.testing.assert_allclose(curves[name], expected[name], rtol=1e-4)
        np.testing.assert_allclose(curves["twice"], 2 * np.array(curves["loss"]), rtol=1e-6)


def test_trainer_says_none_where_a_loss_is_not_finite(regression):
    trainer = Trainer(regression, lambda rate: optax.sgd(rate), steps=4, interval=2)
    (curves,) = trainer.runs([1e38], [0], regression.test, lambda _: None)
    assert curves["loss"][-1] is None


@pytest.mark.parametrize("name", table.OPTIMIZERS)
def test_every_optimizer_runs_side_by_side(name, regression):
    """M3's branches and all states under vmap and scan: the same as one by one."""
    optimizer = table.OPTIMIZERS[name]
    alone, beside = (
        Trainer(regression, lambda rate: optimizer.make(rate, 0.1), steps=20, interval=20, lanes=lanes)
        for lanes in (1, 2)
    )
    arguments = ([0.05, 0.01], [0, 1], regression.test, lambda _: None)
    for a, b in zip(alone.runs(*arguments), beside.runs(*arguments), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)


def test_adamuon_equals_a_loop():
    params = {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones(3)}
    tx = table.adamuon(0.5, 0.1)
    adamw = optax.adamw(0.5, b1=0.9, b2=0.95, weight_decay=0.1)
    state, adam_state = tx.init(params), adamw.init(params["bias"])
    w, m, v = np.ones((2, 4, 3)), 0.0, 0.0
    for t in range(1, 6):
        g = jax.tree.map(lambda p, t=t: jax.random.normal(jax.random.key(t), p.shape), params)
        updates, state = tx.update(g, state, params)
        bias, adam_state = adamw.update(g["bias"], adam_state, params["bias"])
        np.testing.assert_allclose(updates["bias"], bias, rtol=1e-5)
        params = optax.apply_updates(params, updates)

        kernel = np.asarray(g["kernel"], np.float64)
        m = 0.95 * m + 0.05 * kernel
        nesterov = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * kernel / (1 - 0.95**t)
        o = np.asarray(newton_schulz(jnp.asarray(nesterov, jnp.float32)), np.float64)
        v = 0.95 * v + 0.05 * o**2
        step = o / np.sqrt(v / (1 - 0.95**t))
        step *= 0.2 / np.sqrt(np.mean(step**2, axis=(1, 2), keepdims=True))
        w = w - 0.5 * (step + 0.1 * w)
        np.testing.assert_allclose(params["kernel"], w, rtol=2e-3, atol=1e-4)


def test_muon_takes_stacks_as_matrices():
    tx = table.muon(0.1, 0.0)
    g = jax.random.normal(jax.random.key(0), (3, 4, 6))
    update = tx.update({"w": g}, tx.init({"w": g}), {"w": g})[0]["w"]
    for one, expected in zip(g, update, strict=True):
        alone = optax.contrib.muon(0.1)
        np.testing.assert_allclose(alone.update(one, alone.init(one), one)[0], expected, rtol=1e-4, atol=1e-6)


TRAINING = ["--optimizers=momentum,adamw", "--steps=4", "--eval_every=2", "--points=2", "--seeds=2", "--rounds=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run on a folder of images."""
    directory = tmp_path_factory.mktemp("training")
    write_images(directory / "images", size=8)
    arguments = [*TRAINING, f"--images={directory / 'images'}", "--image_size=8", "--batch_size=4"]
    arguments += [f"--workdir={directory / 'run'}"]
    assert call("training", *arguments) == 0
    return directory / "run", arguments


def test_training_keeps_everything(trained):
    workdir, _ = trained
    results = results_of(workdir)
    assert {"configuration", "versions", "device"} < set(results)
    assert results["configuration"]["flags"]["steps"] == 4
    assert results["configuration"]["models"]["vision_transformer"]["num_classes"] == 2
    assert 100_000 < results["configuration"]["models"]["vision_transformer"]["parameters"] < 200_000
    for name in ("momentum", "adamw"):
        tuning, final = (results["figures"][f"{name}: {part}"] for part in ("tuning", "final"))
        assert len(tuning) >= 3  # of two points one is at an edge, whichever is best
        assert min(map(float, tuning)) < best_rate(tuning) < max(map(float, tuning)) or len(tuning) == 10
        assert len(final) == 2
        assert final[0]["loss"] != final[1]["loss"]
        for curves in final:
            assert set(curves) == {"train_loss", "loss", "accuracy"}
            assert all(len(curve) == 2 and np.isfinite(curve).all() for curve in curves.values())
        assert results["figures"]["step seconds"][name] > 0
    assert (workdir / "vit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_side_by_side_is_the_same(trained, tmp_path, monkeypatch):
    workdir, arguments = trained
    monkeypatch.setattr(training, "_lanes", lambda values: 2)
    assert call("training", *arguments, "--optimizers=momentum", f"--workdir={tmp_path}") == 0
    alone, beside = (results_of(path)["figures"] for path in (workdir, tmp_path))
    assert beside["momentum: tuning"] == pytest.approx(alone["momentum: tuning"], rel=1e-3)
    for a, b in zip(beside["momentum: final"], alone["momentum: final"], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)


@pytest.mark.slow
def test_training_goes_on(trained, capsys, monkeypatch):
    workdir, arguments = trained
    before = results_of(workdir)
    calls = []
    runs = Trainer.runs

    def counted(self, rates, seeds, held_out, progress):
        for rate, seed, curves in zip(rates, seeds, runs(self, rates, seeds, held_out, progress), strict=True):
            calls.append((rate, seed))
            yield curves

    monkeypatch.setattr(Trainer, "runs", counted)
    assert call("training", *arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert (calls, results_of(workdir)) == ([], before)
    assert [line.split()[0] for line in table[1:3]] == ["momentum", "adamw"]
    assert table[0].split()[-3:] == ["ms", "a", "step"]
    assert "test accuracy" in table[0]

    stopped = json.loads(json.dumps(before))  # as if it had been stopped in AdamW's final runs
    del stopped["figures"]["adamw: final"][1]
    (workdir / "results.json").write_text(json.dumps(stopped))
    assert call("training", *arguments) == 0
    assert calls == [(best_rate(before["figures"]["adamw: tuning"]), 1)]
    assert results_of(workdir) == before


def test_language_model(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LANGUAGE", tasks.LANGUAGE | {"width": 16, "mlp_hidden": 16})
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} squared is {i * i}.\n" for i in range(400)))
    flags = ["--task=lm", f"--data={text}", "--seq_len=8", "--batch_size=2", "--optimizers=momentum"]
    flags += ["--steps=2", "--eval_every=1", "--points=2", "--seeds=1", "--rounds=1"]
    assert call("training", f"--workdir={tmp_path / 'run'}", *flags) == 0
    final = results_of(tmp_path / "run")["figures"]["momentum: final"]
    assert set(final[0]) == {"train_loss", "loss"}
    assert np.log(257) - 2 < final[0]["loss"][0] < np.log(257) + 3


def test_digits_need_scikit_learn(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert call("training", f"--workdir={tmp_path / 'run'}") == 2
    assert "scikit-learn, which is not installed" in capsys.readouterr().err
