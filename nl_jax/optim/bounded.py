"""What every optimizer here does with gradients before its rule sees them: float32, bounded in size, finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any

_LARGEST = 1e15  # the square of a matrix of such gradients still fits float32
_ALWAYS = np.iinfo(np.int32).max


def bounded(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Runs ``inner`` in float32 or wider, on gradients of bounded size, and only where all of them are finite.

    - State and arithmetic are float32 whatever the parameters' type (float64 stays); updates have the gradients' type.
    - A gradient with entries beyond 1e15 is scaled down as a whole, so that its largest is 1e15: squares stay finite.
    - A step with a NaN or infinite entry in any gradient changes no state and no parameter. ``optax.apply_if_finite``
      does and counts this: ``optax.tree.get(state, "total_notfinite")`` is the number of steps left out so far,
      ``"notfinite_count"`` of those in a row. A caller who wants to stop reads one of them.

    Args:
      inner: the rule.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``; its state is ``optax.ApplyIfFiniteState``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.optim import bounded
      >>> tx = bounded(optax.sgd(0.1, momentum=0.9))
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
      >>> print(updates, optax.tree.get(state, "total_notfinite"))
      [0. 0.] 1
    """
    finite_only = optax.apply_if_finite(inner, _ALWAYS)

    def init(params):
        return finite_only.init(_widen(params))

    def update(updates, state, params=None, **extra):
        wide = jax.tree.map(_limit, _widen(updates))
        params = None if params is None else _widen(params)
        steps, state = finite_only.update(wide, state, params, **extra)
        return jax.tree.map(lambda s, u: s.astype(u.dtype), steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _widen(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def _limit(g):
    return g * jnp.minimum(1.0, _LARGEST / jnp.maximum(jnp.max(jnp.abs(g), initial=0.0), 1.0))


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raises a ``ValueError`` for a Python number outside [low, high]; arrays, traced or not, and schedules pass."""
    if isinstance(value, int | float) and not low <= value <= high:
        raise ValueError(f"{name}={value} must be in [{low}, {high}]")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a ``ValueError`` for a value that is not among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
