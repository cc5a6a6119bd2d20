"""Delta Momentum: momentum that first erases its component along the new gradient, by the delta rule (Eq. 48-49).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.optim.bounded import bounded, check_choice, check_range


class DeltaMomentumState(NamedTuple):
    """State of ``scale_by_delta_momentum``: 4 bytes per parameter, and the preconditioner's state."""

    momentum: optax.Updates
    preconditioner: optax.OptState


def scale_by_delta_momentum(
    decay: float = 0.9,
    *,
    strength: float = 1.0,
    form: str = "contractive",
    preconditioner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The rule of ``delta_momentum`` without its learning rate; arguments and errors are the same.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import scale_by_delta_momentum
      >>> rule = scale_by_delta_momentum(decay=1.0)
      >>> update, state = rule.update(jnp.ones(()), rule.init(jnp.ones(())))
      >>> print(update, rule.update(jnp.ones(()), state)[0])  # not 2: half of the first is forgotten
      1.0 1.5
    """
    check_range("decay", decay, 0.0, 1.0)
    check_range("strength", strength, 0.0, float("inf"))
    check_choice("form", form, ("contractive", "paper"))
    precondition = optax.identity() if preconditioner is None else preconditioner

    def forget(m, g):
        """The momentum before the new gradient is added."""
        matrix = g.ndim >= 2
        if form == "paper":
            u = jnp.sqrt(strength) * g
        else:
            # sqrt(κ / (1 + κ ‖g‖²)) g has a norm of at most 1, so that no product overflows
            square = jnp.sum(g * g, axis=(-2, -1), keepdims=True) if matrix else g * g
            u = g * jax.lax.rsqrt(jnp.maximum(1.0 / jnp.asarray(strength, g.dtype) + square, jnp.finfo(g.dtype).tiny))
        if matrix:  # multiply in the order that needs fewer operations
            t = jnp.swapaxes(u, -1, -2)
            delta = (u @ t) @ m if u.shape[-2] < u.shape[-1] else u @ (t @ m)
        else:
            delta = u * u * m
        return decay * m - (delta if form == "paper" else decay * delta)

    def init(params):
        return DeltaMomentumState(jax.tree.map(jnp.zeros_like, params), precondition.init(params))

    def update(updates, state, params=None):
        kept = jax.tree.map(forget, state.momentum, updates)
        preconditioned, inner = precondition.update(updates, state.preconditioner, params)
        momentum = jax.tree.map(lambda m, u: (m + u).astype(m.dtype), kept, preconditioned)
        return momentum, DeltaMomentumState(momentum, inner)

    return optax.GradientTransformation(init, update)


def delta_momentum(
    learning_rate: optax.ScalarOrSchedule,
    decay: float = 0.9,
    *,
    strength: float = 1.0,
    form: str = "contractive",
    preconditioner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum trained on an L2 loss, so that its decay depends on the gradient (Eq. 48-49).

    For a matrix :math:`g` [out, in], with :math:`\kappa` the strength and :math:`P` the preconditioner,

    .. math::
      m_t = \alpha\, m_{t-1} (I - \beta_t g_t^\top g_t) + P g_t, \qquad
      \beta_t = \frac{\kappa}{1 + \kappa \lVert g_t \rVert_F^2}, \qquad
      W_t = W_{t-1} - \eta\, m_t

    so that the momentum forgets its components along the current gradient and keeps the others. The factor that forgets
    is a contraction for every gradient, and for a gradient of rank one it is the exact proximal step on
    :math:`\frac{\kappa}{2} \lVert m g_t^\top \rVert^2`. ``form="paper"`` is the paper's :math:`m_{t-1} (\alpha I -
    \kappa g_t^\top g_t)`, which diverges once :math:`\kappa \lVert g \rVert^2` exceeds :math:`1 + \alpha`.

    Parameters with two or more axes are matrices [..., in, out], as in Flax: :math:`g^\top g` acts on axis -2, and
    leading axes are independent matrices. For vectors and scalars all products are elementwise. Memory: 4 bytes per
    parameter.

    Args:
      learning_rate: η, or a schedule.
      decay: α, in [0, 1].
      strength: κ, at least 0. With 0 this is momentum; infinity removes the whole component along the gradient, however
        small the gradient is.
      form: "contractive" or "paper".
      preconditioner: any transformation as P, such as ``optax.scale_by_rms()``; by default none.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.

    Raises:
      ValueError: for a coefficient out of range or an unknown ``form``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import delta_momentum
      >>> tx = delta_momentum(1.0, decay=1.0)
      >>> g, state = jnp.ones(()), tx.init(jnp.ones(()))
      >>> for _ in range(3):
      ...     update, state = tx.update(g, state)
      ...     print(update)
      -1.0
      -1.5
      -1.75
    """
    rule = scale_by_delta_momentum(decay, strength=strength, form=form, preconditioner=preconditioner)
    return bounded(optax.chain(rule, optax.scale_by_learning_rate(learning_rate)))
