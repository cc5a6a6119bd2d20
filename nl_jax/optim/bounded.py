"""What every optimizer here does with gradients before its rule sees them: float32, bounded in size, finite."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

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
    r"""Runs ``inner`` in float32 or wider, on gradients of bounded size, and only where all of them are finite.

    - State and arithmetic are float32 whatever the parameters' type (float64 stays); updates have the gradients' type.
    - A gradient with entries beyond 1e15 is scaled down as a whole, so that its largest is 1e15: squares stay finite.
    - A step with a NaN or infinite entry in any gradient changes no state and no parameter, and is counted:
      ``optax.tree.get(state, "total_notfinite")`` is the number of steps left out so far, ``"notfinite_count"`` that of
      those in a row. A caller who wants to stop reads one of them.

    Unlike ``optax.apply_if_finite`` it selects instead of branching, which no device has to wait for.

    Args:
      inner: the rule. Its update gets ``finite``, whether this step counts, as an extra argument.
      keeps_itself: type of a state that ``inner`` itself leaves unchanged where ``finite`` is false; that saves the
        select here, which needs the old and the new one at once.

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
        return BoundedState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), rule.init(_widen(params)))

    def update(updates, state, params=None, **extra):
        wide = _widen(updates)
        # one pass over the gradients: their largest entry is NaN where one is
        largest = jax.tree.map(lambda g: jnp.max(jnp.abs(g), initial=0.0), wide)
        finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, jax.tree.leaves(largest)), jnp.array(True))
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731

        def limit(g, size):
            return keep(g * jnp.minimum(1.0, _LARGEST / jnp.maximum(size, 1.0)), jnp.zeros_like(g))

        safe = jax.tree.map(limit, wide, largest)
        extra["finite"] = finite
        steps, inner_state = rule.update(safe, state.inner_state, None if params is None else _widen(params), **extra)
        steps = jax.tree.map(lambda s, u: keep(s, jnp.zeros_like(s)).astype(u.dtype), steps, updates)
        state = BoundedState(
            keep(state.total_notfinite, optax.safe_increment(state.total_notfinite)),
            keep(jnp.zeros_like(state.notfinite_count), optax.safe_increment(state.notfinite_count)),
            jax.tree.map(
                lambda new, old: new if own(new) else keep(new, old), inner_state, state.inner_state, is_leaf=own
            ),
        )
        return steps, state

    return optax.GradientTransformationExtraArgs(init, update)


def _widen(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raises a ``ValueError`` for a Python number outside [low, high]; arrays, traced or not, and schedules pass."""
    if isinstance(value, int | float) and not low <= value <= high:
        raise ValueError(f"{name}={value} must be in [{low}, {high}]")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a ``ValueError`` for a value that is not among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
