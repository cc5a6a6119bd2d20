"""A language model whose continuum memory learns in context (§7, Eq. 70-74): the regimes ``online`` and ``meta``.

Text is processed in chunks as long as the shortest period. The model reads a chunk with the weights learned from
earlier chunks. Then one backward pass of the chunk's own next-token loss gives the gradient of every block, and these
gradients are summed until the block is due (Eq. 71). So the logits at a token never depend on later tokens. Every
sequence has its own copy of the weights, which starts at the model's weights and is float32 (or wider) whatever dtype
the model computes in. All of this is one ``nl_jax.Schedule``, in which a step is a chunk, with these levels:

``mixers``   the state of the sequence mixers, with period 1;
``cms_ℓ``    the weights of block ℓ of every layer, updated once per period by an optax transformation.

In the ``meta`` regime the gradient of pre-training flows through all updates. In the ``online`` regime it treats the
gradients inside the updates as constants (first order).

In the ``nested`` variant a slow level also learns the initial weights of the next faster level (Eq. 72). In the
``meta`` regime it does so with the exact gradient (§3.3): at the end of its period it runs the faster levels again over
the text of the period, and differentiates the summed loss with respect to their initial weights, through their updates
and the mixers' states. Its own block is updated with the sum of the chunks' gradients (Eq. 71). So each slower level
reads the text of its period once more, and within that reading every level in between reads its periods again; the
states between chunks are kept. The program of a pre-training step grows threefold with the second level, and more than
fourfold again with the third.

``nested_first_order`` and the ``online`` regime update the initial weights with the gradients of the faster block at
the weights with which each chunk was read, as if there were no updates in between. This needs no second reading.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.levels import Level, Schedule, ScheduleState, from_optax
from nl_jax.modules import FeedForward
from nl_jax.modules.continuum_memory import OfEachSequence
from nl_jax.modules.mixers import memory_part
from nl_jax.ops import widen
from nl_jax.optim import clip_by_norm, smooth_norm
from nl_jax.parallel.activations import constrain, gather_parameters
from nl_jax.trees import own_buffers, shallow_copy

# The weights of a level: a FeedForward [layers, batch, ...]; nested levels also hold the next faster level's start.
Weights = Any


def learning_schedule(
    model: Any, batch_size: int, optimizers: Sequence[optax.GradientTransformation] | None = None
) -> Schedule:
    """The schedule of a model's levels. The data of a step are ``(tokens, targets, mask)``, each [batch, chunk].

    ``step`` and ``run`` return the state and ``(logits, surprise)``: logits [..., batch, chunk, vocab], and by level
    name the surprise of the chunk, which is the norm of a block's gradient, and for the mixers that of the change in
    their memories.

    Args:
      model: a ``LanguageModel`` whose ``cms_regime`` is "online" or "meta".
      batch_size: number of sequences.
      optimizers: one optax transformation for each level, which updates the weights of one sequence. The default is
        gradient descent with the gradient clipped to norm 1 and the level's rate ``exp(model.cms_log_rate[ℓ])``. The
        ``meta`` regime differentiates updates, even at a gradient of zero (a chunk without targets), so use
        ``nl_jax.optim.clip_by_norm``, and set ``eps_root`` of Adam.

    Raises:
      ValueError: if a period is not a multiple of the shortest, or the nested variant cannot nest the periods.
    """
    config, rates = model.config, jnp.exp(widen(model.cms_log_rate[...]))
    for i, period in enumerate(config.cms_periods):
        if period % min(config.cms_periods):
            raise ValueError(
                f"level cms_{i}: period {period}; expected a multiple of the shortest, {min(config.cms_periods)}"
            )
    if optimizers is None:
        optimizers = [optax.chain(clip_by_norm(1.0), optax.scale(-rate)) for rate in rates]
    return _Maker(model, batch_size, [_per_sequence(optimizer) for optimizer in optimizers]).schedule()


class NestedLearner(NamedTuple):
    """State of a nested level that learns the initial weights of faster levels with the exact gradient."""

    params: Weights
    optimizer: optax.OptState
    mixers: Any  # state of the mixers when the level's period began


@dataclass(frozen=True)
class _Maker:
    """Builds the schedule of all levels, and the schedules of faster levels that slow nested levels run again."""

    model: Any
    batch_size: int
    optimizers: list[optax.GradientTransformation]  # one for each level, for the weights of all sequences

    @property
    def order(self) -> list[int]:
        """Indices of the levels, the fastest first."""
        periods = self.model.config.cms_periods
        return sorted(range(len(periods)), key=lambda i: periods[i])

    @property
    def nested(self) -> bool:
        return self.model.config.cms_variant in ("nested", "nested_first_order")

    def exact(self, i: int) -> bool:
        """Whether a level learns the initial weights of faster levels with the exact gradient."""
        config = self.model.config
        return config.cms_variant == "nested" and config.cms_regime == "meta" and i != self.order[0]

    def steps(self, i: int) -> int:
        """The period of a level in chunks."""
        return self.model.config.cms_periods[i] // min(self.model.config.cms_periods)

    def schedule(self, slow: int | None = None, fixed: Mapping[int, FeedForward] | None = None) -> Schedule:
        """The schedule of all levels or, given ``slow``, of the levels faster than that one.

        Args:
          slow: index of a level. The schedule then has an additional level "period", whose state after the period is
            the summed loss, and the summed gradient of the slow block at the weights with which each chunk was read.
          fixed: blocks of the levels that are not in the schedule, by index.
        """
        fixed = fixed or {}
        own = {i: _of_each_sequence(level, self.batch_size) for i, level in enumerate(self.model.blocks.cms.levels)}
        inside = [i for i in self.order if i not in fixed]
        levels = [
            self.mixers(),
            *(self.level(i, weights, inside, fixed) for i, weights in self.starts(own, inside).items()),
        ]
        if slow is not None:
            levels.append(self.sums_of_period(slow, fixed[slow]))

        def flow(read, data):
            blocks = own_blocks([fixed[i] if i in fixed else read(f"cms_{i}") for i in own])
            memories = read("mixers")
            # the backward pass of pre-training recomputes each chunk, so only the states between chunks are kept
            (nats, (logits, mixers)), gradients = jax.checkpoint(self.descend)(blocks, memories, data)
            plain = None if slow is None else gradients[slow]
            surprise = {f"cms_{i}": smooth_norm(gradient) for i, gradient in enumerate(gradients)}
            surprise["mixers"] = smooth_norm(jax.tree.map(jnp.subtract, learned(mixers), learned(memories)))
            if self.model.config.cms_regime == "online":
                gradients = jax.lax.stop_gradient(gradients)
            gradients = self.starts(gradients, inside)
            contexts = {f"cms_{i}": data if self.exact(i) else gradient for i, gradient in gradients.items()}
            if slow is not None:
                return {"mixers": mixers, **contexts, "period": (nats, plain)}, ()
            return {"mixers": mixers, **contexts}, (logits, surprise)

        return Schedule(levels, flow, has_aux=True)

    def descend(self, blocks: list[FeedForward], memories: Any, data: Any) -> Any:
        """The summed loss of one chunk, (logits, the mixers' state after it), and the gradient of every block."""
        tokens, targets, mask = data

        def loss(blocks):
            logits, mixers = with_levels(self.model, blocks)(tokens, memories, at_boundary=True)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            # a state keeps its dtypes, whatever the model computes in
            return jnp.sum(nats * mask), (logits, _like(mixers, memories))

        return jax.value_and_grad(loss, has_aux=True)(blocks)

    def starts(self, blocks: Any, inside: list[int]) -> dict[int, Weights]:
        """By level, the weights of its block, for nested levels with the initial weights of the next faster level."""
        found: dict[int, Weights] = {}
        start: Weights = None
        for i in inside:
            # a copy, so that no two leaves share a buffer and the state can be donated
            found[i] = start = {"own": blocks[i], "start": own_buffers(start)} if self.nested and found else blocks[i]
        return found

    def sums_of_period(self, slow: int, block: FeedForward) -> Level:
        """The level "period", whose state ends as the summed loss of a period and the summed gradient of a block."""
        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, block)
        return Level(
            "period",
            self.steps(slow),
            init=lambda key, data: zero,
            update=lambda state, total: _like(total, zero),
            gather="sum",
        )

    def mixers(self) -> Level:
        return Level(
            "mixers",
            1,
            init=lambda key, data: self.model.init_state(self.batch_size),
            update=lambda state, context: jax.tree.map(lambda c: c[0], context),
            start=own_buffers,
            context="tokens",
            objective="of the memories",
        )

    def level(self, i: int, weights: Weights, inside: list[int], fixed: Mapping[int, FeedForward]) -> Level:
        """The level of a block, in the schedule of the levels ``inside``; the blocks of all others are ``fixed``."""
        slower = inside[inside.index(i) + 1 :]
        if self.exact(i):
            level = self.exact_level(i, weights, slower, fixed)
        else:
            level = from_optax(f"cms_{i}", self.optimizers[i], weights, period=self.steps(i), objective="next token")
            begin = level.start
            assert begin is not None
            if self.nested and i != self.order[-1]:
                level = replace(level, start=lambda answer: begin(own_buffers(answer["start"])))
        return replace(level, starts_from=f"cms_{slower[0]}") if self.nested and slower else level

    def exact_level(self, i: int, weights: Weights, slower: list[int], fixed: Mapping[int, FeedForward]) -> Level:
        """A nested level that reruns the faster levels over its period and differentiates through their updates."""
        top = f"cms_{self.order[self.order.index(i) - 1]}"  # the level that starts from this one

        def begin(params, mixers):
            return NestedLearner(params, self.optimizers[i].init(params), own_buffers(mixers))

        def update(state, context):
            still = {j: own_blocks([context.answers[f"cms_{j}"]])[0] for j in slower}
            still = {**fixed, **still, i: state.params["own"]}

            def period(start):
                inner = self.schedule(i, still)
                origin = {top: {"start": start, "mixers": state.mixers}, "mixers": state.mixers}
                first = inner.init(None, jax.tree.map(lambda x: x[0], context.own), origin)
                last, _ = inner.run(first, context.own)
                return last.levels["period"]

            start, own = jax.grad(period, has_aux=True)(state.params["start"])
            moves, optimizer = self.optimizers[i].update({"own": own, "start": start}, state.optimizer, state.params)
            params = optax.apply_updates(state.params, moves)
            return NestedLearner(params, optimizer, own_buffers(context.answers["mixers"]))

        return Level(
            f"cms_{i}",
            self.steps(i),
            init=lambda key, data: begin(weights, self.model.init_state(self.batch_size)),
            update=update,
            read=lambda state, query: {**state.params, "mixers": state.mixers},
            needs=("mixers",),
            sees=tuple(f"cms_{j}" for j in slower),
            start=lambda answer: begin(own_buffers(answer["start"]), answer["mixers"]),
            context="the text of its period",
            objective="next token, through the updates of faster levels",
            parts=lambda state: (state.params, state.optimizer),
        )


def initial_state(model: Any, batch_size: int) -> ScheduleState:
    """The state of ``learning_schedule(model, batch_size)`` before the first chunk of a text."""
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
    """Predicts the token after each token, and learns from ``targets`` chunk by chunk.

    Args:
      model, optimizers: as for ``learning_schedule``.
      tokens, targets: their length must be a multiple of the shortest period.
      mask: 1 for targets that count, 0 for others; None counts all.
      state: the state that the previous call returned; None starts a text.

    Returns:
      Logits, which depend on the targets of earlier chunks only, and the state after the last chunk.

    Raises:
      ValueError: if the length is not a multiple of the shortest period.
    """
    batch, time = tokens.shape
    chunk = min(model.config.cms_periods)
    if time % chunk:
        raise ValueError(f"{time} tokens: level cms of period {chunk} needs a multiple of {chunk}")
    model = gather_parameters(model)  # once, not for every chunk
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
    """The part of the mixers' state that their memories have learned; empty where they have none."""
    memories = memory_part(mixers)
    return () if memories is None else memories.delta_w


def with_learned(model: Any, state: ScheduleState) -> Any:
    """The model with the CMS blocks of a state. Call it with ``state.levels["mixers"]`` to continue the text."""
    levels = [state.levels[f"cms_{i}"].params for i in range(len(model.config.cms_periods))]
    return with_levels(model, own_blocks(levels))


def own_blocks(weights: Sequence[Weights]) -> list[FeedForward]:
    """The blocks of the levels, without the initial weights of faster levels that nested levels hold."""
    return [w["own"] if isinstance(w, dict) else w for w in weights]


def with_levels(model: Any, levels: Sequence[FeedForward]) -> Any:
    """The model with these blocks in its continuum memory, converted to the dtypes of the model."""
    copy = shallow_copy(model)
    own = model.blocks.cms.levels
    copy.blocks.cms.levels = nnx.List([OfEachSequence(_like(new, old)) for new, old in zip(levels, own, strict=True)])
    return copy


def _of_each_sequence(level: FeedForward, batch_size: int) -> FeedForward:
    """Repeats weights, [layers, ...] -> [layers, batch, ...], in float32 or wider: bfloat16 would lose small steps."""

    def repeat(w: Array) -> Array:
        repeated = jnp.broadcast_to(widen(w)[:, None], (len(w), batch_size, *w.shape[1:]))
        return constrain(repeated, None, "batch", *(None,) * (w.ndim - 1))

    return jax.tree.map(repeat, level)


def _like(new: Any, old: Any) -> Any:
    """Converts ``new`` to the dtypes of ``old``."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def _per_sequence(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Maps a transformation over sequences: leaves are [layers, batch, ...], and its state is [batch, ...]."""
    return optax.GradientTransformation(
        jax.vmap(transformation.init, in_axes=1),
        jax.vmap(transformation.update, in_axes=(1, 0, 1), out_axes=(1, 0)),
    )
