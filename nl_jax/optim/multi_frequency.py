"""A continuum memory of parameters: every group has its own optimizer and update frequency (§7, Eq. 70-71).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nl_jax.optim.bounded import check_integer
from nl_jax.trees import tree_of


class EveryState(NamedTuple):
    """State of one slow group."""

    waited: Int[Array, ""]  # number of steps since the last update
    total: optax.Updates  # sum of the gradients since the last update, float32 or wider
    inner: optax.OptState


def _every(inner: optax.GradientTransformation, period: int) -> optax.GradientTransformationExtraArgs:
    """Runs ``inner`` once per period on the summed gradients; unlike ``optax.MultiSteps`` only when it is due."""
    transformation = optax.with_extra_args_support(inner)

    def init(params):
        total = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32)), params)
        return EveryState(jnp.zeros((), jnp.int32), total, inner.init(params))

    def update(updates, state, params=None, **extra):
        total = jax.tree.map(jnp.add, state.total, updates)

        def due(inner_state):
            summed = jax.tree.map(lambda t, u: t.astype(u.dtype), total, updates)
            step, inner_state = transformation.update(summed, inner_state, params, **extra)
            step = jax.tree.map(lambda s, u: s.astype(u.dtype), step, updates)
            return step, EveryState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, total), inner_state)

        def wait(inner_state):
            return jax.tree.map(jnp.zeros_like, updates), EveryState(state.waited + 1, total, inner_state)

        return jax.lax.cond(state.waited + 1 == period, due, wait, state.inner)

    return optax.GradientTransformationExtraArgs(init, update)


def schedule_of_updates(schedule: optax.Schedule, period: int) -> optax.Schedule:
    """Converts a schedule over steps to one over updates, for an optimizer that is updated once per period.

    Update n happens at step (n + 1) · period - 1, both counted from 0, and gets the value of that step.

    Args:
      schedule: a function from the number of earlier steps to a value.
      period: period of the group in `multi_frequency`, or of the level.

    Raises:
      ValueError: for a period below 1.

    Examples:
      >>> import optax
      >>> from nl_jax.optim import schedule_of_updates
      >>> falling = optax.linear_schedule(1.0, 0.0, 16)
      >>> [float(schedule_of_updates(falling, 4)(update)) for update in range(5)]  # at steps 3, 7, 11, 15, 19
      [0.8125, 0.5625, 0.3125, 0.0625, 0.0]
    """
    check_integer("period", period, 1)
    return lambda count: schedule((count + 1) * period - 1)


def multi_frequency(
    transforms: Mapping[Any, tuple[optax.GradientTransformation, int]],
    param_labels: optax.Params | Callable[[optax.Params], optax.Params],
) -> optax.GradientTransformationExtraArgs:
    r"""Updates each group of parameters once per period, with the sum of its gradients over that period.

    Group :math:`\ell` with period :math:`C^{(\ell)}` follows Eq. 71,

    .. math::
      \theta^{(\ell)}_{t+1} = \theta^{(\ell)}_t - \begin{cases}
        f^{(\ell)}\big(\sum_{i=t-C^{(\ell)}+1}^{t} g_i\big) & t + 1 \equiv 0 \pmod{C^{(\ell)}} \\
        0 & \text{otherwise,}
      \end{cases}

    where :math:`f^{(\ell)}` is the group's transformation. It is computed only at steps at which the group is due. The
    sum needs one buffer of the group's size, unless the period is 1.

    The transformation counts its own updates, not steps. In a group with period C a learning-rate schedule sees the
    counts 0, 1, 2, ... at steps C - 1, 2C - 1, 3C - 1, ... (from 0), so a schedule over steps would run C times too
    slowly. Wrap it: ``optax.adam(schedule_of_updates(schedule, C))``.

    Args:
      transforms: from label to (transformation, period in optimizer steps).
      param_labels: the label of every parameter, as a tree or as a function from the parameters to this tree.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``.

    Raises:
      ValueError: for a period below 1, or a label without a transformation.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.optim import multi_frequency
      >>> tx = multi_frequency({"fast": (optax.sgd(0.1), 1), "slow": (optax.sgd(0.1), 2)}, {"a": "fast", "b": "slow"})
      >>> params = grads = {"a": jnp.ones(()), "b": jnp.ones(())}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print({k: round(float(v), 3) for k, v in updates.items()})
      {'a': -0.1, 'b': 0.0}
      >>> updates, state = tx.update(grads, state, params)
      >>> print({k: round(float(v), 3) for k, v in updates.items()})
      {'a': -0.1, 'b': -0.2}
    """
    for label, (_, period) in transforms.items():
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise ValueError(f"period of {label!r} is {period!r}; expected an integer of at least 1")
    return optax.partition(
        {label: tx if period == 1 else _every(tx, period) for label, (tx, period) in transforms.items()},
        lambda params: tree_of(param_labels, params),
    )
