"""Derivatives of second order and higher are finite where what is differentiated twice is zero."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
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
    np.testing.assert_allclose(smooth_norm(tree), size, rtol=1e-6)  # that of optax is 0 where squares underflow
    if size > 1e-15:  # below, optax's own slope is not finite in float32
        weigh = lambda clip: lambda t: sum(jnp.sum(x**2 + x) for x in jax.tree.leaves(clip.update(t, ())[0]))  # noqa: E731
        slopes = [jax.grad(weigh(clip))(tree) for clip in (clip_by_norm(1.0), optax.clip_by_global_norm(1.0))]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *slopes)
    with pytest.raises(ValueError, match=r"max_norm=0\.0: expected a positive number"):
        clip_by_norm(0.0)


@settings(max_examples=40)
@given(
    entries=st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=3, max_size=3),
    size=st.floats(-30, 30).map(lambda power: 10**power),
    max_norm=st.one_of(st.sampled_from([math.inf, 1e20, 1e-20]), st.floats(-30, 30).map(lambda power: 10**power)),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_any_updates_are_clipped_at_any_norm(entries, size, max_norm, dtype):
    """As computed with infinite range; optax agrees wherever its squares neither overflow nor underflow."""
    updates = jnp.asarray(np.array(entries) * size, dtype)
    found, pull = jax.vjp(lambda u: clip_by_norm(max_norm).update(u, ())[0], updates)
    (slopes,) = pull(jnp.ones_like(found))
    assert bool(jnp.all(jnp.isfinite(slopes)))
    exact = np.asarray(updates, np.float64)
    norm = float(np.linalg.norm(exact))
    if abs(norm - max_norm) < 1e-5 * norm:  # rounding decides
        return
    smallest = 2e-38 * max(1.0, min(norm, max_norm))  # what is smaller vanishes in the quotient, as in that of optax
    tolerance = {"rtol": 2e-2 if dtype == jnp.bfloat16 else 2e-6, "atol": smallest}
    expected = exact if norm < max_norm else exact / norm * max_norm
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, **tolerance)
    if norm < max_norm:
        np.testing.assert_array_equal(slopes, jnp.ones_like(found))
    if 1e-15 < norm < 1e15:
        by_optax = optax.clip_by_global_norm(max_norm).update(updates, ())[0]
        np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(by_optax, np.float64), **tolerance)


@pytest.mark.parametrize("max_norm", [math.inf, 1e20, 1.0, 1e-20])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e-15, 0.3])
def test_slopes_of_clipping_at_any_norm(max_norm, size):
    """Three derivatives of what is not clipped are those of the identity, and one of what is clipped is exact."""
    clip = lambda u: clip_by_norm(max_norm).update(u, ())[0]  # noqa: E731
    updates = size * jnp.array([0.6, 0.8])
    jacobian = jax.jacrev(clip)(updates)
    if size < max_norm:
        np.testing.assert_array_equal(jacobian, jnp.eye(2))
        for twice in (jax.jacfwd(jax.jacrev(clip)), jax.jacfwd(jax.jacfwd(jax.jacrev(clip)))):
            assert not jnp.any(twice(updates))  # NaN counts as true
    else:
        expected = max_norm / size * np.array([[0.64, -0.48], [-0.48, 0.36]])
        np.testing.assert_allclose(jacobian, expected, rtol=1e-5)


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
