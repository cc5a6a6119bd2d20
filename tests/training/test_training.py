"""The step, the loop and its records, with a toy model: what is tested here does not depend on which model it is."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy_model import Toy

from nl_jax import InputError
from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack, train_iterator
from nl_jax.evaluation import evaluate
from nl_jax.parallel import parse_mesh
from nl_jax.training import (
    MetricsWriter,
    TrainingDiverged,
    TrainingInterrupted,
    decay_mask,
    fit,
    init_state,
    learning_rate_schedule,
    loop,
    make_optimizer,
    plot_validation,
    read_metrics,
    restore_newest,
    train_step,
)
from nl_jax.training.metrics import is_measured

STEPS = 300
TEXT = Path(loop.__file__).read_bytes()
PACKED = pack([Document("loop.py", TEXT)], ByteTokenizer())
SIZES = {"batch_size": 4, "seq_len": 16}


def toy():
    return Toy(nnx.Rngs(0))


def train(workdir, name="toy", learning_rate=1e-2, steps=STEPS, checkpoint_every=40):
    return fit(
        name,
        toy,
        make_optimizer(learning_rate=learning_rate, steps=steps),
        train_iterator(PACKED, **SIZES, seed=0),
        evaluation_batches(PACKED, **SIZES, max_tokens=256),
        workdir=workdir,
        mesh=parse_mesh("data:1", jax.devices()[:1]),
        steps=steps,
        eval_every=50,
        checkpoint_every=checkpoint_every,
    )


def rows_of(workdir):
    return [{key: value for key, value in row.items() if not is_measured(key)} for row in read_metrics(workdir)]


def assert_same_run(workdir, result, reference):
    state, progress = result
    expected_workdir, (expected_state, expected_progress) = reference
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    assert progress.validation_bits_per_byte == expected_progress.validation_bits_per_byte
    assert (progress.step, progress.tokens) == (expected_progress.step, expected_progress.tokens)
    assert rows_of(workdir) == rows_of(expected_workdir)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that is never stopped."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, train(workdir)


def test_training_learns_and_records_every_step(reference):
    workdir, (_, progress) = reference
    rows = read_metrics(workdir)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in rows if "loss" in row] == list(range(64, 64 * STEPS + 1, 64))
    assert np.mean(losses[-20:]) < 0.7 * losses[0]
    validation = [(row["step"], row["validation_bits_per_byte"]) for row in rows if "validation_bits_per_byte" in row]
    assert [step for step, _ in validation] == [50, 100, 150, 200, 250, 300]
    assert validation[-1][1] == progress.validation_bits_per_byte < validation[0][1]
    assert progress.tokens_per_second > 0
    assert progress.peak_memory_bytes >= 3 * 4 * (257 * 16 + 16)  # parameters and two moments at least
    assert sorted(path.name for path in (workdir / "toy/checkpoints").iterdir()) == ["280", "300"]
    assert list((workdir / "toy/tensorboard").glob("events.*"))
    assert plot_validation(workdir, {"gzip -9": 3.0}).read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_not_run_again(reference):
    workdir, result = reference
    before = (workdir / "metrics.jsonl").read_text()
    state, progress = train(workdir)
    jax.tree.map(np.testing.assert_array_equal, state, result[0])
    assert progress == result[1]
    assert (workdir / "metrics.jsonl").read_text() == before


def test_kill_at_any_moment_and_resume_is_bit_for_bit(reference, tmp_path):
    """SIGKILL twice, wherever it hits (the delays are random), then to the end."""
    random = np.random.default_rng()
    for attempt in range(2):
        # pytest has added what tests share to the path
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([sys.executable, __file__, tmp_path], env=environment, stderr=subprocess.DEVNULL)
        rows, until = 0, 100 * attempt + random.integers(10, 100)
        while process.poll() is None and rows < until:
            time.sleep(0.002)
            if (tmp_path / "metrics.jsonl").exists():
                rows = (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")
        time.sleep(random.uniform(0, 0.02))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
    assert_same_run(tmp_path, train(tmp_path), reference)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [7, STEPS])
def test_a_signal_ends_the_run_after_its_step(reference, tmp_path, monkeypatch, signum, step):
    write = MetricsWriter.write

    def write_and_signal(self, at, *rest):
        write(self, at, *rest)
        if at == step and "loss" in rest[-1]:
            signal.raise_signal(signum)

    caught = []
    monkeypatch.setattr(MetricsWriter, "write", write_and_signal)
    previous = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in (2, 15)}
    try:
        if step < STEPS:
            with pytest.raises(TrainingInterrupted, match=r"step .* is saved") as error:
                train(tmp_path)
            assert error.value.signum == signum
            assert caught == []
        else:
            train(tmp_path)  # done, so the signal is for the caller
            assert caught == [signum]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    monkeypatch.undo()
    assert_same_run(tmp_path, train(tmp_path), reference)


def test_divergence_is_reported_and_not_saved(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"toy diverged at step 1\d, .*nan.*the last of 10 skipped") as error:
        train(tmp_path, learning_rate=1e37, checkpoint_every=1)
    state = init_state(toy, make_optimizer(learning_rate=1.0, steps=STEPS))
    checkpoint = restore_newest(tmp_path / "toy/checkpoints", {"model": state.model, "optimizer": state.opt_state})
    assert checkpoint.step < int(str(error.value).split("step ")[1].split(",")[0])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(checkpoint.items))


def test_progress_is_lines_where_there_is_no_terminal(tmp_path, capsys):
    train(tmp_path, steps=5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("toy   0% step 0/5")
    assert lines[-1].startswith("toy 100% step 5/5")
    assert "tokens/s" in lines[-1]
    assert all(line and "\r" not in line for line in lines)


def test_models_share_the_metrics_file(reference, tmp_path):
    train(tmp_path, name="a", steps=5)
    train(tmp_path, name="b", steps=5)
    assert [row["model"] for row in read_metrics(tmp_path)] == ["a"] * 6 + ["b"] * 6
    with MetricsWriter(tmp_path, "a", resumed_from=3):
        pass
    assert [row["step"] for row in read_metrics(tmp_path) if row["model"] == "a"] == [1, 2, 3]
    assert len(read_metrics(tmp_path)) == 9


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"model": "a", "step": 1}\n{"model": "a", "st')
    assert read_metrics(tmp_path) == [{"model": "a", "step": 1}]
    with MetricsWriter(tmp_path, "a", resumed_from=1) as metrics:
        metrics.write(2, 10, {"loss": 1.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"model": "a", "step": 1},
        {"model": "a", "step": 2, "tokens": 10, "loss": 1.5},
    ]


def test_a_broken_line_elsewhere_is_named_and_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("oops\n")
    with pytest.raises(InputError, match=r"metrics.jsonl:1: expected .* got 'oops"):
        MetricsWriter(tmp_path, "a")
    assert path.read_text() == "oops\n"


def test_evaluate_is_bits_per_byte():
    data = evaluation_batches(PACKED, batch_size=3, seq_len=50)
    model = toy()
    logits, _ = model(jnp.asarray(PACKED.tokens[:-1], jnp.int32)[None])
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32))[0], np.float64)
    expected = -log_p[np.arange(len(PACKED.tokens) - 1), PACKED.tokens[1:]].sum() / math.log(2) / len(TEXT)
    assert evaluate(model, data, parse_mesh("data:1", jax.devices()[:1])) == pytest.approx(expected, rel=1e-5)


def test_train_step_is_adamw_on_clipped_gradients():
    optimizer = make_optimizer(learning_rate=1e-2, steps=10, warmup_steps=0)
    state = init_state(toy, optimizer)
    state.model.embed.embedding[...] *= 3  # a loss so large that its gradient is clipped
    batch = next(train_iterator(PACKED, **SIZES, seed=0))

    def loss(model):
        logits, _ = model(batch["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.model)
    new, outputs = jax.jit(functools.partial(train_step, optimizer))(state, batch)
    assert float(outputs["loss"]) == pytest.approx(float(value), rel=1e-6)
    assert float(outputs["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    # The first update of Adam is the sign of the gradient; decay acts on the matrix only.
    for get, decay in ((lambda m: m.embed.embedding[...], 0.1), (lambda m: m.final_norm.scale[...], 0.0)):
        before, grad = np.asarray(get(state.model)), np.asarray(get(grads))
        expected = before - 1e-2 * (np.sign(grad) + decay * before)
        large = np.abs(grad) > 1e-4  # where epsilon does not matter
        assert large.any()
        np.testing.assert_allclose(np.asarray(get(new.model))[large], expected[large], atol=1e-5)
    moment = optax.tree.get(new.opt_state, "mu")
    norm = float(outputs["grad_norm"])
    assert float(optax.tree.norm(moment)) == pytest.approx(0.1 * min(norm, 1.0), rel=1e-4)
    assert norm > 1


def test_schedule_warms_up_and_ends_at_a_tenth():
    schedule = learning_rate_schedule(1.0, 100, 10)
    assert float(schedule(0)) == pytest.approx(1 / 11)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(100)) == pytest.approx(0.1)
    assert all(float(schedule(step)) > float(schedule(step + 1)) for step in range(10, 99))
    assert float(learning_rate_schedule(1.0, 1, 0)(0)) == 1.0
    with pytest.raises(ValueError, match="schedule 'linear': expected one of cosine, constant, wsd"):
        learning_rate_schedule(1.0, 100, 10, "linear")


@pytest.mark.parametrize(("steps", "more", "warmup"), [(20, 100, 3), (1, 5, 0), (200, 201, None), (1000, 10_000, None)])
def test_rates_that_do_not_depend_on_the_number_of_steps(steps, more, warmup):
    def rates(steps, kind, count):
        return np.asarray(learning_rate_schedule(0.3, steps, warmup, kind)(np.arange(count)))

    assert np.array_equal(rates(steps, "constant", steps), rates(more, "constant", steps))
    stable = max(steps - steps // 5, 100 if warmup is None else warmup)
    assert np.array_equal(rates(steps, "wsd", stable), rates(more, "constant", stable))
    assert rates(steps, "constant", steps).max() == rates(steps, "constant", 10 * steps)[-1] or warmup is None
    if steps == 1000:
        assert rates(steps, "wsd", steps + 1)[-1] == pytest.approx(0.03)
        assert not np.array_equal(rates(steps, "cosine", steps), rates(more, "cosine", steps))


def test_a_run_that_is_given_more_steps_is_one_that_had_them_all(tmp_path):
    """Bit for bit: parameters, the optimizer's state and the figures."""

    def run(workdir, steps):
        rates = {"learning_rate": 1e-2, "steps": steps, "warmup_steps": 3, "schedule": "constant"}
        optimizer = make_optimizer(**rates, cms_periods=(1, 3))
        data = train_iterator(PACKED, **SIZES, seed=0), evaluation_batches(PACKED, **SIZES, max_tokens=256)
        mesh = parse_mesh("data:1", jax.devices()[:1])
        every = {"eval_every": 4, "checkpoint_every": 4}
        return fit("toy", toy, optimizer, *data, workdir=workdir, mesh=mesh, steps=steps, **every)

    run(tmp_path / "more", 4)
    more, whole = run(tmp_path / "more", 8), run(tmp_path / "whole", 8)
    assert_same_run(tmp_path / "more", more, (tmp_path / "whole", whole))


def test_matrices_decay_and_scales_do_not():
    mask = decay_mask(toy())
    assert mask.embed.embedding.get_value() is True
    assert mask.final_norm.scale.get_value() is False


if __name__ == "__main__":
    train(Path(sys.argv[1]))
