"""Generalised Gradient Descent: the next weights minimise a self-generated objective (Eq. 58-60, Def. 5).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nl_jax.optim.bounded import bounded, check_integer
from nl_jax.optim.solvers import Solver, newton


class GeneralizedGradientDescentState(NamedTuple):
    """State of ``generalized_gradient_descent``: 4 bytes per parameter for each of the ``history - 1`` old weights."""

    count: Int[Array, ""]  # type: ignore[assignment]  # number of steps taken
    older: tuple[optax.Params, ...]  # earlier weights, without the current ones, newest first


def linear_objective(weights: Array, gradient: Array, current: Array) -> Array:
    """⟨W, g⟩, the first-order approximation of the loss."""
    del current
    return jnp.sum(weights * gradient)


def l2_retention(weights: Array, recent: tuple[Array, ...]) -> Array:
    """½‖W - W_t‖², where W_t are the current weights."""
    return 0.5 * jnp.sum(jnp.square(weights - recent[0]))


def generalized_gradient_descent(
    learning_rate: optax.ScalarOrSchedule,
    objective: Callable[[Array, Array, Array], Array] | None = None,
    retention: Callable[[Array, tuple[Array, ...]], Array] | None = None,
    *,
    history: int = 1,
    solver: Solver | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The next weights minimise an objective made by the current weights, and stay near recent weights (Eq. 59-60).

    .. math::
      W_{t+1} = \arg\min_W \eta\, \tilde L(W; g_t, W_t) + \mathrm{Ret}(W; W_t, W_{t-1}, \dots, W_{t-c+1})

    With the defaults, :math:`\langle W, g \rangle` and :math:`½ \lVert W - W_t \rVert^2`, this is gradient descent. An
    optimizer sees only the gradient, not a layer's inputs and self-generated values; `DeltaDense` makes the gradient
    that of any objective of Wx and :math:`u = -\nabla_y L`.

    Args:
      learning_rate: η, or a schedule.
      objective: L̃(weights, gradient, current weights) of one parameter, a scalar.
      retention: Ret(weights, recent) of one parameter, a scalar. ``recent`` holds c arrays, the current weights first;
        in the first steps the initial weights fill the missing places.
      history: c, the number of recent weights, at least 1.
      solver: computes the arg min, starting from the current weights: `newton` (the default), `gradient_descent`,
        `conjugate_gradient`, or any function of a loss and a start.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.
      With ``optax.inject_hyperparams``, name history and all functions in ``static_args``.

    Raises:
      ValueError: for a history below 1; at the first step, if the update is called without params.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import generalized_gradient_descent
      >>> elastic = lambda w, g, current: jnp.sum(w * g) + 0.5 * jnp.sum(w**2)
      >>> tx = generalized_gradient_descent(1.0, elastic)
      >>> w = jnp.ones(2)
      >>> update, _ = tx.update(jnp.zeros(2), tx.init(w), w)
      >>> print(w + update)
      [0.5 0.5]
    """
    check_integer("history", history, 1)
    objective = linear_objective if objective is None else objective
    retention = l2_retention if retention is None else retention
    solve = newton() if solver is None else solver

    def init(params):
        # copies, so that parameters and state can both be donated
        older = tuple(jax.tree.map(lambda p: jnp.array(p, copy=True), params) for _ in range(history - 1))
        return GeneralizedGradientDescentState(jnp.zeros((), jnp.int32), older)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params=None: this optimizer needs the parameters, update(gradients, state, params)")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def step(g, *recent):
            loss = lambda w: rate * objective(w, g, recent[0]) + retention(w, recent)  # noqa: E731
            return (solve(loss, recent[0]) - recent[0]).astype(g.dtype)

        recent = (params, *state.older)
        steps = jax.tree.map(step, updates, *recent)
        return steps, GeneralizedGradientDescentState(optax.safe_increment(state.count), recent[: history - 1])

    return bounded(optax.GradientTransformation(init, update))
