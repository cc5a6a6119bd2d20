"""Pre-training as a schedule: the same steps as one optax transformation over the whole model takes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.losses import mean_loss
from nl_jax.optim import multi_frequency
from nl_jax.training import (
    OPTIMIZERS,
    LevelOptimizers,
    describe_training,
    init_state,
    make_optimizer,
    train_step,
    training_schedule,
)
from nl_jax.trees import named_leaves

SIZES = {"vocab_size": 11, "width": 8, "num_layers": 2, "num_heads": 1, "mlp_hidden": 6, "chunk_size": 4}
PERIODS = (1, 3)


def make(periods=PERIODS, **fields):
    config = LanguageModelConfig("delta_net", **SIZES, cms_periods=periods, **fields)
    return LanguageModel(config, rngs=nnx.Rngs(0))


def batches(count):
    tokens = jax.random.randint(jax.random.key(1), (count, 2, 9), 0, 11)
    return [{"inputs": t[:, :-1], "targets": t[:, 1:]} for t in tokens]


@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_step_is_what_one_transformation_does(name):
    """Clipping over all levels together, each at its own period with its own learning rates."""
    levels = make_optimizer(optimizer=name, learning_rate=0.02, matrix_learning_rate=0.1, steps=20, cms_periods=PERIODS)
    groups = {str(period): (levels.of_period(period), period) for period in PERIODS}

    def labels(params):
        slow = "cms.levels.1."
        return jax.tree_util.tree_map_with_path(
            lambda path, _: str(PERIODS[slow in jax.tree_util.keystr(path, simple=True, separator=".")]), params
        )

    whole = optax.chain(optax.clip_by_global_norm(levels.max_norm), multi_frequency(groups, labels))
    state = init_state(make, levels)
    model, rest = state.model, whole.init(state.model)
    step = jax.jit(lambda state, batch: train_step(levels, state, batch))
    plain = jax.jit(lambda model, rest, batch: whole.update(jax.grad(mean_loss)(model, batch), rest, model))
    loss_of = jax.jit(mean_loss)
    for i, batch in enumerate(batches(7)):
        before = state.model
        state, outputs = step(state, batch)
        updates, rest = plain(model, rest, batch)
        model = optax.apply_updates(model, updates)
        assert float(outputs["loss"]) == pytest.approx(float(loss_of(before, batch)), rel=1e-5)
        for path, leaf in named_leaves(state.model).items():
            np.testing.assert_allclose(
                leaf, named_leaves(model)[path], rtol=2e-4, atol=2e-5, err_msg=f"{path}, step {i}"
            )
        moved = np.any(named_leaves(before)[(p := "blocks.cms.levels.1.up.kernel")] != named_leaves(state.model)[p])
        assert moved == ((i + 1) % 3 == 0)


def test_any_transformation_moves_all_parameters_as_one_level():
    state = init_state(make, optax.sgd(0.1))
    batch = batches(1)[0]
    new, _ = jax.jit(lambda state: train_step(optax.sgd(0.1), state, batch))(state)
    gradient = jax.jit(jax.grad(mean_loss))(state.model, batch)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.model, gradient)
    for path, leaf in named_leaves(new.model).items():
        np.testing.assert_allclose(leaf, named_leaves(expected)[path], rtol=1e-5, atol=1e-6)
    assert [level.name for level in training_schedule(state.model, optax.sgd(0.1)).levels] == ["parameters"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(name):
    levels = make_optimizer(optimizer=name, steps=30, warmup_steps=0, cms_periods=PERIODS)
    step = jax.jit(lambda state, batch: train_step(levels, state, batch))
    state, batch, losses = init_state(make, levels), batches(1)[0], []
    for _ in range(30):
        state, outputs = step(state, batch)
        losses.append(float(outputs["loss"]))
    assert losses[-1] < losses[0] - 0.5
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.model))


def test_the_levels_are_described():
    model = make()
    text = describe_training(model, make_optimizer(steps=9, cms_periods=PERIODS))
    assert "cms_1: period 3" in text
    assert "cms_1       ··█··█" in text
    counts = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) parameters", text)]
    assert sum(counts) == sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("of", [lambda make: make(), jax.eval_shape])
def test_a_model_that_learns_in_context_shows_the_schedule_that_its_loss_runs(of):
    model = of(lambda: make((4, 8), cms_regime="meta"))
    text = describe_training(model, make_optimizer(steps=9, cms_periods=(1, 1)))
    assert "» " in text
    assert "mixers: period 1" in text


def test_a_level_without_a_period_is_named():
    with pytest.raises(ValueError, match=r"level 'cms_1' has no period; expected one for each CMS level, got \(1,\)"):
        training_schedule(make(), make_optimizer(steps=1, cms_periods=(1,)))
    assert [level.name for level in training_schedule(make(), make_optimizer(steps=1)).levels] == ["parameters"]


def test_unknown_optimizers_are_named():
    with pytest.raises(ValueError, match="optimizer 'adam': expected one of adamw, muon"):
        make_optimizer(optimizer="adam", steps=1)
    assert isinstance(make_optimizer(steps=1), LevelOptimizers)
