"""Momentum of higher-order features of the gradient (Eq. 51).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nl_jax.optim.bounded import bounded, check_range


def polynomial_features(coefficients: Sequence[float] = (1.0, 0.5)) -> Callable[[Array], Array]:
    r"""φ(g) = s Σ cᵢ sign(g) |g / s|ⁱ for i = 1, 2, ..., elementwise, where s is the root mean square of g.

    So φ is odd, and proportional to the scale of g. Powers above 1 give large entries more weight; there are no powers
    below 1.

    Args:
      coefficients: c₁, c₂, ...

    Returns:
      The function φ, from the gradient of one parameter to features of the same shape.

    Raises:
      ValueError: if there is no coefficient.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import polynomial_features
      >>> gradient = jnp.array([1.0, -7.0])  # with root mean square 5
      >>> print(polynomial_features((1.0,))(gradient), polynomial_features((0.0, 1.0))(gradient).round(1))
      [ 1. -7.] [ 0.2 -9.8]
    """
    coefficients = tuple(coefficients)
    if not coefficients:
        raise ValueError(f"coefficients={coefficients}: expected one or more")

    def features(g):
        size = jnp.sqrt(jnp.mean(jnp.square(g)))
        x = g / jnp.where(size > 0, size, 1.0)
        return size * sum(c * jnp.sign(x) * jnp.abs(x) ** i for i, c in enumerate(coefficients, 1))

    return features


def feature_momentum(
    learning_rate: optax.ScalarOrSchedule,
    decay: float = 0.9,
    *,
    features: Callable[[Array], Array] | None = None,
    preconditioner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum as a memory whose keys are features of the gradient (Eq. 51).

    .. math::
      m_t = \alpha m_{t-1} + P \phi(g_t), \qquad W_t = W_{t-1} - \eta\, m_t

    Memory: 4 bytes per parameter, and the preconditioner's state.

    Args:
      learning_rate: η, or a schedule.
      decay: α, in [0, 1].
      features: φ, from the gradient of one parameter to an array of the same shape; by default `polynomial_features`.
        With ``optax.inject_hyperparams`` name it in ``static_args``, like every function.
      preconditioner: any transformation as P; by default none.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.

    Raises:
      ValueError: for a decay outside [0, 1]; at the first step, if the features have another shape than the gradient.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import feature_momentum
      >>> tx = feature_momentum(1.0, features=jnp.sign)
      >>> g = jnp.array([0.1, -5.0])
      >>> update, _ = tx.update(g, tx.init(g))
      >>> print(update)
      [-1.  1.]
    """
    check_range("decay", decay, 0.0, 1.0)
    phi = polynomial_features() if features is None else features

    def apply(g):
        value = phi(g)
        if value.shape != g.shape:
            raise ValueError(f"features gave the shape {value.shape} for a gradient of shape {g.shape}")
        return value

    return bounded(
        optax.chain(
            optax.stateless(lambda updates, params: jax.tree.map(apply, updates)),
            optax.identity() if preconditioner is None else preconditioner,
            optax.trace(decay),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
