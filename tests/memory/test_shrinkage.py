"""Shrinkage against the slope of the loss that it is made of, its bounds, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import Schedule
from nl_jax.levels import Pair, from_memory
from nl_jax.memory import Architecture, Rule, apply_layer, excess, memory_of, shrink
from nl_jax.modules import SelfModifyingTitans, mixer

SIZE = 4
MLP = Architecture(SIZE, SIZE, hidden=8, depth=2)


def learn(rule, keys, values, period=1):
    """[(W₀, ΔW)], before the pairs and after each period of them."""
    schedule = Schedule([from_memory("m", MLP, rule=rule, period=period, eta=0.5)])
    pairs = {"m": Pair(jnp.asarray(keys), jnp.asarray(values))}
    state = schedule.init(jax.random.key(0), jax.tree.map(lambda x: x[0], pairs))
    found, run = [(state.levels["m"].w0, state.levels["m"].delta_w)], jax.jit(schedule.run)
    for start in range(0, len(keys), period):
        state = run(state, jax.tree.map(lambda x, start=start: x[start : start + period], pairs))
        found.append((state.levels["m"].w0, state.levels["m"].delta_w))
    return found


def test_a_level_shrinks_by_the_slope_of_its_loss_along_the_change():
    """By automatic differentiation: the derivative of a pair's loss by the scale of the last layer's change."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        keys, values = rng.standard_normal((2, 6, SIZE))
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        shrinking = learn(Rule(shrinkage=True, delta=False), keys, values)
        factors = []
        for step, (key, value) in enumerate(zip(keys, values, strict=True)):
            w0, delta_w = shrinking[step]

            def answer(scale, key=key, w0=w0, delta_w=delta_w):
                layers = (w0[0] + delta_w[0], w0[1] + scale * delta_w[1])
                return MLP(apply_layer(layers), jnp.asarray(key)[None])[0, 0]

            slope = jax.grad(lambda c, value=value, answer=answer: jnp.sum((answer(c) - value) ** 2))(1.0)
            learned, error = answer(1.0) - answer(0.0), 2 * (answer(1.0) - value)
            part = 0.5 / 1.5 * slope / (learned @ learned + error @ error + 0.01)
            factors.append(float(jnp.exp(-4.0 * jnp.maximum(part, 0.0))))
            # the same memory without shrinkage, from the same weights
            plain = Schedule([from_memory("m", MLP, rule=Rule(delta=False), eta=0.5, initial=w0)])
            state = plain.init(None, {"m": Pair(jnp.asarray(key), jnp.asarray(value))})
            state = state._replace(levels={"m": state.levels["m"]._replace(delta_w=delta_w)})
            after = plain.run(state, {"m": Pair(jnp.asarray(key)[None], jnp.asarray(value)[None])}).levels["m"].delta_w
            for found, plainly in zip(shrinking[step + 1][1], after, strict=True):
                np.testing.assert_allclose(found, factors[-1] * plainly, rtol=1e-9, atol=1e-12)
        assert factors[0] == 1.0  # nothing was learned before
        assert min(factors) < 0.99


def test_what_answers_right_is_kept_and_noise_is_not():
    rng = np.random.default_rng(1)
    keys = np.tile(np.eye(SIZE), (30, 1))
    fixed, noise = np.tile(np.eye(SIZE)[::-1], (30, 1)), rng.standard_normal((120, SIZE))

    def lengths(values):
        """Of the last layer's change, without and with shrinkage, a mean over the text."""
        found = (learn(Rule(shrinkage=on, delta=False), keys, values, period=4) for on in (False, True))
        return [np.mean([float(jnp.linalg.norm(delta_w[1])) for _, delta_w in states]) for states in found]

    plain, shrunk = lengths(fixed)
    assert shrunk == pytest.approx(plain, rel=1e-3)
    plain, shrunk = lengths(noise)
    assert shrunk < 0.9 * plain


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    answers=st.sampled_from([0.0, 1e-30, 1.0, 1e15, 3e38]),
    errors=st.sampled_from([0.0, 1e-30, 1.0, 1e15, 3e38]),
    eta=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    likeness=st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_it_never_lets_a_change_grow_and_has_bounded_slopes(answers, errors, eta, likeness):
    direction = jnp.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0], jnp.float32)
    learned, error = answers * direction[:1], errors * (likeness * direction[:1] + (1 - abs(likeness)) * direction[1:])

    def total(learned, error):
        return jnp.sum(excess(learned, error, jnp.full(1, eta)))

    assert abs(total(learned, error)) <= 0.5 + 1e-6
    slopes = jax.grad(total, argnums=(0, 1))(learned, error)
    assert all(float(jnp.max(jnp.abs(slope))) <= 20 for slope in slopes)
    assert 0.0 <= float(shrink((jnp.ones((1, 1)),), total(learned, error))[0][0, 0]) <= 1.0


def test_a_memory_without_answers_at_the_boundary_is_refused():
    with pytest.raises(ValueError, match="shrinkage=True: expected a memory that depends on the boundary"):
        memory_of(Architecture(SIZE, SIZE), 4, shrinkage=True)
    with pytest.raises(ValueError, match="newton_schulz_steps=1: expected 0 with shrinkage"):
        mixer("atlas", width=8, num_heads=2, newton_schulz_steps=1, shrinkage=True, rngs=nnx.Rngs(0))
    assert memory_of(Architecture(SIZE, SIZE), 4, objective="huber", shrinkage=True).rule.shrinkage


def test_a_text_without_order_does_not_fill_the_memory():
    """What self-modifying Titans that forget nothing otherwise have of 4,000 random tokens."""
    table = jax.random.normal(jax.random.key(0), (32, 16))
    x = table[jax.random.randint(jax.random.key(1), (1, 4000), 0, 32)]

    def length(**options):
        module = SelfModifyingTitans(16, 2, chunk_size=8, alpha=1.0, rngs=nnx.Rngs(0), **options)
        return float(jnp.linalg.norm(jax.jit(lambda module, x: module(x)[1].delta_w[-1][-1])(module, x)))

    assert length() < 0.6 * length(shrinkage=False)


@pytest.mark.parametrize(
    ("options", "shrinks"),
    [
        ({}, True),
        ({"allow_neg_eigval": True}, False),
        ({"allow_neg_eigval": True, "shrinkage": True}, True),
        ({"shrinkage": False}, False),
        ({"alpha": ("hard_tanh", 0.0), "objective": "dot_product"}, False),
    ],
)
def test_self_modifying_titans_shrink_unless_they_keep_a_state(options, shrinks):
    module = nnx.eval_shape(lambda: SelfModifyingTitans(8, 2, rngs=nnx.Rngs(0), **options))
    assert [memory.rule.shrinkage for memory in module.groups] == [shrinks] * 2
