"""Generalised Momentum: memories of gradients, each defined by an objective and a retention (Def. 5; App. B).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nl_jax.optim.bounded import bounded
from nl_jax.optim.solvers import Solver, newton


class GradientContext(NamedTuple):
    """The inputs of a memory's objective and retention, all for one parameter.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import GradientContext, adam_memories
      >>> (first, *_), _ = adam_memories()
      >>> context = GradientContext(gradient=jnp.array([1.0, -3.0]), memories=(), step=jnp.array(1))
      >>> float(first.objective(jnp.zeros(2), context))  # ½‖m - g‖²
      5.0
    """

    gradient: Array
    memories: tuple[Array, ...]  # new states of the memories before this one
    step: Array  # number of the step, from 1


class Memory(NamedTuple):
    """A memory of gradients, an array with the shape of the parameter.

    Attributes:
      objective: L̃(m, context), a scalar that the memory minimises for the current gradient.
      retention: Ret(m, previous, context), a scalar that keeps the memory near its previous state. None means that the
        memory has no state: it is solved from zero at each step.
      initial: initial value of all elements.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import Memory, generalized_momentum
      >>> dot_product = lambda m, context: -jnp.sum(m * context.gradient)
      >>> near = lambda m, previous, context: 0.5 * jnp.sum((m - 0.5 * previous) ** 2)
      >>> tx = generalized_momentum(1.0, [Memory(dot_product, near)])  # the decayed sum of gradients
      >>> _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
      >>> print(tx.update(jnp.ones(2), state)[0])
      [-1.5 -1.5]
    """

    objective: Callable[[Array, GradientContext], Array]
    retention: Callable[[Array, Array, GradientContext], Array] | None = None
    initial: float = 0.0


class GeneralizedMomentumState(NamedTuple):
    """State of ``generalized_momentum``: 4 bytes per parameter for each memory with a retention."""

    count: Int[Array, ""]  # type: ignore[assignment]  # number of steps taken
    memories: tuple[optax.Updates, ...]  # states of the memories with a retention


def _objective(memory: Memory, context: GradientContext, m: Array) -> Array:
    return memory.objective(m, context)


def _problem(memory: Memory, context: GradientContext, previous: Array, m: Array) -> Array:
    assert memory.retention is not None
    return memory.objective(m, context) + memory.retention(m, previous, context)


def generalized_momentum(
    learning_rate: optax.ScalarOrSchedule,
    memories: Sequence[Memory],
    read: Callable[[GradientContext], Array] | None = None,
    *,
    solver: Solver | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends along the answer of memories of the gradients, each of which solves its own problem (Def. 5).

    At every step the memories :math:`i = 1, 2, \dots` of each parameter are updated in this order, by

    .. math::
      m^{(i)}_t = \arg\min_m \tilde L^{(i)}(m; g_t, m^{(<i)}_t) + \mathrm{Ret}^{(i)}(m, m^{(i)}_{t-1}), \qquad
      W_t = W_{t-1} - \eta\, \mathrm{read}(m_t)

    ``nl_jax.optim.classical_memories`` has momentum, Adam, AdaGrad, RMSProp and Muon in this form.

    Args:
      learning_rate: η, or a schedule.
      memories: at least one memory.
      read: computes the step from the context with all memories; by default it is the last memory.
      solver: computes the arg min, starting from the previous state (from zero for memories without retention):
        `newton` (the default), `gradient_descent`, `conjugate_gradient`, or any function of a loss and a start.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.
      With ``optax.inject_hyperparams``, name read and solver in ``static_args``.

    Raises:
      ValueError: if there is no memory.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import Memory, generalized_momentum
      >>> recall = Memory(  # of the gradient, L2 in both
      ...     objective=lambda m, context: jnp.sum((m - context.gradient) ** 2),
      ...     retention=lambda m, previous, context: 3.0 * jnp.sum((m - previous) ** 2),
      ... )
      >>> tx = generalized_momentum(1.0, [recall])
      >>> update, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
      >>> print(update)  # a quarter of the way
      [-0.25 -0.25]
    """
    memories = tuple(memories)
    if not memories:
        raise ValueError(f"memories={memories}: expected one or more")
    solve = newton() if solver is None else solver
    kept = [memory for memory in memories if memory.retention is not None]

    def learn(g, step, *previous):
        """Computes the new states of the memories of one parameter, and their answer."""
        states: tuple[Array, ...] = ()
        last = iter(previous)
        for memory in memories:
            context = GradientContext(g, states, step)
            if memory.retention is None:
                new = solve(functools.partial(_objective, memory, context), jnp.zeros_like(g))
            else:
                old = next(last)
                new = solve(functools.partial(_problem, memory, context, old), old)
            states = (*states, new.astype(g.dtype))
        answer = states[-1] if read is None else read(GradientContext(g, states, step))
        return answer, *(s for s, memory in zip(states, memories, strict=True) if memory.retention is not None)

    def init(params):
        full = lambda memory: jax.tree.map(lambda p: jnp.full_like(p, memory.initial), params)  # noqa: E731
        return GeneralizedMomentumState(jnp.zeros((), jnp.int32), tuple(full(memory) for memory in kept))

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        results = jax.tree.map(lambda g, *m: learn(g, count, *m), updates, *state.memories)
        answers, *new = (jax.tree.map(lambda _, r, i=i: r[i], updates, results) for i in range(1 + len(kept)))
        return answers, GeneralizedMomentumState(count, tuple(new))

    rule = optax.GradientTransformation(init, update)
    return bounded(optax.chain(rule, optax.scale_by_learning_rate(learning_rate)))
