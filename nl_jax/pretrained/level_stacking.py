"""Ad-hoc level stacking (§7.3): the MLPs of a trained model become levels, each with its own update frequency.

A level owns a *change* of some matrices of some blocks, which starts at zero and is added to the model's own weights.
So the model is as it was until a level has learned, and stays so if all learning rates are 0. After each chunk of text
one backward pass of its next-token loss gives the gradient of every change; a level sums them until it is due
(Eq. 71). Blocks before the first that a level owns have no backward pass.

A level that owns part of the hidden units of an MLP splits it: the parts run side by side and are summed (Eq. 74), with
the output of the whole MLP at the start. Levels that own different blocks make a chain (Eq. 73).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from nl_jax.errors import InputError
from nl_jax.levels import Level, Schedule, ScheduleState
from nl_jax.models.language_model import LanguageModel, some_blocks
from nl_jax.optim import clip_by_norm
from nl_jax.optim.clip import shortened
from nl_jax.pretrained.changes import Part, Seen, changed_blocks, matrix_of, no_inputs
from nl_jax.pretrained.preconditioner import preconditioned
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.trees import own_buffers


class Rates(NamedTuple):
    """What a level's steps depend on beside its state, and may be traced, so that a program serves all values."""

    learning_rate: float | Array
    ridge: float | Array
    sparing: dict[str, Float[Array, "blocks in in"]] | None = None  # by matrix, what each step is multiplied by


class Changes(NamedTuple):
    """State of a level."""

    change: dict[str, Any]  # by matrix: [blocks, in, out], or the two factors [blocks, in, rank], [blocks, rank, out]
    optimizer: Any
    seen: dict[str, Seen]  # by matrix, for a level that keeps the covariance of inputs


class Pull(NamedTuple):
    """What pulls a level's change back: the gradient of ``strength / 2 · (change - centre)²`` for each of its elements.

    With the importance of each element as strength this is elastic weight consolidation (Kirkpatrick et al., 2017).
    """

    centre: dict[str, Any]  # by matrix, as `Changes.change`
    strength: dict[str, Any]


class Chunk(NamedTuple):
    """The data of a step."""

    tokens: Int[Array, "batch time"]
    targets: Int[Array, "batch time"]
    mask: Float[Array, "batch time"]  # 1 for targets that count
    state: Any = None  # of the mixers before the chunk; None at the start of a text
    pull: dict[str, Pull] | None = None  # by level, for the mean loss of a target; None pulls no level


class Read(NamedTuple):
    """What reading a chunk gave, before it was learned."""

    losses: Float[Array, "batch time"]  # nats of every target
    state: Any  # of the mixers after it
    surprise: dict[str, Float[Array, ""]]  # by level: norm of the gradient


class StackedModel:
    """A model with levels on it; make it with `stack_levels`. Its methods are pure.

    Args:
      model: the model.
      levels: the levels.
      rates: by level name, learning rate and ridge, which may be traced; by default the levels' own.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.models import named_config
      >>> from nl_jax.pretrained import stack_levels
      >>> model = LanguageModel(named_config("transformer", "tiny", num_layers=1), rngs=nnx.Rngs(0))
      >>> stacked = stack_levels(model, [StackedLevel("fast", blocks=(-1,))])
      >>> logits, _ = stacked.read(stacked.init(), jnp.arange(6)[None])  # nothing has changed yet
      >>> bool(jnp.allclose(logits, model(jnp.arange(6)[None])[0], atol=1e-5))
      True
    """

    def __init__(self, model: LanguageModel, levels: Sequence[StackedLevel], rates: Mapping[str, Rates] | None = None):
        self.model, self.levels = model, tuple(levels)
        self.rates = {level.name: Rates(level.rate, level.ridge) for level in self.levels} | dict(rates or {})
        count = model.config.num_layers
        for level in self.levels:
            strange = [block for block in level.blocks if not -count <= block < count]
            if strange:
                raise InputError(f"level {level.name!r}: block {strange[0]}; expected {-count} to {count - 1}")
        self._check_disjoint()
        self.first = min(min(self.blocks(level)) for level in self.levels)  # the first block with a backward pass

    def blocks(self, level: StackedLevel) -> list[int]:
        """Indices of a level's blocks, in order."""
        return sorted({block % self.model.config.num_layers for block in level.blocks})

    def schedule(self) -> Schedule:
        """The levels under one clock; a step takes a `Chunk` and gives a `Read`."""
        return Schedule([self._level(level) for level in self.levels], self.flow, has_aux=True)

    def protect(self, state: ScheduleState, chunk: Chunk) -> tuple[ScheduleState, Any]:
        """Takes up the inputs of a chunk in the covariances of levels that keep one, without learning it.

        Later steps of these levels then avoid the directions of these inputs, so that the answers to them stay (as
        orthogonal weight modification does for earlier tasks: Zeng et al., 2019; and AlphaEdit for facts: Fang et al.,
        2024). Steps of "preconditioned" levels do so by themselves, those of others with ``sparing`` in their `Rates`.

        Returns:
          The state, and that of the mixers after the chunk.
        """
        contexts, read = self.flow(lambda name: state.levels[name].change, chunk, protecting=True)
        levels = {
            name: own._replace(seen=jax.tree.map(jnp.add, own.seen, contexts[name][1]))
            for name, own in state.levels.items()
        }
        return state._replace(levels=levels), read.state

    def init(self) -> ScheduleState:
        """The state before the first chunk: no change."""
        blank = jnp.zeros((1, 1), jnp.int32)
        return self.schedule().init(None, Chunk(blank, blank, jnp.ones((1, 1))))

    def changed(self, state: ScheduleState) -> LanguageModel:
        """The model with all changes added to its weights: one that anything can read, sample from or export."""
        parts = self._parts({level.name: state.levels[level.name].change for level in self.levels}, 0)
        return changed_blocks(self.model, parts, merge=True)

    def read(self, state: ScheduleState, tokens: Int[Array, "batch time"], mixers: Any = None) -> tuple[Array, Any]:
        """Logits and the mixers' state, as ``model(tokens, mixers)``, by the model with its changes."""
        return self.changed(state)(tokens, mixers)

    def _parts(self, changes: Mapping[str, Any], first: int, seen: Mapping[str, Any] | None = None) -> list[Part]:
        """What the levels change, of a model whose first block is ``first`` of this one."""
        return [
            Part(
                name,
                np.asarray(self.blocks(level)) - first,
                *self._part(level, name),
                change,
                seen[level.name].get(name) if seen else None,
            )
            for level in self.levels
            for name, change in changes[level.name].items()
        ]

    def _check_disjoint(self) -> None:
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names) or not names:
            raise InputError(f"levels {', '.join(names) or 'none'}: expected one or more, each with a name of its own")
        for level in self.levels:
            self._part(level, level.matrices[0])  # raises an error if none of the hidden units is among its own
        for i, one in enumerate(self.levels):
            for other in self.levels[i + 1 :]:
                both = set(one.matrices) & set(other.matrices), set(self.blocks(one)) & set(self.blocks(other))
                apart = one.units[1] <= other.units[0] or other.units[1] <= one.units[0]
                if all(both) and not apart:
                    matrix, block = (min(found) for found in both)
                    raise InputError(
                        f"levels {one.name!r} and {other.name!r} both own {matrix!r} of block {block}; expected "
                        "blocks, matrices or units of their own"
                    )

    def _zeros(self, level: StackedLevel) -> dict[str, Any]:
        """A level's change before it has learned; a low-rank one has a random first factor, and a second of zeros."""
        change: dict[str, Any] = {}
        for i, name in enumerate(level.matrices):
            rows, columns = (len(range(*part)) for part in self._part(level, name))
            count = len(self.blocks(level))
            if level.rank is None:
                change[name] = jnp.zeros((count, rows, columns))
                continue
            first = jax.random.normal(jax.random.key(i), (count, rows, level.rank)) * rows**-0.5
            change[name] = (first, jnp.zeros((count, level.rank, columns)))
        return change

    def _part(self, level: StackedLevel, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of a matrix that a level owns."""
        rows, columns = matrix_of(self.model.blocks, name).kernel[...].shape[1:]
        hidden = rows if name == "down" else columns
        low, high = level.hidden_units(hidden)
        return ((low, high), (0, columns)) if name == "down" else ((0, rows), (low, high))

    def _nothing_seen(self, level: StackedLevel) -> dict[str, Seen]:
        """By matrix, no inputs; empty for a level that keeps no covariance."""
        if not level.observes:
            return {}
        sizes = {name: high - low for name in level.matrices for low, high in [self._part(level, name)[0]]}
        blocks = len(self.blocks(level))
        return {name: no_inputs(blocks, n) for name, n in sizes.items()}

    def _level(self, level: StackedLevel) -> Level:
        rates = self.rates[level.name]
        transformation = _transformation(level, rates.learning_rate)
        norms = {name: optax.tree.norm(matrix_of(self.model.blocks, name).kernel[...]) for name in level.matrices}

        def start(change):
            return Changes(own_buffers(change), transformation.init(change), self._nothing_seen(level))

        def update(state, context):
            gradient, seen, count = context
            if level.rule == "preconditioned":
                seen, optimizer = jax.tree.map(jnp.add, state.seen, seen), state.optimizer
                step = {name: preconditioned(seen[name], gradient[name], rates.ridge) for name in gradient}
                step = jax.tree.map(lambda x: -rates.learning_rate * x, step)
            else:
                mean = jax.tree.map(lambda g: g / jnp.maximum(count, 1.0), gradient)
                step, optimizer = transformation.update(mean, state.optimizer, state.change)
                step = {name: rates.sparing[name] @ x for name, x in step.items()} if rates.sparing else step
                seen = state.seen
            step = {name: shortened(part, norms[name]) for name, part in step.items()}
            change = jax.tree.map(lambda old, new: level.retention * old + new, state.change, step)
            return Changes(change, optimizer, seen)

        return Level(
            level.name,
            level.period,
            init=lambda key, data: start(self._zeros(level)),
            update=update,
            read=lambda state, query: state.change,
            gather="sum",
            start=start,
            context="gradients and inputs, summed",
            objective="next token",
            parts=lambda state: (state.change, (state.optimizer, state.seen)),
        )

    def flow(self, read: Any, chunk: Chunk, protecting: bool = False) -> Any:
        """The contexts of all levels by name (gradients, inputs and number of targets of a chunk), and a `Read`.

        Inputs are those of "preconditioned" levels; if ``protecting``, of all that keep a covariance.
        """
        changes = {level.name: read(level.name) for level in self.levels}
        observing = {level.name: protecting or level.rule == "preconditioned" for level in self.levels}
        observed = {level.name: self._nothing_seen(level) if observing[level.name] else {} for level in self.levels}
        # the barrier hides that they are zeros: XLA would spread them over all blocks while it compiles
        observed = jax.lax.optimization_barrier(observed)
        lower, upper = _split(chunk.state, self.first)
        lowest = some_blocks(self.model, slice(self.first))
        x, below = lowest.read_blocks(self.model.embedded(chunk.tokens), lower)

        def loss(changes, observed):
            upper_blocks = some_blocks(self.model, slice(self.first, None))
            model = changed_blocks(upper_blocks, self._parts(changes, self.first, observed))
            y, above = model.read_blocks(x, upper)
            losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(y), chunk.targets)
            return jnp.sum(losses * chunk.mask), (losses, jax.tree.map(lambda *s: jnp.concatenate(s), below, above))

        (gradients, seen), (losses, state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(changes, observed)
        surprise = {name: optax.tree.norm(gradient) for name, gradient in gradients.items()}
        for name, (centre, strength) in (chunk.pull or {}).items():
            gradients[name] = jax.tree.map(
                lambda g, w, c, s: g + jnp.sum(chunk.mask) * s * (w - c),
                gradients[name],
                changes[name],
                centre,
                strength,
            )
        contexts = {level.name: (gradients[level.name], seen[level.name], jnp.sum(chunk.mask)) for level in self.levels}
        contexts |= {
            level.name: jax.lax.stop_gradient(contexts[level.name]) for level in self.levels if level.regime == "online"
        }
        return contexts, Read(losses, state, surprise)


def stack_levels(model: LanguageModel, levels: Sequence[StackedLevel]) -> StackedModel:
    """Puts levels on a trained model (§7.3).

    Args:
      model: a ``LanguageModel`` whose own continuum memory does not learn in context.
      levels: the levels, of which no two own the same weights.

    Raises:
      InputError: for a model that learns in context already, or levels that own the same weights.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, named_config
      >>> model = LanguageModel(named_config("transformer", "tiny", num_layers=2), rngs=nnx.Rngs(0))
      >>> fast = StackedLevel("fast", blocks=(1,), units=(0.0, 0.5))
      >>> slow = StackedLevel("slow", period=4, blocks=(1,), units=(0.5, 1.0))
      >>> stacked = stack_levels(model, [fast, slow])
      >>> print(stacked.schedule().table(8))
      fast  ████████
      slow  ···█···█
    """
    if model.learns_in_context:
        raise InputError(f"cms_regime={model.config.cms_regime!r}: the model has levels that learn; expected 'outer'")
    if any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(model)):
        raise InputError("the model has 8-bit weights, which cannot learn; expected a model in float32")
    return StackedModel(model, levels)


def _transformation(level: StackedLevel, learning_rate: float | Array) -> optax.GradientTransformation:
    if level.rule == "preconditioned":
        return optax.identity()
    if level.rule == "adam":
        return optax.adam(learning_rate, eps_root=1e-16 if level.regime == "meta" else 0.0)
    return optax.chain(clip_by_norm(1.0), optax.scale(-learning_rate))


def _split(state: Any, first: int) -> tuple[Any, Any]:
    """The state of the blocks before ``first``, and of those from it on."""
    return jax.tree.map(lambda leaf: leaf[:first], state), jax.tree.map(lambda leaf: leaf[first:], state)
