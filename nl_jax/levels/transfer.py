"""Knowledge transfer between levels (§3.3 of arXiv 2512.24695): the ways in which one level influences another.

| transfer | function | meaning |
|---|---|---|
| parametric (Eq. 24-26) | ``by_parameters`` | the update of a level gets the parameters of other levels |
| non-parametric (Eq. 27) | ``by_context`` | a level stores its context uncompressed, and others attend to it |
| by backpropagation | ``by_backpropagation`` | one backward pass serves all levels, each at its own frequency |
| by initialisation (Eq. 28) | ``by_initialisation``, ``restarted_by`` | a level learns the initial state of another |
| by generation | ``by_generation`` | a level generates the weights of another, or its context |

Gradients flow through every update of a level. ``first_order`` makes a level whose updates gradients bypass.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.levels import Level, Schedule
from nl_jax.levels.schedule import Flow
from nl_jax.trees import PyTree

Loss = Callable[[PyTree, PyTree], Float[Array, ""]]


def by_parameters(level: Level, *others: str, updated: bool = False) -> Level:
    """Parametric transfer: ``level`` is updated with ``Context(own, {other: its parameters})`` (Eq. 24-26).

    This function is for updates. A flow does the same transfer, of weights or outputs, by its ``read(name, query)``.

    Args:
      level: a level whose ``update`` takes a ``Context``.
      *others: names of the levels whose parameters it gets.
      updated: if True, it gets their parameters from after step t; they must be at least as fast and are updated first.
        If False, it gets those from before step t; they must be at most as fast.

    Examples:
      >>> momentum = Level("momentum", 1, lambda key, data: 0.0, lambda m, context: 0.5 * m + context[-1])
      >>> weight = Level("weight", 1, lambda key, data: 0.0, lambda w, context: w - context.answers["momentum"])
      >>> schedule = Schedule([by_parameters(weight, "momentum", updated=True), momentum])
      >>> schedule.order
      (('momentum',), ('weight',))
      >>> data = {"momentum": jnp.ones(2)}
      >>> print(schedule.run(schedule.init(None, {"momentum": jnp.ones(())}), data).levels["weight"])
      -2.5
    """
    return replace(level, needs=level.needs + others) if updated else replace(level, sees=level.sees + others)


def by_context(
    name: str, size: int, outputs: int, *, window: int, period: int = 1, scale: float | None = None
) -> Level:
    """Non-parametric transfer: a level that stores its context, for others to attend to (Eq. 27, 62, 63).

    The context of a step is a ``Pair`` of one token: a key [size] and a value [outputs]; use ``vmap`` for further axes.
    ``read(state, queries)`` is softmax attention over a sliding window: it maps queries [n, size] to outputs
    [n, outputs], which are zero before the first token. ``read(state, None)`` returns ``(keys, values, tokens kept)``,
    with the latest token last.

    Args:
      name, period: name and period of the level. A token can be attended to once its period has ended.
      size, outputs: sizes of a key and of a value.
      window: number of tokens kept, at least the period.
      scale: factor on the scores, 1 / √size by default.

    Raises:
      ValueError: if the window is shorter than the period.

    Examples:
      >>> from nl_jax.levels import Pair
      >>> schedule = Schedule([by_context("seen", 2, 1, window=8, scale=100.0)])
      >>> pairs = {"seen": Pair(jnp.eye(2), jnp.array([[3.0], [5.0]]))}
      >>> state = schedule.run(schedule.init(None, jax.tree.map(lambda x: x[0], pairs)), pairs)
      >>> print(schedule.read(state, "seen", jnp.eye(2)).tolist())
      [[3.0], [5.0]]
    """
    if window < period:
        raise ValueError(f"level {name!r}: window={window}: expected at least the period {period}")
    scale = size**-0.5 if scale is None else scale

    def init(key, data):
        return jnp.zeros((window, size)), jnp.zeros((window, outputs)), jnp.zeros((), jnp.int32)

    def update(state, pairs):
        keys, values, seen = state
        keys, values = (
            jnp.concatenate([old, new])[-window:] for old, new in ((keys, pairs.key), (values, pairs.value))
        )
        return keys, values, jnp.minimum(seen + period, window)

    def read(state, queries):
        if queries is None:
            return state
        keys, values, seen = state
        filled = jnp.arange(window) >= window - seen
        weights = jax.nn.softmax(scale * queries @ keys.T, where=filled, axis=-1)
        return jnp.where(seen > 0, weights, 0.0) @ values

    return Level(
        name,
        period,
        init,
        update,
        read,
        context="keys and values",
        objective="softmax regression, non-parametric",
        parts=lambda state: ((), ()),
    )


def by_backpropagation(loss: Loss, names: Sequence[str]) -> Flow:
    """Transfer by backpropagation: a flow whose context for each level is the gradient of ``loss`` at its parameters.

    All gradients come from one backward pass, at the state before the step. The period of a level decides how often it
    is updated. This is also transfer by generation of a context: the architecture generates the gradients that an
    optimizer compresses.

    Args:
      loss: ``loss({name: parameters}, data) -> scalar``.
      names: names of the levels.

    Examples:
      >>> import optax
      >>> from nl_jax.levels import from_optax
      >>> flow = by_backpropagation(lambda p, x: p["a"] * p["b"] * x, ["a", "b"])
      >>> one = jnp.ones(())
      >>> levels = [from_optax("a", optax.sgd(0.1), one), from_optax("b", optax.sgd(0.1), one, period=2)]
      >>> schedule = Schedule(levels, flow)
      >>> state = schedule.run(schedule.init(None, one), jnp.ones(2))
      >>> print({name: round(float(schedule.read(state, name)), 3) for name in ("a", "b")})
      {'a': 0.8, 'b': 0.81}
    """

    def flow(read, data):
        return jax.grad(loss)({name: read(name) for name in names}, data)

    return flow


def by_initialisation(
    schedule: Schedule,
    name: str,
    loss: Loss,
    *,
    key: Array | None = None,
    exact: bool = True,
) -> Loss:
    """Transfer by initialisation: the loss of a slow level that learns the initial parameters of a fast one (Eq. 28).

    This is MAML. The data of the returned loss are ``(support, query)``. The schedule is initialised, with the level
    ``name`` starting from the slow level's parameters, and runs over all of ``support`` [n, ...]; the result is
    ``loss(parameters, query)`` for the parameters that the level has then. Pass the returned loss to ``from_loss``.

    Args:
      schedule: the schedule that learns in context. All of its levels start anew at each evaluation.
      name: name of its level that starts from the slow level's parameters.
      loss: the loss after learning.
      key: random key for the initial states of the other levels.
      exact: whether the gradient flows through the updates. False makes every level ``first_order``.

    Examples:
      >>> import optax
      >>> from nl_jax.levels import from_loss
      >>> loss = lambda w, x: (w - x) ** 2
      >>> fast = Schedule([from_loss("fast", loss, jnp.zeros(()), optax.sgd(0.25))])
      >>> data = {"fast": jnp.ones(1)}, jnp.ones(())
      >>> print(jax.grad(by_initialisation(fast, "fast", loss))(jnp.zeros(()), data))  # 2 (w - 1) / 2²
      -0.5
      >>> print(jax.grad(by_initialisation(fast, "fast", loss, exact=False))(jnp.zeros(()), data))  # 2 (w - 1) / 2
      -1.0
    """
    if not exact:
        schedule = replace(schedule, levels=[first_order(level) for level in schedule.levels])

    def objective(params, data):
        support, query = data
        state = schedule.init(key, jax.tree.map(lambda x: x[0], support), {name: params})
        return loss(schedule.read(schedule.run(state, support), name), query)

    return objective


def restarted_by(level: Level, slow: str) -> Level:
    """Transfer by initialisation in a schedule: ``level`` restarts from ``slow`` after each update of it (Eq. 72).

    Examples:
      >>> import optax
      >>> from nl_jax.levels import from_optax
      >>> fast = restarted_by(from_optax("fast", optax.sgd(1.0), jnp.zeros(())), "slow")
      >>> slow = from_optax("slow", optax.sgd(1.0), jnp.zeros(()), period=3)
      >>> schedule = Schedule([fast, slow])
      >>> state = schedule.init(None, {"fast": jnp.ones(()), "slow": jnp.ones(())})
      >>> for _ in range(3):
      ...     state = schedule.step(state, {"fast": -jnp.ones(()), "slow": jnp.ones(())})
      ...     print(schedule.read(state, "fast"))
      1.0
      2.0
      -3.0
    """
    return replace(level, starts_from=slow)


def by_generation(generate: Callable[[PyTree, PyTree], PyTree], loss: Loss) -> Loss:
    """Transfer by generation: the loss of a level that generates weights for another.

    The data of the returned loss are ``(source, data)``, its value ``loss(generate(parameters, source), data)``. If
    ``generate`` is a network, the level is a hypernetwork. If ``generate`` runs a schedule whose optimizer has these
    parameters, the level is a learned optimizer.

    Args:
      generate: ``generate(parameters, source) -> weights``.
      loss: ``loss(weights, data) -> scalar``.

    Examples:
      >>> objective = by_generation(lambda p, code: p @ code, lambda w, data: (w * data[0] - data[1]) ** 2)
      >>> print(objective(jnp.array([1.0, 2.0]), (jnp.array([1.0, 1.0]), (2.0, 5.0))))
      1.0
    """

    def objective(params, data):
        source, target = data
        return loss(generate(params, source), target)

    return objective


def first_order(level: Level) -> Level:
    """The same level with first-order updates: its derivative takes the change made by an update for a constant.

    For ``W ← W - η g`` the derivative is that of W alone, as in first-order MAML. No gradient reaches the context.

    Examples:
      >>> double = Level("w", 1, lambda key, data: 1.0, lambda w, context: w * context[0])
      >>> for level in (double, first_order(double)):
      ...     print(jax.grad(level.update)(3.0, jnp.array([2.0])))
      2.0
      1.0
    """

    def update(state: Any, context: Any) -> Any:
        def keep(new, old):
            if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
                return new
            return jax.lax.stop_gradient(new) + (old - jax.lax.stop_gradient(old))

        return jax.tree.map(keep, level.update(state, context), state)

    return replace(level, update=update)
