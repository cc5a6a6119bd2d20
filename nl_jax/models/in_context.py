"""A language model whose continuum memory learns in context (§7, Eq. 70-74): the regimes ``online`` and ``meta``.

Text comes in chunks of the shortest period. A chunk is read with the weights that its predecessors have left; then its
own next-token loss gives, by one backward pass, the gradient of every block, summed until the block is due (Eq. 71).
So what a token is answered with never depends on later tokens. Every sequence has weights of its own, which start at
the model's and are float32 (or wider) whatever dtype the model computes in. All of it is one ``nl_jax.Schedule``, a
chunk a step:

``mixers``   period 1: the state of the sequence mixers;
``cms_ℓ``    block ℓ of every layer: its weights, moved by an optax transformation once a period.

In the ``meta`` regime the gradient of pre-training flows through all updates; in the ``online`` regime it takes the
updates' gradients for constants (first order).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.levels import Level, from_optax
from nl_jax.modules import FeedForward
from nl_jax.optim import clip_by_norm, smooth_norm
from nl_jax.schedule import Schedule, ScheduleState

Weights = Any  # of a level: a FeedForward [layers, batch, ...]; nested ones also hold what faster ones start from


def learning_schedule(
    model: Any, batch_size: int, optimizers: Sequence[optax.GradientTransformation] | None = None
) -> Schedule:
    """The schedule of a model's levels; a step's data are ``(tokens, targets, mask)``, each [batch, chunk].

    ``step`` and ``run`` return the state and ``(logits, surprise)``: logits [..., batch, chunk, vocab], and by name the
    norm of each block's gradient, and of the memories' change, in the chunk.

    Args:
      model: a ``LanguageModel`` whose ``cms_regime`` is "online" or "meta".
      batch_size: sequences.
      optimizers: of each level, for one sequence's weights; by default the gradient, cut to the length 1, times the
        level's learning rate ``exp(model.cms_log_rate[ℓ])``. In the ``meta`` regime updates are differentiated, also at
        a gradient of zero (a chunk without targets): use ``nl_jax.optim.clip_by_norm``, and ``eps_root`` of Adam.

    Raises:
      ValueError: for periods that the shortest does not divide, or that the nested variant cannot nest.
    """
    config, rates = model.config, jnp.exp(_wide(model.cms_log_rate[...]))
    periods, nested = config.cms_periods, config.cms_variant == "nested"
    chunk = min(periods)
    if optimizers is None:
        optimizers = [optax.chain(clip_by_norm(1.0), optax.scale(-rate)) for rate in rates]
    own = [_of_each_sequence(level, batch_size) for level in model.blocks.cms.levels]
    slower = sorted(range(len(periods)), key=lambda i: periods[i])  # the fastest first
    levels = [
        Level(
            "mixers",
            1,
            init=lambda key, data: model.init_state(batch_size),
            update=lambda state, context: jax.tree.map(lambda c: c[0], context),
            context="tokens",
            objective="of the memories",
        )
    ]

    def with_starts(blocks: Sequence[FeedForward]) -> dict[int, Weights]:
        """By level: its block, and where levels are nested also where the next faster one starts."""
        found: dict[int, Weights] = {}
        start: Weights = None
        for i in slower:
            # a copy, so that no buffer is in the state twice and it can be donated
            found[i] = start = {"own": blocks[i], "start": _copy(start)} if nested and found else blocks[i]
        return found

    for i, weights in with_starts(own).items():
        if periods[i] % chunk:
            raise ValueError(f"level cms_{i}: its period {periods[i]} must be a multiple of the shortest, {chunk}")
        level = from_optax(
            f"cms_{i}", _per_sequence(optimizers[i]), weights, period=periods[i] // chunk, objective="next token"
        )
        if nested and i != slower[-1]:
            level = _started_by(level, f"cms_{slower[slower.index(i) + 1]}")
        levels.append(level)

    def flow(read, data):
        tokens, targets, mask = data
        blocks = own_blocks([read(f"cms_{i}") for i in range(len(periods))])
        memories = read("mixers")

        def loss(blocks, mixers):
            logits, mixers = with_levels(model, blocks)(tokens, mixers, at_boundary=True)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            # a state keeps its dtypes, whatever the model computes in
            mixers = jax.tree.map(lambda new, old: new.astype(old.dtype), mixers, memories)
            return jnp.sum(nats * mask), (logits, mixers)

        # in pre-training what lies inside a chunk is computed again, only the states between chunks are kept
        gradients, (logits, mixers) = jax.checkpoint(jax.grad(loss, has_aux=True))(blocks, memories)
        surprise = {f"cms_{i}": smooth_norm(gradient) for i, gradient in enumerate(gradients)}
        surprise["mixers"] = smooth_norm(jax.tree.map(jnp.subtract, learned(mixers), learned(memories)))
        if config.cms_regime == "online":
            gradients = jax.lax.stop_gradient(gradients)
        contexts = {f"cms_{i}": gradient for i, gradient in with_starts(gradients).items()}
        return {"mixers": mixers, **contexts}, (logits, surprise)

    return Schedule(levels, flow, has_aux=True)


def initial_state(model: Any, batch_size: int) -> ScheduleState:
    """Of ``learning_schedule(model, batch_size)``, before a text."""
    blank = jnp.zeros((batch_size, min(model.config.cms_periods)), jnp.int32)
    return learning_schedule(model, batch_size).init(None, (blank, blank, jnp.ones(blank.shape)))


def read_and_learn(
    model: Any,
    tokens: Int[Array, "batch time"],
    targets: Int[Array, "batch time"],
    mask: Float[Array, "batch time"] | None = None,
    state: ScheduleState | None = None,
    optimizers: Sequence[optax.GradientTransformation] | None = None,
) -> tuple[Float[Array, "batch time vocab"], ScheduleState]:
    """Logits of the token after each, learning from ``targets`` chunk by chunk; ``state=None`` starts a text.

    Args:
      model, optimizers: as for ``learning_schedule``.
      tokens, targets: a multiple of the shortest period long; logits depend on the targets of earlier chunks only.
      mask: 1 where a target counts; None for all.
      state: what the call before returned; it then holds whole chunks.

    Raises:
      ValueError: for a length that is not a multiple of the shortest period.
    """
    batch, time = tokens.shape
    chunk = min(model.config.cms_periods)
    if time % chunk:
        raise ValueError(f"{time} tokens: level cms of period {chunk} needs a multiple of {chunk}")
    schedule = learning_schedule(model, batch, optimizers)
    mask = jnp.ones(tokens.shape) if mask is None else mask
    data = tuple(
        jnp.moveaxis(x.reshape(batch, time // chunk, chunk), 1, 0) for x in (tokens, targets, jnp.asarray(mask))
    )
    if state is None:
        last, (logits, _) = schedule.run(schedule.init(None, jax.tree.map(lambda x: x[0], data)), data, open_end=True)
    else:
        last, (logits, _) = jax.lax.scan(schedule.step, state, data)
    return jnp.moveaxis(logits, 0, 1).reshape(batch, time, -1), last


def learned(mixers: Any) -> Any:
    """What the sequence mixers' memories have learned, of their state; nothing of attention's."""
    return getattr(mixers, "change", ())


def with_learned(model: Any, state: ScheduleState) -> Any:
    """The model with the blocks that a state holds; its sequence mixers go on from ``state.levels["mixers"]``."""
    levels = [state.levels[f"cms_{i}"].params for i in range(len(model.config.cms_periods))]
    return with_levels(model, own_blocks(levels))


def own_blocks(weights: Sequence[Weights]) -> list[FeedForward]:
    """The blocks of levels, without what nested ones know of where faster ones start."""
    return [w["own"] if isinstance(w, dict) else w for w in weights]


def with_levels(model: Any, levels: Sequence[FeedForward]) -> Any:
    """The model with these blocks in its continuum memory, in the dtypes of its own."""
    leaves, structure = jax.tree.flatten(model)
    copy = jax.tree.unflatten(structure, leaves)
    own = model.blocks.cms.levels
    cast = [jax.tree.map(lambda new, old: new.astype(old.dtype), *pair) for pair in zip(levels, own, strict=True)]
    copy.blocks.cms.levels = nnx.List(cast)
    return copy


def _of_each_sequence(level: FeedForward, batch_size: int) -> FeedForward:
    """[layers, ...] -> [layers, batch, ...], in float32 or wider: small steps would be lost in bfloat16."""
    return jax.tree.map(lambda w: jnp.broadcast_to(_wide(w)[:, None], (len(w), batch_size, *w.shape[1:])), level)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _per_sequence(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs it for each sequence alone, on leaves [layers, batch, ...]; its state has a leading axis [batch, ...]."""
    return optax.GradientTransformation(
        jax.vmap(transformation.init, in_axes=1),
        jax.vmap(transformation.update, in_axes=(1, 0, 1), out_axes=(1, 0)),
    )


def _started_by(level: Level, slow: str) -> Level:
    """The level, started anew from what a slower nested one holds for it (Eq. 72)."""
    start = level.start
    assert start is not None
    return replace(level, starts_from=slow, start=lambda answer: start(_copy(answer["start"])))
