"""experiments.optimizers: its parts against plain loops, and whole runs at sizes where they take seconds."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from image_cases import write_images
from launcher_cases import error_line, results_of

from experiments import optimizers
from experiments.benchmarking.timed_programs import Timing
from experiments.common.grid import Grid, best_rate, rate_name
from experiments.optimizer_comparison import continual_tasks, table, tasks, toy_problem, update_speed
from experiments.optimizer_comparison.tasks import ComparisonTask
from experiments.optimizer_comparison.training_runs import Trainer
from nl_jax.optim import newton_schulz


def call(*arguments):
    return optimizers.main(["optimizers", *map(str, arguments)])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "first argument missing: expected one of toy, continual, training, speed"),
        (["train"], "first argument train: expected one of"),
        (["toy", "--optimizers=sgd,adamw"], "--optimizers=sgd,adamw: expected some of sgd, momentum"),
        (["speed", "--optimizers=muon,muon"], "none twice"),
        (["speed", "--optimizers="], "--optimizers: none given"),
        (["speed", "--sizes=many"], "--sizes=many: expected numbers of parameters"),
        (["speed", "--sizes=1e6,1e6"], "none twice"),
        (["speed", "--sizes=-1"], "--sizes=-1: expected numbers of parameters"),
        (["speed", "--rounds=0"], "--rounds=0: expected at least 1"),
        (["continual", "--num_tasks=1"], "--num_tasks=1: expected at least 2"),
        (["continual", "--seeds=0"], "--seeds=0: expected at least 1"),
        (["training", "--task=gan"], "--task=gan: expected one of vit, lm"),
        (["training", "--task=lm", "--model=gpt"], "--model=gpt: expected one of hope"),
        (["training", "--steps=50"], "--eval_every=20: expected a divisor of the 50 steps"),
        (["training", "--points=1"], "--points=1: expected at least 2"),
        (["training", "--weight_decay=nan"], "--weight_decay=nan: expected at least 0"),
        (["training", "--image_size=6"], "--image_size=6: expected a multiple of 4"),
        (["training", "--images=/absent"], "image path '/absent': no such directory"),
        (["training", "--task=lm", "--data=/absent"], "data path '/absent'"),
    ],
)
def test_bad_flags_end_in_one_line(flags, problem, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call(*flags, f"--workdir={workdir}") == 2
    assert problem in error_line(capsys)
    assert not workdir.exists()


def test_help_explains_itself(capsys):
    assert call("--help") == 0
    assert capsys.readouterr().out.startswith(optimizers.__doc__.strip())


# The toy problem


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


# Orthogonal tasks


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


# Training


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
    monkeypatch.setattr(optimizers, "_lanes", lambda values: 2)
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

    assert call("training", *arguments, "--weight_decay=0.2") == 2
    assert "weight_decay 0.1 there, 0.2 here" in capsys.readouterr().err


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


# Speed


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
