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

A slow level of the ``nested`` variant also moves where the next faster one starts (Eq. 72). In the ``meta`` regime it
does so by the exact gradient (§3.3): at the end of its period it runs the faster levels again over the period's text,
and differentiates the summed loss by their start, through their updates and the mixers' states. Its own block moves by
the sum of the chunks' gradients (Eq. 71). So the text of a period is read once more for each slower level, and again
inside that for each level between, with the states between its chunks kept. The program of a pre-training step grows
threefold with the second level and more than fourfold again with the third.

``nested_first_order``, and the ``online`` regime, move the start by the gradients of the faster block at the weights
that each chunk is read with, as if no update were between; that needs no second reading.
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
from nl_jax.optim import clip_by_norm, smooth_norm
from nl_jax.trees import own_buffers

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
    for i, period in enumerate(config.cms_periods):
        if period % min(config.cms_periods):
            raise ValueError(
                f"level cms_{i}: its period {period} must be a multiple of the shortest, {min(config.cms_periods)}"
            )
    if optimizers is None:
        optimizers = [optax.chain(clip_by_norm(1.0), optax.scale(-rate)) for rate in rates]
    return _Maker(model, batch_size, [_per_sequence(optimizer) for optimizer in optimizers]).schedule()


class NestedLearner(NamedTuple):
    """State of a nested level whose gradient of where faster levels start is exact."""

    params: Weights
    optimizer: optax.OptState
    mixers: Any  # their state when the level's period began


@dataclass(frozen=True)
class _Maker:
    """Makes the schedule of all levels, and those of the faster ones that slow nested levels run again."""

    model: Any
    batch_size: int
    optimizers: list[optax.GradientTransformation]  # of each level, for all sequences

    @property
    def order(self) -> list[int]:
        """Levels, the fastest first."""
        periods = self.model.config.cms_periods
        return sorted(range(len(periods)), key=lambda i: periods[i])

    @property
    def nested(self) -> bool:
        return self.model.config.cms_variant in ("nested", "nested_first_order")

    def exact(self, i: int) -> bool:
        """Whether a level moves where faster ones start by the exact gradient."""
        config = self.model.config
        return config.cms_variant == "nested" and config.cms_regime == "meta" and i != self.order[0]

    def steps(self, i: int) -> int:
        """The period of a level, in chunks."""
        return self.model.config.cms_periods[i] // min(self.model.config.cms_periods)

    def schedule(self, slow: int | None = None, fixed: Mapping[int, FeedForward] | None = None) -> Schedule:
        """The schedule of all levels; with ``slow``, of those that are faster than this one.

        Args:
          slow: a level; the schedule then ends with the summed loss of its period, and the summed gradient of its block
            at the weights that each chunk is read with, as the state of the level "period".
          fixed: blocks of the levels that are not in the schedule.
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
            # in pre-training what lies inside a chunk is computed again, only the states between chunks are kept
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
        """One chunk's summed loss, (logits, the mixers' state after it), and the gradient of every block."""
        tokens, targets, mask = data

        def loss(blocks):
            logits, mixers = with_levels(self.model, blocks)(tokens, memories, at_boundary=True)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            # a state keeps its dtypes, whatever the model computes in
            return jnp.sum(nats * mask), (logits, _like(mixers, memories))

        return jax.value_and_grad(loss, has_aux=True)(blocks)

    def starts(self, blocks: Any, inside: list[int]) -> dict[int, Weights]:
        """By level: its block, and where levels are nested also where the next faster one starts."""
        found: dict[int, Weights] = {}
        start: Weights = None
        for i in inside:
            # a copy, so that no buffer is in the state twice and it can be donated
            found[i] = start = {"own": blocks[i], "start": own_buffers(start)} if self.nested and found else blocks[i]
        return found

    def sums_of_period(self, slow: int, block: FeedForward) -> Level:
        """Ends with the summed loss of a level's period, and the summed gradient of its block."""
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
        """Of a block, in the schedule of the levels ``inside``; the blocks of all others are ``fixed``."""
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
        """A nested level that runs the faster ones again over its period, and differentiates through their updates."""
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
    return getattr(mixers, "delta_w", ())


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
    copy.blocks.cms.levels = nnx.List(list(map(_like, levels, own)))
    return copy


def _of_each_sequence(level: FeedForward, batch_size: int) -> FeedForward:
    """[layers, ...] -> [layers, batch, ...], in float32 or wider: small steps would be lost in bfloat16."""
    return jax.tree.map(lambda w: jnp.broadcast_to(_wide(w)[:, None], (len(w), batch_size, *w.shape[1:])), level)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _like(new: Any, old: Any) -> Any:
    """In the dtypes of the old one."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def _per_sequence(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs it for each sequence alone, on leaves [layers, batch, ...]; its state has a leading axis [batch, ...]."""
    return optax.GradientTransformation(
        jax.vmap(transformation.init, in_axes=1),
        jax.vmap(transformation.update, in_axes=(1, 0, 1), out_axes=(1, 0)),
    )
