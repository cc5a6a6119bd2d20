"""A level: something that learns, with its own state, context, objective and update frequency (§3 of arXiv 2512.24695).

The *context* of a level is what it compresses into its state: gradients for an optimizer, keys and values for a memory,
data for a loss. It comes in steps, one context a step; the step is the unit of time of a schedule. A level with period
p is updated once every p steps, by one call of ``update`` with the contexts of those p steps:

``gather="stack"``  side by side, with a leading axis of size p (also for p = 1): a memory gets its chunk of keys and
                    values, a loss its batch;
``gather="sum"``    their sum, so that only one buffer is kept: the sum of the gradients of Eq. 71; narrow dtypes are
                    summed in 32 bits, except for p = 1.

Other levels see its state by ``read`` only: ``read(state, query)`` is what it answers to a query, and
``read(state, None)`` its parameters. A level that names others in ``needs`` or ``sees`` is updated with
``Context(own, answers)``: its own context and ``{name: read(state, None)}`` of each of them.

The constructors make the state a ``NamedTuple``, and every update is differentiable: the gradient of anything that
reads a level flows through all of its updates (``nl_jax.transfer.first_order`` stops it there).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nl_jax.memory import (
    OBJECTIVES,
    Architecture,
    Objective,
    Rule,
    apply_layer,
    chunk_decay,
    end_of_memory,
    learn_chunk,
)

if TYPE_CHECKING:
    from nl_jax.schedule import Schedule

PyTree = Any
State = Any
GATHERS = ("stack", "sum")


class Context(NamedTuple):
    """What a level is updated with that reads other levels."""

    own: PyTree  # its gathered contexts; None where nothing but the answers is its context
    answers: dict[str, PyTree]  # of the levels it needs or sees


@dataclass(frozen=True)
class Level:
    """One level; all functions are pure.

    Attributes:
      name: unique in a schedule.
      period: steps from one update to the next, at least 1.
      init: ``init(key, data) -> state``; data are those of one step, as ``Schedule.step`` gets them.
      update: ``update(state, context) -> state``, with the context gathered over a period, see above.
      read: ``read(state, query) -> answer``; the state itself by default.
      gather: "stack" or "sum".
      needs: levels whose state *at* step t its update at t needs; they are at least as fast, and updated before it.
      sees: levels that it sees as they were *before* step t; they are at most as fast.
      starts_from: a slower level that makes its initial state, anew whenever that level has been updated or has itself
        started anew (§3.3, by initialisation); its period divides the slower one's.
      start: ``start(answer) -> state``, the initial state from parameters such as those that ``starts_from`` answers.
      paths: of the parameters that it owns in a larger tree, "." between keys; two levels must not share one.
      context, objective: in words, for ``Schedule.tree``.
      parts: ``parts(state) -> (parameters, optimizer state)``, to count them.
      inner: the schedule that its objective runs, for ``Schedule.tree``.

    Raises:
      ValueError: for a period below 1 or an unknown ``gather``.

    Examples:
      >>> from nl_jax import Level, Schedule
      >>> mean = Level("mean", 4, init=lambda key, data: 0.0, update=lambda state, context: context.mean())
      >>> schedule = Schedule([mean])
      >>> state = schedule.init(None, {"mean": jnp.ones(())})
      >>> state = schedule.run(state, {"mean": jnp.arange(8.0)})
      >>> print(state.levels["mean"])
      5.5
    """

    name: str
    period: int
    init: Callable[[Any, PyTree], State]
    update: Callable[[State, PyTree], State]
    read: Callable[[State, PyTree], PyTree] = lambda state, query: state
    gather: str = "stack"
    needs: tuple[str, ...] = ()
    sees: tuple[str, ...] = ()
    starts_from: str | None = None
    start: Callable[[PyTree], State] | None = None
    paths: tuple[str, ...] = ()
    context: str = ""
    objective: str = ""
    parts: Callable[[State], tuple[PyTree, PyTree]] = lambda state: (state, ())
    inner: "Schedule | None" = None

    def __post_init__(self):
        """Checks what a level alone can be checked for."""
        if isinstance(self.period, bool) or not isinstance(self.period, int) or self.period < 1:
            raise ValueError(f"level {self.name!r}: period={self.period!r} must be an integer of at least 1")
        if self.gather not in GATHERS:
            raise ValueError(f"level {self.name!r}: gather={self.gather!r} must be one of {GATHERS}")
        if self.starts_from is not None and self.start is None:
            raise ValueError(f"level {self.name!r}: starts_from={self.starts_from!r} needs a start function")

    def empty(self, context: jax.ShapeDtypeStruct) -> Array:
        """What an array of its contexts is gathered in; sums are of 32 bits or wider, those of bools int32."""
        if self.gather == "stack":
            return jnp.zeros((self.period, *context.shape), context.dtype)
        kinds = ((jnp.unsignedinteger, jnp.uint32), (jnp.integer, jnp.int32), (jnp.bool_, jnp.int32))
        wide = next((wide for kind, wide in kinds if jnp.issubdtype(context.dtype, kind)), jnp.float32)
        return jnp.zeros(context.shape, jnp.promote_types(context.dtype, wide))


def own_buffers(tree: PyTree) -> PyTree:
    """The same arrays, each in a buffer of its own: a state whose leaves share one cannot be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


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
    inner: "Schedule | None" = None,
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


class Pair(NamedTuple):
    """A step's context of a memory; η and α are the level's own where they are None."""

    key: Float[Array, "*batch in"]
    value: Float[Array, "*batch out"]
    eta: Float[Array, "*batch"] | None = None  # learning rate
    alpha: Float[Array, "*batch"] | None = None  # retention


class MemoryState(NamedTuple):
    """Weights of a memory, a layer each: where it started, and what it has learned since."""

    initial: tuple[Float[Array, "..."], ...]  # W₀, which it also forgets toward
    change: tuple[Float[Array, "..."], ...]  # W - W₀, with the batch's axes in front


def from_memory(
    name: str,
    architecture: Architecture,
    *,
    objective: Objective | str = "l2",
    rule: Rule | None = None,
    period: int = 1,
    batch: tuple[int, ...] = (),
    initial: tuple[Array, ...] | None = None,
    eta: float = 1.0,
    alpha: float = 1.0,
) -> Level:
    """An associative memory that learns keys and values by chunks of a period, in closed form (Eq. 83-93).

    A step is a token, its context a ``Pair``; gradients are taken at the chunk's start. The state is a ``MemoryState``;
    ``read(state, queries)`` answers [*batch, n, in] by [*batch, n, out], ``read(state, None)`` gives the weights.

    Args:
      name, period: of the level; the period is the chunk size.
      architecture: of the memory, ``stack=1``.
      objective: what it is trained on, one of ``nl_jax.memory.OBJECTIVES`` or its name.
      rule: how gradients change it; ``Rule()`` by default.
      batch: leading axes; each of these memories learns its own pairs.
      initial: weights at the start, a layer each; by default zeros for a matrix, else random.
      eta, alpha: learning rate and retention of pairs that bring none.

    Raises:
      ValueError: for a stack of memories or an unknown objective.

    Examples:
      >>> from nl_jax import Schedule
      >>> from nl_jax.memory import Architecture, Rule
      >>> descent = Rule(delta=False)  # and so steep that each pair is learned at once
      >>> schedule = Schedule([from_memory("m", Architecture(4, 2), rule=descent, eta=1e6, period=2)])
      >>> pairs = {"m": Pair(jnp.eye(4), jnp.arange(8.0).reshape(4, 2))}
      >>> state = schedule.init(None, jax.tree.map(lambda x: x[0], pairs))
      >>> state = schedule.run(state, pairs)
      >>> print(schedule.read(state, "m", jnp.eye(4)[2:]).astype(jnp.float16))
      [[4. 5.]
       [6. 7.]]
    """
    if architecture.stack != 1:
        raise ValueError(f"level {name!r}: stack={architecture.stack} must be 1; batch=... gives more memories")
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(f"level {name!r}: objective={objective!r} must be one of {tuple(OBJECTIVES)}")
        title, target = objective, OBJECTIVES[objective]
    else:
        title, target = "a loss of answer and value", objective
    deep, shapes = architecture.depth > 1, architecture.shapes()

    def start(initial):
        initial = own_buffers(tuple(initial))
        return MemoryState(initial, tuple(jnp.zeros((*batch, *w.shape), w.dtype) for w in initial))

    def init(key, data):
        if initial is not None:
            return start(initial)
        if not deep:
            return start(tuple(jnp.zeros(shape) for shape in shapes))
        keys = jax.random.split(key, len(shapes))
        return start(
            tuple(jax.random.normal(k, shape) / shape[-2] ** 0.5 for k, shape in zip(keys, shapes, strict=True))
        )

    def weights(state):
        return jax.tree.map(jnp.add, state.initial, state.change)

    def update(state, pairs):
        # the engine's leading axes are a batch and heads, tokens come before channels
        def tokens(x, axis):
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(-1, 1, *x.shape[len(batch) :])

        def heads(weights):
            return tuple(
                jnp.broadcast_to(w, (*batch, *shape)).reshape(-1, 1, *shape)
                for w, shape in zip(weights, shapes, strict=True)
            )

        key, value = tokens(pairs.key, -2), tokens(pairs.value, -2)
        one = jnp.ones(key.shape[:-1], key.dtype)
        rate = eta * one if pairs.eta is None else tokens(pairs.eta, -1)
        retention = alpha * one if pairs.alpha is None else tokens(pairs.alpha, -1)
        learning = rule or Rule()
        chunks = learn_chunk(
            architecture,
            target,
            learning,
            anchor=heads(state.initial),
            change=heads(state.change),
            momentum=None,
            boundary=heads(weights(state)),
            keys=key,
            values=value[..., None, :, :] if deep else value,
            eta=rate,
            alpha=retention,
            damping=one,
            decay=chunk_decay(retention, None),
            chunk_size=period,
            at_boundary=True,
        )
        ends, _ = end_of_memory(architecture, target, learning, chunks)
        return state._replace(change=tuple(end.reshape(old.shape) for end, old in zip(ends, state.change, strict=True)))

    def read(state, queries):
        if queries is None:
            return weights(state)
        answer = architecture(apply_layer(weights(state)), queries)
        return answer[..., 0, :, :] if deep else answer

    return Level(
        name,
        period,
        init,
        update,
        read,
        start=start,
        context="keys and values",
        objective=title,
        parts=lambda state: (state.change, ()),
    )


def _under(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of the roots or lies below one; "" is the whole tree."""
    return any(root == "" or path == root or path.startswith(root + ".") for root in roots)


def _leaf_name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def select_leaves(tree: PyTree, paths: tuple[str, ...], level: str = "") -> dict[str, Any]:
    """The leaves of ``tree`` at or below ``paths`` (keys joined by "."), by their full path.

    Raises:
      ValueError: for a path with nothing below it; it names ``level``.

    Examples:
      >>> select_leaves({"a": {"w": 1, "b": 2}, "c": 3}, ("a.w", "c"))
      {'a.w': 1, 'c': 3}
    """
    leaves = {_leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for root in paths:
        if not any(_under(name, (root,)) for name in leaves):
            raise ValueError(f"level {level!r}: no parameter at {root!r}; there are {', '.join(leaves)}")
    return {name: leaf for name, leaf in leaves.items() if _under(name, paths)}


def replace_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """``tree`` with the leaves that ``leaves`` names by path.

    Examples:
      >>> replace_leaves({"a": {"w": 1, "b": 2}, "c": 3}, {"a.w": 10})
      {'a': {'b': 2, 'w': 10}, 'c': 3}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(_leaf_name(path), leaf), tree)
