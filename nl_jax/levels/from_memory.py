"""A level that is an associative memory, learned by chunks of its period in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.levels.level import Level
from nl_jax.memory import (
    OBJECTIVES,
    Architecture,
    Layers,
    Memory,
    Objective,
    Rule,
    Tokens,
    Weights,
    apply_layer,
    chunk_decay,
    end_of_memory,
    learn_chunk,
    shrink,
)
from nl_jax.trees import own_buffers


class Pair(NamedTuple):
    """The context that a memory gets at a step; where η or α is None, the level's own counts.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.levels import Pair
      >>> pair = Pair(key=jnp.ones(4), value=jnp.ones(2), eta=jnp.array(0.5))
      >>> pair.alpha is None  # the level's own retention counts
      True
    """

    key: Float[Array, "*batch in"]
    value: Float[Array, "*batch out"]
    eta: Float[Array, "*batch"] | None = None  # learning rate
    alpha: Float[Array, "*batch"] | None = None  # retention


class MemoryLevelState(NamedTuple):
    """Weights of a memory, a layer each: those it started with, and what it has learned since.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.levels import Pair, Schedule, from_memory
      >>> from nl_jax.memory import Architecture
      >>> schedule = Schedule([from_memory("m", Architecture(4, 2), period=2)])
      >>> state = schedule.init(None, {"m": Pair(jnp.ones(4), jnp.ones(2))}).levels["m"]
      >>> [w.shape for w in state.w0], [w.shape for w in state.delta_w]
      ([(4, 2)], [(4, 2)])
    """

    w0: Layers  # W₀, the weights at the start, which it also forgets toward
    delta_w: Layers  # ΔW = W - W₀, with the batch's axes in front


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

    A step is a token, its context is a ``Pair``, and its gradient is taken at the chunk's start. The state is a
    ``MemoryLevelState``; ``read(state, queries)`` maps [*batch, n, in] to [*batch, n, out], and ``read(state, None)``
    gives the weights.

    Args:
      name, period: of the level; the period is the chunk size.
      architecture: of the memory, ``stack=1``.
      objective: what it is trained on, one of ``nl_jax.memory.OBJECTIVES`` or its name.
      rule: how gradients change it; ``Rule()`` by default.
      batch: leading axes; each of these memories learns its own pairs.
      initial: weights at the start, an array for each layer, of shapes ``architecture.shapes()`` (a matrix has one,
        [in, out]); by default zeros for a matrix, else random.
      eta, alpha: learning rate and retention of pairs that bring none.

    Raises:
      ValueError: for a stack of memories, an unknown objective, or initial weights of other shapes.

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
        raise ValueError(f"level {name!r}: stack={architecture.stack}: expected 1; batch=... gives more memories")
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(f"level {name!r}: objective={objective!r}: expected one of {tuple(OBJECTIVES)}")
        title, target = objective, OBJECTIVES[objective]
    else:
        title, target = "a loss of answer and value", objective
    memory = Memory(architecture, target, rule or Rule(), period)
    shapes = architecture.shapes()

    def start(initial):
        given = tuple(jnp.shape(layer) for layer in initial)
        if given != tuple(shapes):
            raise ValueError(f"level {name!r}: initial weights of shapes {given}; expected {tuple(shapes)}, [in, out]")
        w0 = own_buffers(tuple(initial))
        return MemoryLevelState(w0, tuple(jnp.zeros((*batch, *w.shape), w.dtype) for w in w0))

    def init(key, data):
        return start(_initial_weights(key, shapes) if initial is None else initial)

    def weights(state):
        return jax.tree.map(jnp.add, state.w0, state.delta_w)

    def read(state, queries):
        if queries is None:
            return weights(state)
        answer = architecture(apply_layer(weights(state)), queries)
        return answer if architecture.depth == 1 else answer[..., 0, :, :]

    return Level(
        name,
        period,
        init,
        lambda state, pairs: state._replace(delta_w=_learned(memory, state, pairs, batch, eta, alpha)),
        read,
        start=start,
        context="keys and values",
        objective=title,
        parts=lambda state: (state.delta_w, ()),
    )


def _initial_weights(key: Array, shapes: tuple[tuple[int, ...], ...]) -> Layers:
    """Zeros for a matrix, random weights for an MLP."""
    if len(shapes) == 1:
        return (jnp.zeros(shapes[0]),)
    keys = jax.random.split(key, len(shapes))
    return tuple(jax.random.normal(k, shape) / shape[-2] ** 0.5 for k, shape in zip(keys, shapes, strict=True))


def _learned(
    memory: Memory, state: MemoryLevelState, pairs: Pair, batch: tuple[int, ...], eta: float, alpha: float
) -> Layers:
    """ΔW after the pairs of a period, [period, *batch, ...], as one chunk.

    The engine's leading axes are here the batch, as one axis, and an axis of size 1; tokens come before channels.
    """
    shapes = memory.architecture.shapes()

    def tokens(x, axis):
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(-1, 1, *x.shape[len(batch) :])

    def over_batch(weights):
        return tuple(
            jnp.broadcast_to(w, (*batch, *shape)).reshape(-1, 1, *shape)
            for w, shape in zip(weights, shapes, strict=True)
        )

    key, value = tokens(pairs.key, -2), tokens(pairs.value, -2)
    one = jnp.ones(key.shape[:-1], key.dtype)
    rate = eta * one if pairs.eta is None else tokens(pairs.eta, -1)
    retention = alpha * one if pairs.alpha is None else tokens(pairs.alpha, -1)
    value = value if memory.architecture.depth == 1 else value[..., None, :, :]
    w_at_boundary = over_batch(jax.tree.map(jnp.add, state.w0, state.delta_w))
    chunks = learn_chunk(
        memory,
        Weights(over_batch(state.w0), over_batch(state.delta_w), None, w_at_boundary),
        Tokens(key, value, rate, retention, None, chunk_decay(retention, None)),
        starts_at_boundary=True,
    )
    ends, _ = end_of_memory(memory, chunks)
    if chunks[-1].excess is not None:
        ends = shrink(ends, jnp.sum(chunks[-1].excess, axis=-1))
    return tuple(end.reshape(old.shape) for end, old in zip(ends, state.delta_w, strict=True))
