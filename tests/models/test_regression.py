"""A language model's blocks on vectors: the loss is the squared error, and training takes it as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax import InputError
from nl_jax.models import named_config
from nl_jax.models.losses import mean_loss, token_losses
from nl_jax.models.regression import InContextRegressor
from nl_jax.tasks import draw_examples
from nl_jax.tasks.function_classes import as_tokens, channels
from nl_jax.training import init_state, make_optimizer
from nl_jax.training.step import train_step

SIZES = {"width": 8, "num_heads": 1, "num_layers": 1, "mlp_hidden": 8, "chunk_size": 4}
CONFIG = named_config("linear_attention", "tiny", vocab_size=channels(3), **SIZES)
BATCH = as_tokens(draw_examples("linear", 0, 0, batch_size=4, examples=5, dimensions=3, noise=0.1))


def make():
    return InContextRegressor(CONFIG, rngs=nnx.Rngs(0))


def test_the_loss_is_the_squared_error_at_each_x():
    model = make()
    predictions, _ = jax.jit(lambda model, tokens: model(tokens))(model, BATCH["inputs"])
    assert predictions.shape == (4, 9, 1)
    errors = (np.asarray(predictions)[..., 0] - BATCH["targets"]) ** 2
    np.testing.assert_allclose(token_losses(model, BATCH), errors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean_loss(model, BATCH), errors[:, ::2].mean(), rtol=1e-5)


def test_no_prediction_depends_on_later_examples_or_on_its_own_value():
    model, changed = make(), BATCH["inputs"].copy()
    changed[:, 5:] += 1.0  # from y_3 on
    one, two = (model(tokens)[0] for tokens in (BATCH["inputs"], changed))
    np.testing.assert_allclose(one[:, :5], two[:, :5], atol=1e-6)
    assert not np.allclose(one[:, 6], two[:, 6], atol=1e-4)


def test_a_training_step_moves_every_parameter_and_lowers_the_loss():
    optimizer = make_optimizer(steps=100, learning_rate=1e-2, warmup_steps=0, cms_periods=CONFIG.optimizer_periods)
    first = state = init_state(make, optimizer)
    step = jax.jit(lambda state: train_step(optimizer, state, BATCH))
    losses = []
    for _ in range(6):
        state, outputs = step(state)
        losses.append(float(outputs["loss"]))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first.model, state.model)
    assert all(jax.tree.leaves(moved))


def test_blocks_that_learn_in_context_are_refused():
    config = named_config("hope_attention", "tiny", **SIZES, cms_regime="online", cms_periods=(4, 8))
    with pytest.raises(InputError, match="cms_regime='online': expected 'outer'"):
        InContextRegressor(config, rngs=nnx.Rngs(0))
