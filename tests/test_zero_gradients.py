"""Derivatives of second order and higher are finite where what is differentiated twice is zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from in_context_cases import VARIANTS, make, text

from nl_jax.levels import Schedule, from_optax
from nl_jax.memory import OBJECTIVES
from nl_jax.memory.objectives import huber, lp
from nl_jax.models.in_context import read_and_learn
from nl_jax.modules.continuum_memory import FeedForward
from nl_jax.modules.layers import CausalConv, unit_length
from nl_jax.optim import clip_by_norm, smooth_norm

ZERO = jnp.zeros((1, 3, 4))
LAYERS = {
    "unit_length": unit_length,
    "feed_forward": FeedForward(4, 4, rngs=nnx.Rngs(0)),
    "rms_norm": nnx.RMSNorm(4, rngs=nnx.Rngs(0)),
    "causal_conv": lambda x: (conv := CausalConv(4, rngs=nnx.Rngs(0)))(x, conv.init_state(1))[0],
    "smooth_norm": smooth_norm,
    "clip_by_norm": lambda x: clip_by_norm(1.0).update(x, optax.EmptyState())[0],
    **{f"objective_{name}": lambda x, o=o: o.gradient(x, jnp.zeros_like(x)) for name, o in OBJECTIVES.items()},
    "objective_lp_near_1": lambda x: lp(1.01).gradient(x, jnp.zeros_like(x)),
    "objective_huber_small": lambda x: huber(1e-3).gradient(x, jnp.zeros_like(x)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_three_derivatives_at_zero(name):
    """Of a function that meta-gradients pass: each derivative along a direction, the next one of it."""
    function, way = LAYERS[name], jax.random.normal(jax.random.key(0), ZERO.shape)
    for _ in range(3):
        function = jax.grad(lambda x, f=function: jnp.sum(f(x) * jnp.arange(1.0, 5.0)))
    slopes, twice = jax.jit(lambda x: jax.jvp(function, (x,), (way,)))(ZERO)
    assert bool(jnp.all(jnp.isfinite(slopes) & jnp.isfinite(twice)))


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.3, 0.999, 1.001, 40.0, 1e15])
def test_clipping_is_optax_clipping(size):
    tree = {"a": jnp.array([[0.6, -0.48]]) * size, "b": jnp.array(0.64) * size}
    found, _ = clip_by_norm(1.0).update(tree, optax.EmptyState())
    expected, _ = optax.clip_by_global_norm(1.0).update(tree, optax.EmptyState())
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_allclose(smooth_norm(tree), optax.tree.norm(tree))
    if size > 1e-15:  # below, optax's own slope is not finite in float32
        weigh = lambda clip: lambda t: sum(jnp.sum(x**2 + x) for x in jax.tree.leaves(clip.update(t, ())[0]))  # noqa: E731
        slopes = [jax.grad(weigh(clip))(tree) for clip in (clip_by_norm(1.0), optax.clip_by_global_norm(1.0))]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *slopes)
    with pytest.raises(ValueError, match=r"max_norm=0\.0: expected a positive number"):
        clip_by_norm(0.0)


def test_a_nan_is_not_hidden_by_clipping():
    found, _ = clip_by_norm(1.0).update(jnp.array([jnp.nan, 1.0]), optax.EmptyState())
    assert bool(jnp.isnan(found[0]))


def test_a_level_whose_gradients_are_zero():
    level = from_optax("w", optax.chain(clip_by_norm(1.0), optax.sgd(0.1)), jnp.ones(3), period=2)
    schedule = Schedule([level], lambda read, x: {"w": jax.grad(lambda w: jnp.sum((w * x) ** 2))(read("w"))})

    def loss(x):
        state = schedule.run(schedule.init(None, x[0]), x)
        return jnp.sum(schedule.read(state, "w") ** 3)

    slopes = jax.grad(loss)(jnp.zeros((4, 3)))
    assert bool(jnp.all(jnp.isfinite(slopes)))


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v == "sequential" else pytest.mark.slow) for v in VARIANTS]
)
def test_meta_gradients_of_chunks_without_targets(variant):
    model = make(variant, mixer="attention", periods=(2, 4), num_layers=1, context_length=4)
    tokens, targets = text(8)

    def nats(model, mask):
        logits, _ = read_and_learn(model, tokens, targets, mask)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * mask)

    descend = jax.jit(jax.value_and_grad(nats))
    ones = jnp.ones((2, 8))
    masks = [ones.at[0, :2].set(0), ones.at[0, 2:6].set(0), ones.at[1].set(0), ones.at[:, :4].set(0), 0 * ones]
    for mask in masks:
        for leaf in jax.tree.leaves(descend(model, mask)):
            assert bool(jnp.all(jnp.isfinite(leaf)))
