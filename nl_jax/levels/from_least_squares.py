"""A level that is a least-squares memory: second-order state, exact after every period."""

import jax.numpy as jnp

from nl_jax.levels.from_memory import Pair
from nl_jax.levels.level import Level
from nl_jax.memory import (
    LeastSquares,
    init_least_squares,
    learn_least_squares,
    least_squares_weights,
    read_least_squares,
)


def from_least_squares(
    name: str,
    size_in: int,
    size_out: int,
    *,
    ridge: float = 1.0,
    period: int = 1,
    batch: tuple[int, ...] = (),
    alpha: float = 1.0,
) -> Level:
    """An associative memory that solves the ridge regression of its keys and values (``nl_jax.memory.LeastSquares``).

    A step is a token, and its context is a ``Pair``, whose learning rate is not used: the keys' second moment takes its
    place. ``read(state, queries)`` maps [*batch, n, in] to [*batch, n, out], and ``read(state, None)`` gives the
    weights, [*batch, in, out].

    Args:
      name, period: of the level; the period is the number of pairs that are learned at once.
      size_in, size_out: of keys and values.
      ridge: λ, in units of a squared key.
      batch: leading axes; each of these memories learns its own pairs.
      alpha: retention of pairs that bring none.

    Examples:
      >>> from nl_jax import Schedule
      >>> schedule = Schedule([from_least_squares("m", 2, 1, ridge=1e-4, period=2)])
      >>> pairs = {"m": Pair(jnp.array([[1.0, 1.0], [1.0, 1.1]]), jnp.array([[1.0], [2.0]]))}
      >>> state = schedule.init(None, {"m": Pair(jnp.zeros(2), jnp.zeros(1))})
      >>> state = schedule.run(state, pairs)
      >>> print(schedule.read(state, "m", pairs["m"].key)[:, 0].round(1))
      [1. 2.]
    """

    def update(state: LeastSquares, pairs: Pair) -> LeastSquares:
        key, value = (jnp.moveaxis(u, 0, -2) for u in (pairs.key, pairs.value))
        retention = alpha if pairs.alpha is None else jnp.moveaxis(pairs.alpha, 0, -1)
        return learn_least_squares(state, key, value, retention)

    def read(state, queries):
        return least_squares_weights(state) if queries is None else read_least_squares(state, queries)

    return Level(
        name,
        period,
        lambda key, data: init_least_squares(size_in, size_out, ridge, batch=batch, dtype=jnp.result_type(float)),
        update,
        read,
        context="keys and values",
        objective="ridge regression",
    )
