"""Constructors of levels: from an optax transformation, and from a loss together with one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nl_jax.levels.level import Context, Level, Tree
from nl_jax.trees import PyTree, check_shapes, own_buffers, replace_leaves, select_leaves


class Learner(NamedTuple):
    """Parameters, and the state of the optax transformation that updates them.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.levels import Schedule, from_optax
      >>> schedule = Schedule([from_optax("w", optax.adam(0.1), jnp.ones(2))])
      >>> learner = schedule.init(None, {"w": jnp.ones(2)}).levels["w"]
      >>> print(learner.params, learner.optimizer[0].count)
      [1. 1.] 0
    """

    params: PyTree
    optimizer: optax.OptState


def _descend(transformation: optax.GradientTransformation, learner: Learner, gradients: PyTree) -> Learner:
    gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, learner.params)
    updates, optimizer = transformation.update(gradients, learner.optimizer, learner.params)
    return Learner(optax.apply_updates(learner.params, updates), optimizer)


def _learner(name: str, transformation: optax.GradientTransformation, params: PyTree, paths: tuple[str, ...] | None):
    """The arguments of ``Level`` that all levels with an optax transformation share."""
    own = params if paths is None else select_leaves(params, paths, name)

    def start(params):
        # copies, so that donating the state deletes neither the caller's parameters nor these
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
    r"""A level of parameters that an optax transformation updates once per period with summed gradients (Eq. 71).

    The state is a ``Learner``, and ``read`` returns the parameters. The context of a step is a gradient, a pytree with
    the structure of the parameters.

    Args:
      name, period: name and period of the level.
      transformation: any optax transformation.
      params: initial parameters.
      paths: if given, the level owns only the leaves of ``params`` at or below these paths; its parameters and
        gradients are then ``{path: leaf}``, as ``select_leaves`` returns them.
      objective: the objective in words, shown by ``Schedule.tree``.

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
        check_shapes(f"level {name!r}: gradient", gradients, learner.params)
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
    """A level of parameters that minimise a loss of their own, summed over the data of a period (Eq. 71).

    The state is a ``Learner``, and ``read`` returns the parameters. The context of a step is the data of one loss.
    Between two updates the data are kept and nothing is computed; an update evaluates all p losses in one ``vmap``.

    Args:
      name, period, needs, sees: as for ``Level``.
      loss: ``loss(params, data) -> scalar``, or ``loss(params, data, answers)`` if the level needs or sees others.
      params: initial parameters.
      transformation: any optax transformation.
      paths: if given, the level owns only the leaves of ``params`` at or below these paths, as ``{path: leaf}``. Then
        the loss is ``loss(params, data)`` with the whole tree: leaves that belong to a level which this one needs or
        sees come from that level, and all other leaves stay as given.
      inner: the schedule that ``loss`` runs, if any; shown by ``Schedule.tree``.

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
