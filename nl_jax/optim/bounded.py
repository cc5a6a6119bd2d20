"""What every optimizer here does with gradients before its rule sees them: float32, bounded in size, finite."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

PyTree = Any

_LARGEST = 1e15  # the square of a matrix of such gradients still fits float32


class BoundedState(NamedTuple):
    """State of ``bounded``."""

    total_notfinite: Int[Array, ""]  # steps left out so far
    notfinite_count: Int[Array, ""]  # of these, those in a row just now
    inner_state: optax.OptState


def bounded(
    inner: optax.GradientTransformation, keeps_itself: type | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Runs ``inner`` in float32 or wider, on gradients of bounded size, and keeps only what it makes that is finite.

    - State and arithmetic are float32 whatever the parameters' type (float64 stays); updates have the gradients' type.
    - A gradient with entries beyond 1e15 is scaled down as a whole, so that its largest is 1e15: squares stay finite.
    - A step with a NaN or infinite entry in any gradient, or of which ``inner`` makes one in its updates, or in its
      state where that was finite, changes no state and no parameter, and is counted:
      ``optax.tree.get(state, "total_notfinite")`` is the number of steps left out so far, ``"notfinite_count"`` that of
      those in a row. A caller who wants to stop reads one of them.
    - All arrays of the initial state are its own, so that it can be donated.

    Unlike ``optax.apply_if_finite`` it selects instead of branching, which no device has to wait for.

    Args:
      inner: the rule. Its update gets ``finite``, whether all gradients are finite, as an extra argument.
      keeps_itself: type of a state that ``inner`` itself leaves unchanged where ``finite`` is false, and that finite
        gradients cannot make infinite. It is neither checked nor selected here, which needs the old and the new one at
        once; so it goes on where the gradients are finite and the updates are not (an infinite learning rate, say).

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.optim import bounded
      >>> tx = bounded(optax.sgd(0.1, momentum=0.9))
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
      >>> print(updates, optax.tree.get(state, "total_notfinite"))
      [0. 0.] 1
    """
    rule = optax.with_extra_args_support(inner)
    own = lambda node: keeps_itself is not None and isinstance(node, keeps_itself)  # noqa: E731

    def init(params):
        state = jax.tree.map(_copy, rule.init(widen(params)))
        return BoundedState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), state)

    def update(updates, state, params=None, **extra):
        wide = widen(updates)
        # one pass over the gradients: their largest entry is NaN where one is
        largest = jax.tree.map(lambda g: jnp.max(jnp.abs(g), initial=0.0), wide)
        finite = _all(jax.tree.map(jnp.isfinite, largest))

        def limit(g, size):
            return jnp.where(finite, g * jnp.minimum(1.0, _LARGEST / jnp.maximum(size, 1.0)), 0.0)

        safe = jax.tree.map(limit, wide, largest)
        extra["finite"] = finite
        steps, inner_state = rule.update(safe, state.inner_state, None if params is None else widen(params), **extra)
        steps = jax.tree.map(lambda s, u: s.astype(u.dtype), steps, updates)
        was = state.inner_state
        lasting = jax.tree.map(lambda n, o: own(n) or _stays_finite(n, o), inner_state, was, is_leaf=own)
        counts = finite & _all(jax.tree.map(_finite, steps)) & _all(lasting)
        keep = lambda new, old: jnp.where(counts, new, old)  # noqa: E731
        state = BoundedState(
            keep(state.total_notfinite, optax.safe_increment(state.total_notfinite)),
            keep(jnp.zeros_like(state.notfinite_count), optax.safe_increment(state.notfinite_count)),
            jax.tree.map(lambda n, o: n if own(n) else keep(n, o), inner_state, was, is_leaf=own),
        )
        return jax.tree.map(lambda s: keep(s, jnp.zeros_like(s)), steps), state

    return optax.GradientTransformationExtraArgs(init, update)


def _all(tree: PyTree) -> Bool[Array, ""]:
    return functools.reduce(jnp.logical_and, jax.tree.leaves(tree), jnp.array(True))


def _finite(x: Array) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.array(True)


def _stays_finite(new: Array, old: Array) -> Bool[Array, ""]:
    """Whether no entry is lost: a state may hold infinities from the start, such as the best loss so far."""
    if not jnp.issubdtype(jnp.result_type(new), jnp.inexact):
        return jnp.array(True)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def _copy(x: Any) -> Array:
    return jnp.array(x, copy=True)


def widen(tree: PyTree) -> PyTree:
    """Every array in float32, or in its own dtype where that is wider."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def check_range(name: str, value: Any, low: float, high: float, *, below: bool = False) -> None:
    """Raises a ``ValueError`` for a number outside [low, high], or [low, high) where it must be ``below``.

    Bools are no numbers here. Arrays, traced or not, and schedules pass.
    """
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value} must be a number")
    if not isinstance(value, int | float | np.number):
        return
    if not low <= value <= high or (below and value == high):
        raise ValueError(f"{name}={value} must be in [{low}, {high}{')' if below else ']'}")


def check_integer(name: str, value: Any, low: int) -> None:
    """Raises a ``ValueError`` for what is no integer of at least ``low``, or no tuple of such; bools are none."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, bool) or not isinstance(one, int | np.integer) or one < low:
            raise ValueError(f"{name}={value!r} must be an integer of at least {low}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a ``ValueError`` for a value that is not among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
