"""Levels made of an optax transformation, and of a loss with one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nl_jax.levels.level import Context, Level, Tree
from nl_jax.trees import PyTree, own_buffers, replace_leaves, select_leaves


class Learner(NamedTuple):
    """Parameters and the state of the optax transformation that moves them."""

    params: PyTree
    optimizer: optax.OptState


def _descend(transformation: optax.GradientTransformation, learner: Learner, gradients: PyTree) -> Learner:
    gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, learner.params)
    updates, optimizer = transformation.update(gradients, learner.optimizer, learner.params)
    return Learner(optax.apply_updates(learner.params, updates), optimizer)


def _learner(name: str, transformation: optax.GradientTransformation, params: PyTree, paths: tuple[str, ...] | None):
    """The parts that all levels with an optax transformation share."""
    own = params if paths is None else select_leaves(params, paths, name)

    def start(params):
        # copies, so that the state may be donated and the caller's parameters and these stay
        params = own_buffers(params)
        return Learner(params, own_buffers(transformation.init(params)))

    return {
        "init": lambda key, data: start(own),
        "read": lambda learner, query: learner.params,
        "start": start,
        "paths": () if paths is None else paths,
        "parts": lambda learner: tuple(learner),
    }


def from_optax(
    name: str,
    transformation: optax.GradientTransformation,
    params: PyTree,
    *,
    period: int = 1,
    paths: tuple[str, ...] | None = None,
    objective: str = "what made the gradients",
) -> Level:
    r"""Parameters that an optax transformation moves once a period, by the sum of its gradients (Eq. 71).

    The state is a ``Learner``; ``read`` gives the parameters. A step's context is a gradient, a pytree like them.

    Args:
      name, period: of the level.
      transformation: any optimizer.
      params: initial parameters.
      paths: with them the level owns those leaves of ``params`` only; parameters and gradients are then
        ``{path: leaf}``, as ``select_leaves`` makes them.
      objective: in words.

    Examples:
      >>> from nl_jax import Schedule
      >>> schedule = Schedule([from_optax("w", optax.sgd(0.1), jnp.ones(()), period=2)])
      >>> state = schedule.init(None, {"w": jnp.ones(())})
      >>> for _ in range(3):
      ...     state = schedule.step(state, {"w": jnp.ones(())})
      ...     print(round(float(state.levels["w"].params), 3))
      1.0
      0.8
      0.8
    """

    def update(learner, gradients):
        return _descend(transformation, learner, gradients)

    shared = _learner(name, transformation, params, paths)
    return Level(name, period, update=update, gather="sum", context="gradients, summed", objective=objective, **shared)


def from_loss(
    name: str,
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    transformation: optax.GradientTransformation,
    *,
    period: int = 1,
    paths: tuple[str, ...] | None = None,
    needs: tuple[str, ...] = (),
    sees: tuple[str, ...] = (),
    inner: Tree | None = None,
) -> Level:
    """Parameters that descend a loss of their own on the data of a period, summed over its steps (Eq. 71).

    The state is a ``Learner``; ``read`` gives the parameters. A step's context are the data of one loss. Between two
    updates the data are kept and nothing is computed; an update takes all p losses in one ``vmap``.

    Args:
      name, period, needs, sees: of the level.
      loss: ``loss(params, data) -> scalar``; ``loss(params, data, answers)`` where the level needs or sees others.
      params: initial parameters.
      transformation: any optimizer.
      paths: with them the level owns those leaves of ``params`` only (``{path: leaf}``), and ``loss(params, data)``
        gets the whole tree: leaves that levels which it needs or sees own are theirs, the rest stay as given.
      inner: the schedule that ``loss`` runs, if it does; for ``Schedule.tree``.

    Examples:
      >>> from nl_jax import Schedule
      >>> level = from_loss("w", lambda w, x: (w - x) ** 2, jnp.zeros(()), optax.sgd(0.25), period=2)
      >>> schedule = Schedule([level])
      >>> state = schedule.init(None, {"w": jnp.ones(())})
      >>> print(schedule.run(state, {"w": jnp.array([1.0, 3.0])}).levels["w"].params)
      2.0
    """

    def update(learner, context):
        answers = None
        if isinstance(context, Context):
            context, answers = context

        def total(own):
            tree, more = own, () if answers is None else (answers,)
            if paths is not None:
                tree, more = params, ()
                for leaves in (own, *(answers or {}).values()):
                    tree = replace_leaves(tree, leaves)
            return jnp.sum(jax.vmap(lambda data: loss(tree, data, *more))(context))

        return _descend(transformation, learner, jax.grad(total)(learner.params))

    return Level(
        name,
        period,
        update=update,
        needs=needs,
        sees=sees,
        context="data",
        objective=getattr(loss, "__name__", "loss"),
        inner=inner,
        **_learner(name, transformation, params, paths),
    )
