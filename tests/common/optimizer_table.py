"""Every optimizer of nl_jax.optim, and how a test runs one: the rows of tests/optim/test_optimizers.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import random_tree

from nl_jax import optim


def elastic(w, g, current):
    return jnp.sum(w * g) + 0.05 * jnp.sum(jnp.square(w))


def averaging(w, recent):
    return 0.25 * sum(jnp.sum(jnp.square(w - r)) for r in recent)


# name -> factory (from a learning rate), and the arguments that are no hyperparameters to inject
OPTIMIZERS = {
    "m3": (optim.m3, {"periods": (2,), "weight_decay": 0.0}),
    "delta_momentum": (optim.delta_momentum, {}),
    "deep_momentum": (optim.deep_momentum, {"hidden": (4,), "seed": 1}),
    "preconditioned_momentum": (optim.preconditioned_momentum, {}),
    "orthogonal_momentum": (
        optim.preconditioned_momentum,
        {"preconditioner": optim.orthogonality_preconditioner()},
    ),
    "feature_momentum": (optim.feature_momentum, {}),
    "generalized_momentum": (optim.generalized_momentum, {"memories": optim.adam_memories()[0]}),
    "dgd": (optim.dgd, {}),
    "generalized_gradient_descent": (
        optim.generalized_gradient_descent,
        {"objective": elastic, "retention": averaging, "history": 2},
    ),
}
SHAPES = {"bias": (3,), "kernel": (2, 4, 3)}


def make(name, rate=0.1):
    factory, options = OPTIMIZERS[name]
    return factory(rate, **options)


def tree(seed, dtype=np.float32):
    return jax.tree.map(jnp.asarray, random_tree(seed, SHAPES, dtype))


@functools.cache
def compiled(name):
    return jax.jit(make(name).update)


def run(tx, params, gradients, step=None):
    step, state = step or jax.jit(tx.update), tx.init(params)
    for g in gradients:
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state
