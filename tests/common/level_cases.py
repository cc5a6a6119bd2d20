"""What the tests of levels share: small levels, forms of running a schedule, comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax import Level
from nl_jax.levels import Pair, by_context, from_loss, from_memory, from_optax, restarted_by
from nl_jax.memory import Architecture


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def scanned(schedule, state, data):
    """One step after the other: conditions."""

    def body(state, x):
        out = schedule.step(state, x)
        return out if schedule.has_aux else (out, None)

    return jax.lax.scan(body, state, data)


def still(name, period=1, **options):
    return Level(name, period, lambda key, data: 0.0, lambda state, context: state, **options)


def loss_level(name, *paths):
    tree = {"a": {"w": jnp.ones(2), "b": jnp.ones(2)}, "ab": jnp.ones(2)}
    return from_loss(name, lambda p, x: 0.0, tree, optax.sgd(0.1), paths=paths)


def levels_that_share():
    """Levels whose initial states share arrays with each other, with what made them, or within themselves."""
    params = {"w": jnp.ones(3), "v": jnp.ones(3)}
    pair = Pair(jnp.ones(3), jnp.ones(3))
    zeros = jnp.zeros(2)
    schedule_free = optax.contrib.schedule_free_sgd(0.1)  # its state holds the parameters

    def loss(tree, x):
        return jnp.sum(tree["w"] * tree["v"] * x)

    levels = [
        from_optax("slow", schedule_free, params, period=4),
        restarted_by(from_optax("fast", optax.adam(0.1), params, period=2), "slow"),
        from_loss("loss", loss, params, schedule_free, paths=("w",)),
        from_memory("memory", Architecture(3, 3), period=2),
        from_memory("given", Architecture(3, 3), period=2, initial=(jnp.eye(3),)),
        from_memory("deep", Architecture(3, 3, hidden=4, depth=2), period=2),
        by_context("kept", 3, 3, window=4),
        Level("twice", 1, lambda key, data: (zeros, zeros), lambda state, context: (2 * state[0], 2 * state[0])),
        Level("of data", 1, lambda key, data: data["of data"], lambda state, context: context[0]),
    ]
    memories = ("memory", "given", "deep", "kept")
    data = {level.name: pair if level.name in memories else jnp.ones(3) for level in levels}
    return levels, data | {"slow": params, "fast": params}


def assert_own_buffers(*trees):
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    assert len(set(pointers)) == len(pointers)
