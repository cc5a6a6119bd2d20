"""Every mixer by name: splits of a text, causality, published recurrences, and what the parts of a memory do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.modules import MIXERS, mixer

WIDTH, HEADS, D = 8, 2, 4
apply = jax.jit(lambda module, x, state=None: module(x, state))


def make(name, **options):
    return mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **{"chunk_size": 4, **options})


def tokens(time, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, time, WIDTH))


def in_parts(module, x, split):
    state, parts = module.init_state(len(x)), []
    for part in jnp.split(x, np.cumsum(split)[:-1], axis=1):
        y, state = apply(module, part, state)
        parts.append(y)
    return jnp.concatenate(parts, axis=1), state


CASES = [(name, {}) for name in MIXERS] + [
    ("self_modifying_titans", {"rule": "printed", "retention": "zero"}),
    ("titans", {"chunk_size": 1, "steps": 2}),
    ("titans", {"depth": 3}),
    ("titans", {"gated": True, "objective": "huber"}),
    ("titans", {"objective": "lp"}),
    ("self_modifying_titans", {"adaptive": ("query", "value"), "momentum": False, "objective": "dot_product"}),
    ("gated_delta_net", {"negative_eigenvalues": True}),
    ("sliding_window_attention", {"window": 3}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_by_one_and_any_split_equal_one_call(name, options):
    module, x = make(name, **options), tokens(11)
    whole = apply(module, x)
    for split in ((1,) * 11, (6, 5), (1, 5, 2, 3)):
        for a, b in zip(jax.tree.leaves(in_parts(module, x, split)), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_causality(name, options):
    module, x = make(name, **options), tokens(11, batch=1)
    y, _ = apply(module, x)
    for t in (0, 3, 4, 10):
        changed, _ = apply(module, x.at[:, t].add(1.0))
        np.testing.assert_array_equal(changed[:, :t], y[:, :t])
        assert float(jnp.max(jnp.abs(changed[:, t] - y[:, t]))) > 1e-4
