"""The compiled programs by which a continual learner learns, which wait for nothing until all of them have run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from nl_jax.errors import Diverged
from nl_jax.levels import Schedule, ScheduleState
from nl_jax.models.chunk import all_finite
from nl_jax.models.language_model import LanguageModel
from nl_jax.pretrained.level_stacking import Chunk, Pull, Rates, StackedModel
from nl_jax.pretrained.preconditioner import sparing
from nl_jax.pretrained.stacked_level import StackedLevel

AT_ONCE = 16  # batches of a program


class Progress(NamedTuple):
    """How far learning has come. After a chunk that gave a loss or a level that is not finite nothing changes."""

    state: ScheduleState
    finite: dict[str, Bool[Array, ""]]  # by level: whether it is finite after the last chunk
    good: Bool[Array, ""]  # whether all levels and the loss are
    chunks: Int[Array, ""]  # number of chunks learned
    nats: Float[Array, ""]  # their summed loss
    surprise: dict[str, Float[Array, ""]]  # by level: their summed norms of gradients


def started(state: ScheduleState) -> Progress:
    """The progress before the first chunk."""
    finite = {name: jnp.asarray(True) for name in state.levels}
    zeros = {name: jnp.zeros(()) for name in state.levels}
    return Progress(state, finite, jnp.asarray(True), jnp.zeros((), jnp.int32), jnp.zeros(()), zeros)


def unrated(levels: Sequence[StackedLevel]) -> tuple[StackedLevel, ...]:
    """The levels without their learning rates and ridges, for which programs are compiled."""
    return tuple(dataclasses.replace(level, learning_rate=1.0, ridge=1.0) for level in levels)


@functools.partial(jax.jit, static_argnames="levels")
def learn_batches(
    model: LanguageModel,
    levels: tuple[StackedLevel, ...],
    rates: Mapping[str, Rates],
    progress: Progress,
    batches: Chunk,
    count: Int[Array, ""],
    pull: dict[str, Pull] | None = None,
    before: Any = None,
) -> Progress:
    """Learns the first ``count`` of some batches of texts, each a chunk long: leaves of ``batches`` are [n, ...].

    ``before`` is the mixers' state before each of them.
    """
    schedule = StackedModel(model, levels, rates).schedule()

    def body(carry):
        i, progress = carry
        batch = jax.tree.map(lambda leaf: leaf[i], batches)
        return i + 1, _advanced(schedule, progress, batch._replace(pull=pull, state=before))[0]

    return jax.lax.while_loop(lambda carry: (carry[0] < count) & carry[1].good, body, (0, progress))[1]


@functools.partial(jax.jit, static_argnames=("levels", "keep"))
def learn_chunk(
    model: LanguageModel,
    levels: tuple[StackedLevel, ...],
    rates: Mapping[str, Rates],
    progress: Progress,
    chunk: Chunk,
    keep: bool,
    pull: dict[str, Pull] | None = None,
) -> tuple[Progress, Any]:
    """Learns one chunk of a batch of longer texts. Returns also the mixers' state after it, or None."""
    progress, mixers = _advanced(StackedModel(model, levels, rates).schedule(), progress, chunk._replace(pull=pull))
    return progress, mixers if keep else None


def _advanced(schedule: Schedule, progress: Progress, chunk: Chunk) -> tuple[Progress, Any]:
    new, read = schedule.step(progress.state, chunk)
    nats = jnp.sum(read.losses * chunk.mask)
    finite = {name: all_finite((level, new.pending.get(name, ()))) for name, level in new.levels.items()}
    good = functools.reduce(jnp.logical_and, finite.values(), jnp.isfinite(nats))
    surprise = {name: progress.surprise[name] + value for name, value in read.surprise.items()}
    after = Progress(new, finite, good, progress.chunks + 1, progress.nats + nats, surprise)
    unchanged = progress._replace(finite=finite, good=good)
    after = jax.tree.map(lambda a, b: jnp.where(good, a, b), after, unchanged)
    return jax.tree.map(lambda a, b: jnp.where(progress.good, a, b), after, progress), read.state


def diverged(position: int, finite: dict[str, Any]) -> Diverged:
    """The error for a chunk after which not all levels are finite."""
    name = next((name for name, good in finite.items() if not good), next(iter(finite)))
    return Diverged(
        f"level {name!r} diverged in chunk {position}; the state before it is kept", level=name, position=position
    )


@functools.partial(jax.jit, static_argnames="levels")
def protect_chunk(
    model: LanguageModel, levels: tuple[StackedLevel, ...], state: ScheduleState, chunk: Chunk
) -> tuple[ScheduleState, Any]:
    """The state after `StackedModel.protect`, and that of the mixers."""
    return StackedModel(model, levels).protect(state, chunk)


_sparing = jax.jit(sparing)


def sparing_rates(levels: Sequence[StackedLevel], state: ScheduleState) -> dict[str, Rates]:
    """The levels' rates; of those that have protected texts with what spares the texts' inputs.

    That decomposes the covariance of each matrix. "preconditioned" levels need none.
    """
    rates = {}
    for level in levels:
        own = Rates(level.rate, level.ridge)
        seen = state.levels[level.name].seen
        if level.rule != "preconditioned" and any(np.any(matrix.inputs) for matrix in seen.values()):
            own = own._replace(sparing={name: _sparing(matrix, level.ridge) for name, matrix in seen.items()})
        rates[level.name] = own
    return rates


@functools.partial(jax.jit, static_argnames="levels")
def squared_gradients(
    model: LanguageModel,
    levels: tuple[StackedLevel, ...],
    state: ScheduleState,
    texts: Chunk,
    count: Int[Array, ""],
    before: Any = None,
) -> dict[str, Any]:
    """By level and matrix: the sum over texts of the squared gradient of each text's loss, as in the Fisher matrix.

    Leaves of ``texts`` are [n, 1, time]; the first ``count`` count. ``before`` is the mixers' state before each.
    """
    stacked = StackedModel(model, levels)
    total = {level.name: jax.tree.map(jnp.zeros_like, state.levels[level.name].change) for level in levels}

    def body(carry):
        i, total = carry
        text = jax.tree.map(lambda leaf: leaf[i], texts)
        contexts, _ = stacked.flow(lambda name: state.levels[name].change, text._replace(state=before))
        gradients = {name: context[0] for name, context in contexts.items()}
        return i + 1, jax.tree.map(lambda t, g: t + g * g, total, gradients)

    return jax.lax.while_loop(lambda carry: carry[0] < count, body, (0, total))[1]


@functools.partial(jax.jit, static_argnames="keep")
def losses_of(model: LanguageModel, chunk: Chunk, keep: bool) -> tuple[Float[Array, ""], Any]:
    """The summed nats of a chunk's targets, and the mixers' state after it, or None."""
    logits, mixers = model(chunk.tokens, chunk.state)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, chunk.targets)
    return jnp.sum(losses * chunk.mask), mixers if keep else None


@functools.partial(jax.jit, static_argnames="levels")
def changed(model: LanguageModel, levels: tuple[StackedLevel, ...], state: ScheduleState) -> LanguageModel:
    """The model with what its levels have learned in its weights."""
    return StackedModel(model, levels).changed(state)
