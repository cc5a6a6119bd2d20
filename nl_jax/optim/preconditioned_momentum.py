"""Momentum with a preconditioner, which may learn by inner steps of its own (Eq. 38-47).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nl_jax.optim.bounded import bounded, check_integer, check_range


class IdentityPreconditionerState(NamedTuple):
    """State of ``identity_preconditioner``: 8 bytes per parameter."""

    count: Int[Array, ""]  # type: ignore[assignment]  # number of steps taken
    second_moment: optax.Updates  # V
    preconditioner: optax.Updates  # P, elementwise


def identity_preconditioner(
    decay: float = 0.999, inner_steps: int = 2, eps: float = 1e-8
) -> optax.GradientTransformation:
    r"""An elementwise preconditioner P that learns to make P V P the identity, with V the mean squared gradient.

    The inner problem is :math:`\min_P \frac{1}{4V} (V P^2 - 1)^2`, whose minimum is Adam's :math:`P = 1 / \sqrt V` (Eq.
    39-41). At every step P is updated from its previous value by ``inner_steps`` steps of gradient descent,

    .. math::
      P \leftarrow P - \frac{1}{2 \max(1, V P^2)} P (V P^2 - 1)

    with a rate for which :math:`V P^2` approaches 1 from every start (below 1 this is a Newton-Schulz iteration, above
    1 Heron's method). After a jump of V, :math:`V P^2` is taken as at most 4. So P lags behind Adam's P when gradients
    change fast.

    Args:
      decay: decay of V per step, in [0, 1); V is corrected for its bias.
      inner_steps: number of inner steps of P at each step, at least 1.
      eps: bounds P to about 1 / eps.

    Returns:
      The corresponding ``optax.GradientTransformation``, g → P g.

    Raises:
      ValueError: for a decay outside [0, 1), or if there is no inner step.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import identity_preconditioner
      >>> tx = identity_preconditioner(inner_steps=10)
      >>> gradient = jnp.array([0.5, -4.0])
      >>> update, _ = tx.update(gradient, tx.init(gradient))
      >>> print(update.round(2))  # P = 1 / |g|, as in Adam's first step
      [ 1. -1.]
    """
    check_range("decay", decay, 0.0, 1.0, below=True)
    check_integer("inner_steps", inner_steps, 1)

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return IdentityPreconditionerState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        second = jax.tree.map(
            lambda v, g: (decay * v + (1.0 - decay) * g * g).astype(v.dtype), state.second_moment, updates
        )

        def learn(p, v):
            v = v / (1.0 - decay**count) + eps**2
            p = jnp.where(count == 1, jax.lax.rsqrt(jnp.mean(v)), p)  # the first P has the scale of the first gradient
            p = jnp.minimum(p, 2.0 * jax.lax.rsqrt(v))
            return jax.lax.fori_loop(0, inner_steps, _toward_identity, (p, v))[0].astype(p.dtype)

        learned = jax.tree.map(learn, state.preconditioner, second)
        updates = jax.tree.map(jnp.multiply, learned, updates)
        return updates, IdentityPreconditionerState(count, second, learned)

    return optax.GradientTransformation(init, update)


def _toward_identity(_, carry):
    p, v = carry
    square = v * p * p
    return p - p * (square - 1.0) / (2.0 * jnp.maximum(1.0, square)), v


def orthogonality_preconditioner(inner_steps: int = 5, inner_rate: float = 0.5) -> optax.GradientTransformation:
    r"""Maps a gradient g to O with :math:`O^\top O` near the identity, by inner steps that start from g (Eq. 42-44).

    The inner problem is :math:`\min_O \frac14 \lVert O^\top O - I \rVert_F^2`, solved by gradient descent from
    :math:`O = g / \lVert g \rVert_F`. A step with rate ζ is :math:`O \leftarrow O - \zeta\, O (O^\top O - I)`; for
    ζ = ½ this is the cubic Newton-Schulz iteration. There is no state. Vectors and scalars are scaled to unit length.

    Args:
      inner_steps: number of inner steps, at least 1.
      inner_rate: ζ, in (0, 1]. With these rates singular values in [0, 1] stay in [0, 1.1].

    Returns:
      The corresponding ``optax.GradientTransformation``; leading axes of [..., in, out] are independent matrices.

    Raises:
      ValueError: if there is no inner step, or for a rate outside [0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import orthogonality_preconditioner
      >>> tx = orthogonality_preconditioner(inner_steps=10)
      >>> gradient = jnp.array([[0.0, 3.0], [1.0, 0.0]])
      >>> update, _ = tx.update(gradient, tx.init(gradient))
      >>> print(update.round(2))
      [[0. 1.]
       [1. 0.]]
    """
    check_integer("inner_steps", inner_steps, 1)
    check_range("inner_rate", inner_rate, 0.0, 1.0)

    def step(_, o):
        transposed = jnp.swapaxes(o, -1, -2)
        wide = o.shape[-2] < o.shape[-1]  # then the other product gives the smaller Gram matrix
        product = (o @ transposed) @ o if wide else o @ (transposed @ o)
        return o - inner_rate * (product - o)

    def orthogonalize(g):
        o = g if g.ndim >= 2 else g.reshape(-1, 1)
        size = jnp.sqrt(jnp.sum(o * o, axis=(-2, -1), keepdims=True))
        return jax.lax.fori_loop(0, inner_steps, step, o / jnp.where(size > 0, size, 1.0)).reshape(g.shape)

    return optax.stateless(lambda updates, params: jax.tree.map(orthogonalize, updates))


def preconditioned_momentum(
    learning_rate: optax.ScalarOrSchedule,
    decay: float = 0.9,
    *,
    preconditioner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum as a memory that maps gradients g to values :math:`P g` (Eq. 46-47).

    .. math::
      m_t = \alpha m_{t-1} + P_t g_t, \qquad W_t = W_{t-1} - \eta\, m_t

    Memory: 4 bytes per parameter, and the preconditioner's state.

    Args:
      learning_rate: η, or a schedule.
      decay: α, in [0, 1].
      preconditioner: the map g → P g: `identity_preconditioner` (the default), `orthogonality_preconditioner`, or any
        transformation, such as ``optax.scale_by_rms()``.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.

    Raises:
      ValueError: for a decay outside [0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import orthogonality_preconditioner, preconditioned_momentum
      >>> tx = preconditioned_momentum(1.0, preconditioner=orthogonality_preconditioner())
      >>> g = jnp.diag(jnp.array([3.0, 2.0]))
      >>> update, _ = tx.update(g, tx.init(g))
      >>> print(jnp.round(update, 2))
      [[-1. -0.]
       [-0. -1.]]
    """
    check_range("decay", decay, 0.0, 1.0)
    precondition = identity_preconditioner() if preconditioner is None else preconditioner
    return bounded(optax.chain(precondition, optax.trace(decay), optax.scale_by_learning_rate(learning_rate)))
