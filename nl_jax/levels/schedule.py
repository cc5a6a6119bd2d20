"""A schedule: levels composed into one nested system, each updated at its own frequency (§3, §7 of arXiv 2512.24695).

One step of a schedule takes the data of one step and does two things:

1. ``flow(read, data) -> {name: context}`` computes the context of each level, where ``read(name, query)`` returns the
   answer of a level *before* the step. All levels share this computation, so one backward pass can give all of them
   their gradients. Without a flow, the data are that dictionary.
2. Each level gathers its context. Levels whose period has ended are updated, the fastest first; levels with the same
   period are updated in the order given by ``needs`` (Definition 2). Nothing is computed for a level that is not due.

``run`` makes many steps. It uses nested scans without conditions, one for each period, as far as the periods divide
each other, and ``lax.cond`` for the other levels. The result is the same as that of single steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from nl_jax.levels import composition, describe
from nl_jax.levels.level import Context, Level
from nl_jax.trees import PyTree, check_shapes, own_buffers, strong

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Flow = Callable[[Callable[..., PyTree], PyTree], Any]
"""``flow(read, data)`` returns the context of each level by name, or ``(contexts, aux)``; see `Schedule`."""
Levels = dict[str, Any]  # a value for each level, by name


class ScheduleState(NamedTuple):
    """State of all levels of a schedule.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.levels import Schedule, from_optax
      >>> schedule = Schedule([from_optax("weights", optax.sgd(1.0), jnp.ones(2), period=2)])
      >>> state = schedule.step(schedule.init(None, {"weights": jnp.ones(2)}), {"weights": jnp.ones(2)})
      >>> int(state.step), state.pending["weights"].tolist()  # a gradient waits for the update at the second step
      (1, [1.0, 1.0])
    """

    step: Int[Array, ""]  # number of steps since ``init``
    levels: Levels  # state of each level
    pending: Levels  # contexts gathered since each level's last update: a sum, or [period, ...] filled from the front


@dataclass(frozen=True)
class Schedule:
    """Levels under one clock. ``init``, ``step`` and ``run`` are pure: jit, differentiate, map and scan them.

    Attributes:
      levels: the levels, in any order.
      flow: the function that computes the levels' contexts (see above); None if the data are ``{name: context}``.
      has_aux: whether the flow returns ``(contexts, aux)``, for outputs of the levels while they learn. Then ``step``
        and ``run`` return ``(state, aux)``; ``run`` stacks aux on a leading axis of steps.

    Raises:
      ValueError: if there is no level, two levels share a name or parameters, or no order satisfies what levels need.

    Examples:
      A memory learns with keys that a slower level projects, and that level learns from the memory's errors:

      >>> import jax, jax.numpy as jnp, optax
      >>> from nl_jax.levels import Pair, Schedule, from_memory, from_optax
      >>> from nl_jax.memory import Architecture
      >>> memory = from_memory("memory", Architecture(4, 4), period=4)  # learns keys and values, every 4 tokens
      >>> slow = from_optax("keys", optax.adam(1e-2), jnp.eye(4), period=8)  # the projection that makes the keys
      >>> def flow(read, x):
      ...     def surprise(projection):
      ...         return jnp.sum((read("memory", (x @ projection)[None])[0] - x) ** 2)
      ...     return {"memory": Pair(x @ read("keys"), x), "keys": jax.grad(surprise)(read("keys"))}
      >>> schedule = Schedule([memory, slow], flow)
      >>> xs = jax.random.normal(jax.random.key(0), (16, 4))
      >>> state = schedule.run(schedule.init(jax.random.key(1), xs[0]), xs)
      >>> schedule.order
      (('memory',), ('keys',))
      >>> print(schedule.table(16))
      memory  ···█···█···█···█
      keys    ·······█·······█
    """

    levels: Sequence[Level]
    flow: Flow | None = None
    has_aux: bool = False

    def __post_init__(self):
        """Checks the levels against each other."""
        object.__setattr__(self, "levels", composition.as_levels(self.levels))
        if self.has_aux and self.flow is None:
            raise ValueError("has_aux=True needs a flow that returns (contexts, aux)")
        composition.check(self.levels, self)
        _ = self.order  # raises an error if levels need each other in a cycle

    def __getitem__(self, name: str) -> Level:
        """Returns the level with this name."""
        for level in self.levels:
            if level.name == name:
                return level
        raise ValueError(f"level {name!r}: unknown; expected one of {', '.join(one.name for one in self.levels)}")

    @cached_property
    def periods(self) -> tuple[int, ...]:
        """The distinct periods, the shortest first."""
        return tuple(sorted({level.period for level in self.levels}))

    @cached_property
    def order(self) -> tuple[tuple[str, ...], ...]:
        """Groups of level names, the fastest first (Definition 2).

        Level A precedes B if A's frequency is higher, or if both are equal and B needs A's state at the same step.
        Levels of which neither precedes the other share a group.
        """
        return composition.order(self.levels, self)

    @cached_property
    def _chain(self) -> tuple[int, ...]:
        """Lengths in steps of the nested scans, starting with 1. Every length divides all longer periods."""
        return composition.chain(self.periods)

    def _of(self, period: int) -> list[Level]:
        return [self[name] for rank in self.order for name in rank if self[name].period == period]

    def _changed(self, period: int) -> set[str]:
        """Names of the levels that change when levels with this period are due: these, and all that restart."""
        return {level.name for level in (*self._of(period), *self._restarted(period))}

    def _restarted(self, period: int) -> list[Level]:
        """Levels that restart when levels with this period are due, from these or from each other; slow ones first."""
        changed, restarted = {level.name for level in self._of(period)}, []
        for level in sorted(self.levels, key=lambda level: -level.period):
            if level.starts_from in changed:
                changed.add(level.name)
                restarted.append(level)
        return restarted

    def read(self, state: ScheduleState, name: str, query: PyTree = None) -> PyTree:
        """Returns a level's answer to a query, or its parameters if there is no query."""
        return self[name].read(state.levels[name], query)

    def init(
        self,
        key: Array | None,
        data: PyTree,
        start: Mapping[str, PyTree] | None = None,
        contexts: Mapping[str, PyTree] | None = None,
    ) -> ScheduleState:
        """Returns the state before the first step. No two of its arrays share a buffer, so that it can be donated.

        Args:
          key: random key, from which each level gets its own. None if no level draws random numbers.
          data: data of one step. Only their shapes matter, unless the ``init`` of a level uses the values.
          start: by level name, parameters from which these levels start (§3.3, by initialisation).
          contexts: by level name, arrays with the shapes of one step's contexts; by default from tracing the flow.

        Raises:
          ValueError: if ``start`` names a level without a start function.
        """
        states: Levels = {}
        start = start or {}
        for name in start:
            if self[name].start is None:
                raise ValueError(f"level {name!r} has no start function, so it cannot start from given parameters")
        for i, level in reversed(list(enumerate(sorted(self.levels, key=lambda level: level.period)))):
            answer = start.get(level.name)
            if answer is None and level.starts_from is not None:
                answer = self[level.starts_from].read(states[level.starts_from], None)
            if answer is None:
                states[level.name] = level.init(None if key is None else jax.random.fold_in(key, i), data)
            else:
                assert level.start is not None
                states[level.name] = level.start(answer)
        states = own_buffers(jax.tree.map(strong, states))  # a level may have started from another's arrays
        pending = {}
        if contexts is None:
            contexts = jax.eval_shape(self._contexts, states, data)[0]
        for name, context in contexts.items():
            level = self[name]
            if level.period > 1:
                pending[name] = jax.tree.map(level.empty, context)
        return ScheduleState(jnp.zeros((), jnp.int32), states, pending)

    def step(self, state: ScheduleState, data: PyTree) -> Any:
        """Makes one step on the data of one step. Returns the new state, or ``(state, aux)``.

        ``state.step`` counts the steps. Do not map this over states by ``vmap``: XLA then computes both branches of
        every condition. Map a ``run`` of whole periods instead.
        """
        state, aux = self._advance(state, jax.tree.map(lambda x: jnp.asarray(x)[None], data), block=0, remat=False)
        return (state, jax.tree.map(lambda a: a[0], aux)) if self.has_aux else state

    def run(
        self, state: ScheduleState, data: PyTree, *, start: int = 0, open_end: bool = False, remat: bool = False
    ) -> Any:
        """Makes n steps. Returns the new state, or ``(state, aux)``.

        Args:
          state: the state after ``start`` steps.
          data: a pytree of arrays [n, ...].
          start: number of steps made before; static. Only its remainder by each period matters.
          open_end: whether n may end within a period of a level. The contexts gathered so far then wait in the state
            for the next call.
          remat: whether the backward pass recomputes each block of steps, keeping only the states between blocks.

        Raises:
          ValueError: if the data differ in length, if a period is left unfinished without ``open_end``, or if the state
            is not at ``start`` (which is not checked for a traced state).
        """
        n = composition.number_of_steps(data, by_level=self.flow is None)
        at = start if isinstance(state.step, jax.core.Tracer) else int(state.step)
        for level in self.levels:
            if (start + n) % level.period and not open_end:
                raise ValueError(
                    f"level {level.name!r}: period {level.period} does not divide {start} + {n} steps; give whole "
                    "periods, or open_end=True, which keeps what is left for the next call"
                )
            if (at - start) % level.period:
                raise ValueError(f"level {level.name!r}: start={start}, but the state is at step {at}")
        position, parts = start, []
        while position < start + n:
            block, count = self._piece(position, start + n)
            size = self._chain[block]
            piece = jax.tree.map(partial(_cut, position - start, count, size), data)
            body = _maybe_remat(lambda s, d, block=block: self._advance(s, d, block=block, remat=remat), remat)
            state, aux = jax.lax.scan(body, state, piece)
            parts.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), aux))
            position += count * size
        if not self.has_aux:
            return state
        return state, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    def _piece(self, position: int, end: int) -> tuple[int, int]:
        """The longest scan that can start at a position: the index of its block, and the number of blocks."""
        block = max(i for i, size in enumerate(self._chain) if position % size == 0 and position + size <= end)
        if block + 1 < len(self._chain):  # until a longer block can start
            longer = self._chain[block + 1]
            end = min(end, (position // longer + 1) * longer)
        return block, (end - position) // self._chain[block]

    def _contexts(self, states: Levels, data: PyTree) -> tuple[Levels, PyTree]:
        """Contexts of one step by level name, and aux."""

        def read(name, query=None):
            return self[name].read(states[name], query)

        contexts = data if self.flow is None else self.flow(read, data)
        contexts, aux = contexts if self.has_aux else (contexts, None)
        for name in contexts:
            self[name]  # raises an error for an unknown level
        for level in self.levels:
            if level.name not in contexts and not level.needs and not level.sees:
                raise ValueError(f"level {level.name!r} gets no context; there are contexts for {list(contexts)}")
        return dict(contexts), aux

    def _update(self, period: int, states: Levels, gathered: Levels) -> Levels:
        """New states, by name, of the levels that change when the levels with this period are due."""
        before, states = states, dict(states)
        for level in self._of(period):
            context = gathered.get(level.name)
            if level.needs or level.sees:
                answers = {name: self[name].read(states[name], None) for name in level.needs}
                answers |= {name: self[name].read(before[name], None) for name in level.sees}
                context = Context(context, answers)
            states[level.name] = _like(level.update(states[level.name], context), before[level.name], level.name)
        for level in self._restarted(period):
            assert level.start is not None
            assert level.starts_from is not None
            answer = self[level.starts_from].read(states[level.starts_from], None)
            states[level.name] = _like(level.start(answer), before[level.name], level.name)
        return {name: states[name] for name in self._changed(period)}

    def _block(self, block: int, states: Levels, sums: Levels, data: PyTree, remat: bool) -> tuple[Any, ...]:
        """Makes ``_chain[block]`` steps, from a step at which all periods up to that length begin.

        Returns:
          (states, sums, contexts [steps, ...] of the slower levels that stack theirs, aux [steps, ...])
        """
        size = self._chain[block]
        if block == 0:
            contexts, aux = self._contexts(states, jax.tree.map(lambda x: x[0], data))
            for name, total in sums.items():
                check_shapes(f"level {name!r}: context", contexts[name], total)
            sums = {name: jax.tree.map(jnp.add, total, contexts[name]) for name, total in sums.items()}
            own = {name: context for name, context in contexts.items() if self[name].gather == "sum"}
            stacks = {name: context for name, context in contexts.items() if name not in own}
            stacks, aux = jax.tree.map(lambda x: jnp.asarray(x)[None], (stacks, aux))
        else:
            inside = {level.name for level in self.levels if level.period < size}

            def body(carry, data):
                fast, sums = carry
                fast, sums, stacks, aux = self._block(block - 1, states | fast, sums, data, remat)
                return ({name: fast[name] for name in inside}, sums), (stacks, aux)

            shorter = self._chain[block - 1]
            data = jax.tree.map(lambda x: x.reshape(size // shorter, shorter, *x.shape[1:]), data)
            carry = {name: states[name] for name in inside}, sums
            (fast, sums), outputs = jax.lax.scan(_maybe_remat(body, remat), carry, data)
            stacks, aux = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), outputs)
            states, own = states | fast, {}
        states = states | self._update(size, states, own | sums | stacks)
        sums = {
            name: jax.tree.map(jnp.zeros_like, total) if self[name].period == size else total
            for name, total in sums.items()
        }
        return states, sums, {name: c for name, c in stacks.items() if self[name].period > size}, aux

    def _advance(self, state: ScheduleState, data: PyTree, *, block: int, remat: bool) -> tuple[ScheduleState, PyTree]:
        """Makes one block of steps, then updates every slower level that is due."""
        size = self._chain[block]
        sums = {name: total for name, total in state.pending.items() if self[name].gather == "sum"}
        states, sums, stacks, aux = self._block(block, state.levels, sums, data, remat)
        pending = state.pending | sums
        for name, contexts in stacks.items():
            put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=state.step % self[name].period, axis=0)
            pending[name] = jax.tree.map(put, pending[name], contexts)
        step = state.step + size
        for period in self.periods:
            if period <= size:
                continue
            own = {level.name: pending[level.name] for level in self._of(period) if level.name in pending}

            def due(states, own, period=period):
                return self._update(period, states, own), jax.tree.map(jnp.zeros_like, own)

            def wait(states, own, period=period):
                return {name: states[name] for name in self._changed(period)}, own

            changed, own = jax.lax.cond(step % period == 0, due, wait, states, own)
            states, pending = states | changed, pending | own
        return ScheduleState(step, states, pending), aux

    def timeline(self, n: int) -> Bool[np.ndarray, "n levels"]:
        """Whether each level (in the order of ``order``, the fastest first) is updated at each of the first n steps."""
        periods = [self[name].period for rank in self.order for name in rank]
        return (np.arange(1, n + 1)[:, None] % np.asarray(periods)) == 0

    def table(self, n: int) -> str:
        """``timeline(n)`` as text, with a row for each level."""
        return describe.table([name for rank in self.order for name in rank], self.timeline(n))

    def plot(self, n: int | None = None, path: str | Path | None = None) -> "Figure":
        """Draws ``timeline(n)``, by default of twice the longest period; the suffix of ``path`` decides its format."""
        from nl_jax.plotting import level_timeline  # here, since importing Matplotlib takes half a second

        figure = level_timeline(self, n or 2 * self.periods[-1])
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def sources(self, data: PyTree) -> dict[str, tuple[str, ...]]:
        """By level, the levels whose answers the flow puts into its context; ``data`` are of one step."""
        states = jax.eval_shape(lambda data: self.init(jax.random.key(0), data).levels, data)
        return describe.sources(lambda states: self._contexts(states, data)[0], states)

    def tree(self, state: ScheduleState | None = None, indent: str = "") -> str:
        """Describes the nested system as text, the slowest level first.

        Each line has a level's period, context and objective and, given a state, its sizes. Levels of one group of
        ``order`` are indented alike. A schedule that a level's objective runs follows the level, marked by ``»``.
        """
        lines = []
        for depth, rank in enumerate(reversed(self.order)):
            for name in rank:
                space = indent + "  " * depth
                lines.append(space + describe.line(self[name], None if state is None else state.levels[name]))
                inner = self[name].inner
                if inner is not None:
                    lines.append(inner.tree(None, space + "  » "))
        return "\n".join(lines)


def _maybe_remat(body: Callable, remat: bool) -> Callable:
    return jax.checkpoint(body) if remat else body


def _cut(begin: int, count: int, size: int, x: Array) -> Array:
    """Takes ``count * size`` steps from ``begin`` on, as an array [count, size, ...]."""
    return x[begin : begin + count * size].reshape(count, size, *x.shape[1:])


def _like(new: PyTree, old: PyTree, name: str) -> PyTree:
    """Returns ``new``, after a check that it has the structure, shapes and dtypes of the state that it replaces."""
    was, now = (str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)) for tree in (old, new))
    if was != now:
        raise ValueError(f"level {name!r}: an update turns its state {composition.change(was, now)}")
    return jax.tree.map(strong, new)
