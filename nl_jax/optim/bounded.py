"""The safeguards of every optimizer here: its rule sees finite float32 gradients of bounded size."""

import functools
import reprlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

PyTree = Any

_LARGEST = 1e15  # the sum of squares of a matrix with such entries still fits float32


class BoundedState(NamedTuple):
    """State of ``bounded``."""

    total_notfinite: Int[Array, ""]  # number of steps skipped so far
    notfinite_count: Int[Array, ""]  # number of consecutive steps skipped until now
    inner_state: optax.OptState


def bounded(
    inner: optax.GradientTransformation, keeps_itself: type | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Runs ``inner`` in float32 or wider on gradients of bounded size, and skips steps that are not finite.

    - State and arithmetic are float32, whatever the type of the parameters (float64 stays float64). Updates have the
      type of the gradients.
    - A gradient array with entries beyond 1e15 is scaled down so that its largest entry is 1e15: squares stay finite.
    - A step is skipped if any gradient has a NaN or infinite entry, if an update made by ``inner`` has one, or if its
      new state has one where the old state was finite. A skipped step changes no state and no parameter, and is
      counted: ``optax.tree.get(state, "total_notfinite")`` is the number of skipped steps, and ``"notfinite_count"``
      the number of consecutive ones until now. A caller who wants to stop can read either.
    - Every array of the initial state has its own buffer, so that the state can be donated.

    Unlike ``optax.apply_if_finite`` this selects between values instead of branching, so that no device has to wait.

    Args:
      inner: the rule. Its update gets an extra argument ``finite``: whether all gradients are finite.
      keeps_itself: type of a state that ``inner`` itself leaves unchanged if ``finite`` is false, and that finite
        gradients cannot make infinite. Such a state is neither checked nor selected here, which saves keeping the old
        and the new state at once. So it advances if the gradients are finite but the updates are not (with an infinite
        learning rate, say).

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
        # one pass over the gradients: the largest entry is NaN if any entry is
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
    """Whether finite entries stay finite. A state may hold infinities from the start, such as the best loss so far."""
    if not jnp.issubdtype(jnp.result_type(new), jnp.inexact):
        return jnp.array(True)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def _copy(x: Any) -> Array:
    return jnp.array(x, copy=True)


def widen(tree: PyTree) -> PyTree:
    """Converts every array to float32, or keeps its dtype if that is wider."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def check_range(name: str, value: Any, low: float, high: float, *, below: bool = False) -> None:
    """Raises a ``ValueError`` for a number outside [low, high], or outside [low, high) if it must be ``below``.

    Bools do not count as numbers. Arrays, traced or not, and schedules are not checked.
    """
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value}: expected a number")
    if not isinstance(value, int | float | np.number):
        return
    if not low <= value <= high or (below and value == high):
        raise ValueError(f"{name}={value}: expected a number in [{low}, {high}{')' if below else ']'}")


def check_integer(name: str, value: Any, low: int) -> None:
    """Raises a ``ValueError`` unless a value is an integer of at least ``low``, or a tuple of these; bools are not."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, bool) or not isinstance(one, int | np.integer) or one < low:
            raise ValueError(f"{name}={reprlib.repr(value)}: expected an integer of at least {low}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a ``ValueError`` for a value that is not among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
