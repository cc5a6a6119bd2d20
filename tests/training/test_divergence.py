"""Steps that are not finite: skipped as if their batch had not been there, counted, reported, and never saved."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack, train_iterator
from nl_jax.parallel import parse_mesh
from nl_jax.training import (
    MetricsWriter,
    SkippedSteps,
    TrainingDiverged,
    TrainingInterrupted,
    fit,
    init_state,
    loop,
    make_optimizer,
    read_metrics,
    restore_newest,
    train_step,
    training_schedule,
)
from nl_jax.training.divergence import SKIPPED_IN_A_ROW, check_parameters
from nl_jax.training.metrics import is_measured
from nl_jax.trees import select_leaves

POISON = ord("~")  # a token whose batches are not finite
SIZES = {"batch_size": 2, "seq_len": 16}
PERIODS = (1, 3)
TEXT = b"abcdefgh " * 60 + b"~" + b"hgfedcba " * 60


class Levels(nnx.Module):
    """A bigram model with a fast and a slow level, which a token can poison."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(257, 8, rngs=rngs)
        self.cms = nnx.Dict(levels=nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in PERIODS]))

    def __call__(self, tokens, state=None):
        x = self.embed(tokens)
        for layer in self.cms["levels"]:
            x = x + layer(x)
        x = jnp.where((tokens == POISON)[..., None], jnp.nan, x)
        return self.embed.attend(x), state


def model():
    return Levels(nnx.Rngs(0))


def optimizer(steps=24):
    return make_optimizer(learning_rate=1e-2, steps=steps, warmup_steps=0, cms_periods=PERIODS, optimizer="m3")


def batch(*values):
    tokens = np.asarray(values, np.int32)
    return {"inputs": tokens[None, :-1], "targets": tokens[None, 1:]}


@pytest.fixture(scope="module")
def step():
    return jax.jit(functools.partial(train_step, optimizer()))


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_batch_that_is_not_finite_is_left_out(bad, step):
    """Also where the slow level would have been updated: it sums as many gradients as without that batch."""
    batches = [batch(*range(10 * i, 10 * i + 6)) for i in range(7)]
    without = with_bad = init_state(model, optimizer())
    for i, good in enumerate(batches):
        if i == bad:
            before = with_bad
            with_bad, outputs = step(with_bad, batch(1, 2, POISON, 3))
            assert bool(outputs["skipped"])
            assert math.isnan(outputs["loss"])
            jax.tree.map(np.testing.assert_array_equal, with_bad, before)
        without, expected = step(without, good)
        with_bad, outputs = step(with_bad, good)
        assert not bool(outputs["skipped"])
        assert outputs == expected
    jax.tree.map(np.testing.assert_array_equal, with_bad, without)
    assert int(with_bad.opt_state.step) == len(batches)


def test_skipping_keeps_no_second_state():
    """Temporaries of the compiled step grow by less than the state."""
    schedule = training_schedule(model(), optimizer())
    own = {level.name: select_leaves(model(), level.paths) for level in schedule.levels}
    always = jax.eval_shape(lambda: schedule.init(None, None, start=own, contexts=own))
    state = jax.eval_shape(lambda: init_state(model, optimizer()))
    shapes = {key: jax.ShapeDtypeStruct((4, 64), jnp.int32) for key in ("inputs", "targets")}

    def temporaries(function, state):
        return jax.jit(function, donate_argnums=0).lower(state, shapes).compile().memory_analysis().temp_size_in_bytes

    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    skipping = temporaries(functools.partial(train_step, optimizer()), state)
    assert skipping < temporaries(schedule.step, always) + size


def test_skipped_steps_are_counted_and_many_in_a_row_end_training(caplog):
    good = {"loss": 1.0, "grad_norm": 2.0, "diverged_layer": -1, "skipped": False}
    bad = {"loss": math.nan, "grad_norm": math.nan, "diverged_layer": 1, "skipped": True}
    skips = SkippedSteps("toy", total=4, in_a_row=1)
    assert skips.values(7, bad) == {"skipped": 5}
    assert skips.values(8, good) == {"loss": 1.0, "grad_norm": 2.0}
    assert (skips.total, skips.in_a_row) == (5, 0)
    (line,) = caplog.messages
    assert line.startswith("toy: step 7 is skipped, the memories of layer 1 first (loss nan, grad_norm nan); 5 skipped")
    for at in range(1, SKIPPED_IN_A_ROW):
        skips.values(at, bad)
    with pytest.raises(TrainingDiverged, match=r"diverged at step 99, the memories of layer 1 .*10 skipped steps"):
        skips.values(99, bad)


def train(workdir, steps=24, poison=TEXT):
    packed = pack([Document("text", poison)], ByteTokenizer())
    return fit(
        "toy",
        model,
        optimizer(steps),
        train_iterator(packed, **SIZES, seed=0),
        evaluation_batches(pack([Document("text", b"abcdefgh " * 9)], ByteTokenizer()), **SIZES),
        workdir=workdir,
        mesh=parse_mesh("data:1", jax.devices()[:1]),
        steps=steps,
        eval_every=12,
        checkpoint_every=5,
    )


def rows_of(workdir):
    return [{key: value for key, value in row.items() if not is_measured(key)} for row in read_metrics(workdir)]


def test_a_run_goes_on_after_a_bad_batch_and_counts_it(tmp_path, caplog, monkeypatch):
    """One batch of each pass over the text is bad; a run that was stopped in between has the same count."""
    caplog.set_level(logging.WARNING)
    state, progress = train(tmp_path / "whole")
    rows = rows_of(tmp_path / "whole")
    skipped = [row["step"] for row in rows if "skipped" in row]
    assert 0 < len(skipped) < 6
    assert [row["skipped"] for row in rows if "skipped" in row] == list(range(1, len(skipped) + 1))
    assert sorted(row["step"] for row in rows if "loss" in row or "skipped" in row) == list(range(1, 25))
    assert (progress.step, progress.skipped, progress.skipped_in_a_row) == (24, len(skipped), 0)
    assert int(state.opt_state.step) == 24 - len(skipped)
    assert sum("is skipped, its gradient" in message for message in caplog.messages) == len(skipped)

    write = MetricsWriter.write

    def interrupting(self, at, *rest):
        write(self, at, *rest)
        if at == skipped[0]:
            loop.signal.raise_signal(15)

    monkeypatch.setattr(MetricsWriter, "write", interrupting)
    with pytest.raises(TrainingInterrupted):
        train(tmp_path / "stopped")
    monkeypatch.undo()
    resumed, again = train(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert (again.skipped, again.skipped_in_a_row) == (progress.skipped, progress.skipped_in_a_row)
    assert rows_of(tmp_path / "stopped") == rows


def test_only_bad_batches_end_training_and_save_nothing_bad(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"toy diverged at step 10, .*the last of 10 skipped steps in a row"):
        train(tmp_path, poison=b"~" * 600)
    state = jax.jit(lambda: init_state(model, optimizer()))()
    saved = restore_newest(tmp_path / "toy/checkpoints", {"model": state.model, "optimizer": state.opt_state})
    assert (saved.step, saved.metadata["skipped"], saved.metadata["skipped_in_a_row"]) == (5, 5, 5)
    jax.tree.map(np.testing.assert_array_equal, saved.items, {"model": state.model, "optimizer": state.opt_state})


def test_a_parameter_that_overflowed_is_named():
    broken = model()
    check_parameters("toy", 3, broken)
    broken.embed.embedding[...] *= jnp.inf
    with pytest.raises(TrainingDiverged, match=r"toy diverged at step 3, parameter embed.embedding \(not finite\)"):
        check_parameters("toy", 3, broken)
