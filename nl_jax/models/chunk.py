"""Learns one chunk of a text and checks the result, for streams and for sampling from a model that keeps learning."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from nl_jax.errors import Diverged
from nl_jax.levels import ScheduleState
from nl_jax.models.in_context import NestedLearner, learning_schedule
from nl_jax.modules.mixers import Memories, memory_part, with_memory_part


def learn_chunk(
    model: Any,
    tokens: Int[np.ndarray, "1 chunk"],
    targets: Int[np.ndarray, "1 chunk"],
    state: ScheduleState,
    frozen: frozenset[str] = frozenset(),
) -> tuple[ScheduleState, float, dict[str, float]]:
    """Reads and learns one chunk of one sequence.

    Args:
      model: a ``LanguageModel`` that learns in context.
      tokens, targets: as many as the shortest period, each int [1, chunk].
      state: the state before the chunk; it stays valid.
      frozen: names of levels that do not change.

    Returns:
      The state after the chunk; the loss in nats per token, each token predicted before it was learned; and the
      surprise by level name.

    Raises:
      Diverged: if the loss or the state of a level is not finite; the message names the level and the position.
    """
    new, loss, surprise, finite = step(model, tokens, targets, state, tuple(sorted(frozen)))
    if not finite:
        raise _diverged(state, new, float(loss), tokens.shape[1], frozen)
    return new, float(loss), {name: float(value) for name, value in surprise.items()}


@functools.partial(jax.jit, static_argnames="frozen")
def step(model: Any, tokens: Array, targets: Array, state: ScheduleState, frozen: tuple[str, ...]) -> Any:
    """Learns as `learn_chunk` does but does not raise: its last result is whether all results are finite."""
    schedule = learning_schedule(model, 1)
    new, (logits, surprise) = schedule.step(state, (tokens, targets, jnp.ones(tokens.shape)))
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))
    for name in frozen:
        new = replace_level(new, state, name)
    return new, loss, surprise, jnp.isfinite(loss) & all_finite((new.levels, new.pending))


def replace_level(state: ScheduleState, source: ScheduleState, name: str) -> ScheduleState:
    """``state`` with one level, and the contexts that wait for its next update, taken from ``source``.

    Values that belong to the position in the text stay as in ``state``: the convolution state and the position of the
    mixers, whose memories alone are replaced, and the mixers' state that a nested level stores.

    Raises:
      ValueError: for the level "mixers" if the mixers have no memories.
    """
    if name == "mixers":
        own, other = (memory_part(of.levels[name]) for of in (state, source))
        if own is None or other is None:
            raise ValueError(
                "level 'mixers': attention and an LSTM have no memories to freeze or reset; expected a level of the CMS"
            )
        memories = own._replace(**{part: getattr(other, part) for part in Memories._fields})
        return state._replace(levels=state.levels | {name: with_memory_part(state.levels[name], memories)})
    if isinstance(state.levels[name], NestedLearner):  # the mixers' state belongs to the text of its period
        level = source.levels[name]._replace(mixers=state.levels[name].mixers)
        return state._replace(levels=state.levels | {name: level})
    pending = {name: source.pending[name]} if name in source.pending else {}
    return state._replace(levels=state.levels | {name: source.levels[name]}, pending=state.pending | pending)


def all_finite(tree: Any) -> Array:
    """Whether all floating-point leaves are free of NaN and infinity."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x)) for x in leaves), jnp.asarray(True))


def diverged_levels(state: ScheduleState) -> list[str]:
    """Names of the levels whose state or pending contexts are not finite."""
    own = {name: (level, state.pending.get(name, ())) for name, level in state.levels.items()}
    return [name for name, tree in own.items() if not all_finite(tree)]


def _diverged(before: ScheduleState, after: ScheduleState, loss: float, chunk: int, frozen: frozenset[str]) -> Diverged:
    """The error for a chunk. A level that is not finite soon infects the others, so the state before it comes first."""
    position = int(before.step) * chunk
    culprits = diverged_levels(before)
    if not culprits:
        # if all levels were finite before, the one with the largest entries is the likeliest to have overflowed
        culprits = diverged_levels(after) or [name for name in before.levels if name not in frozen] or [*before.levels]
        culprits.sort(key=lambda name: -_largest(before.levels[name]))
    others = f" (and {', '.join(culprits[1:])})" if culprits[1:] else ""
    return Diverged(
        f"level {culprits[0]!r}{others} diverged in tokens {position} to {position + chunk - 1}, whose loss is "
        f"{loss:g}; the state before them is kept",
        level=culprits[0],
        position=position,
    )


def _largest(tree: Any) -> float:
    """The largest absolute value in the floating-point leaves."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact) and x.size]
    return max((float(jnp.max(jnp.abs(x))) for x in leaves), default=0.0)
