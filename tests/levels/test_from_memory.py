"""Levels that are memories, against their recurrence and gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from level_cases import assert_close, normal

from nl_jax import Schedule
from nl_jax.levels import Pair, from_memory
from nl_jax.memory import Architecture, Rule


def test_matrix_memory_is_the_recurrence():
    with jax.enable_x64(True):
        n, period, start = 12, 4, normal(3, 2, seed=3)
        keys, values = normal(n, 5, 3), normal(n, 5, 2, seed=1)
        alpha = 1 / (1 + np.exp(-normal(n, 5, seed=2)))
        level = from_memory("m", Architecture(3, 2), period=period, batch=(5,), initial=(start,), eta=0.7)
        schedule = Schedule([level])
        data = {"m": Pair(keys, values, alpha=alpha)}
        state = schedule.run(schedule.init(None, jax.tree.map(lambda x: x[0], data)), data)
        change = np.zeros((5, 3, 2))
        for k, v, a in zip(keys, values, alpha, strict=True):
            step = 0.7 / (1 + 3 * 0.7 * (k**2).sum(-1))  # L2 and Delta Gradient Descent: 2 + 1
            answer = np.einsum("bi,bio->bo", k, change)
            write = -3 * step[:, None] * answer - step[:, None] * 2 * (k @ start - v)
            change = a[:, None, None] * change + k[:, :, None] * write[:, None, :]
        np.testing.assert_allclose(state.levels["m"].delta_w[0], change, rtol=1e-10, atol=1e-12)
        queries = normal(5, 6, 3, seed=4)
        np.testing.assert_allclose(schedule.read(state, "m", queries), queries @ (start + change), rtol=1e-10)


def test_mlp_memory_descends_by_chunks():
    """The paper's rule without a delta term is gradient descent, gradients at the chunk's start."""
    with jax.enable_x64(True):
        n, period = 12, 4
        architecture = Architecture(3, 2, hidden=4, depth=2)
        level = from_memory("m", architecture, rule=Rule("paper", delta=False), period=period, batch=(2, 3), eta=0.1)
        schedule = Schedule([level])
        data = {"m": Pair(normal(n, 2, 3, 3), normal(n, 2, 3, 2, seed=1))}
        state = schedule.init(jax.random.key(0), jax.tree.map(lambda x: x[0], data))
        initial = tuple(w.astype(float) for w in state.levels["m"].w0)
        state = schedule.run(state, data)

        def loss(weights, keys, values):
            return jnp.sum((jax.nn.silu(keys @ weights[0]) @ weights[1][0] - values) ** 2)

        slope = jax.jit(jax.grad(loss))
        for i in range(2):
            for j in range(3):
                weights = initial
                for t in range(0, n, period):
                    pairs = [u[t : t + period, i, j] for u in data["m"][:2]]
                    weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, slope(weights, *pairs))
                found = jax.tree.map(lambda w, i=i, j=j: w[i, j], schedule.read(state, "m"))
                assert_close(found, weights, rtol=1e-9, atol=1e-12)


def test_a_bad_option_names_the_level():
    with pytest.raises(ValueError, match="level 'm': stack=2: expected 1"):
        from_memory("m", Architecture(2, 2, 3, 2, stack=2))
    with pytest.raises(ValueError, match="level 'm': objective='l3': expected"):
        from_memory("m", Architecture(2, 2), objective="l3")


def test_initial_weights_of_another_shape_are_refused():
    level = from_memory("m", Architecture(4, 2), initial=(jnp.zeros((2, 4)),))
    with pytest.raises(ValueError, match=r"level 'm': initial weights of shapes \(\(2, 4\),\); expected \(\(4, 2\),\)"):
        level.init(None, None)
