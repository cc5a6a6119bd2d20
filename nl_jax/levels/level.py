"""A level: something that learns, with its own state, context, objective and update frequency (§3 of arXiv 2512.24695).

The *context* of a level is what it compresses into its state: gradients for an optimizer, keys and values for a memory,
data for a loss. A level gets one context per step; the step is the unit of time of a schedule. A level with period p is
updated once every p steps, by one call of ``update``. The call gets the contexts of those p steps, gathered in one of
two ways:

``gather="stack"``  The contexts are stacked on a leading axis of size p (also for p = 1): a memory gets its chunk of
                    keys and values, a loss its batch.
``gather="sum"``    The contexts are summed, so that only one buffer is kept: this is the sum of gradients in Eq. 71.
                    Dtypes narrower than 32 bits are summed in 32 bits, except for p = 1.

Other levels access a level's state through ``read`` only: ``read(state, query)`` returns the answer to a query, and
``read(state, None)`` returns the parameters. A level that names others in ``needs`` or ``sees`` is updated with
``Context(own, answers)``: its own context, and ``{name: read(state, None)}`` for each level that it names.

The constructors in this package make the state a ``NamedTuple``. Every update is differentiable: the gradient of
anything that reads a level flows through all of its updates (``nl_jax.levels.first_order`` stops it there).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nl_jax.trees import PyTree

State = Any
GATHERS = ("stack", "sum")


class Tree(Protocol):
    """Anything that can describe itself as text, such as the inner schedule that a level's objective runs."""

    def tree(self, state: Any = None, indent: str = "") -> str:
        """Describes the nested system as text."""


class Context(NamedTuple):
    """The argument of ``update`` for a level that reads other levels.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.levels import Level, Schedule
      >>> count = Level("count", 1, init=lambda key, data: jnp.zeros(()), update=lambda state, xs: state + xs.sum())
      >>> take = lambda state, context: context.answers["count"]  # of the other level, after its update
      >>> copy = Level("copy", 2, init=lambda key, data: jnp.zeros(()), update=take, needs=("count",))
      >>> schedule = Schedule([count, copy])
      >>> state = schedule.run(schedule.init(None, {"count": jnp.ones(())}), {"count": jnp.ones(4)})
      >>> print(state.levels["count"], state.levels["copy"])
      4.0 4.0
    """

    own: PyTree  # the level's own gathered contexts; None if the answers are its only context
    answers: dict[str, PyTree]  # by name, the parameters of the levels that it needs or sees


@dataclass(frozen=True)
class Level:
    """One level; all functions are pure.

    Attributes:
      name: name of the level, unique in a schedule.
      period: number of steps from one update to the next, at least 1.
      init: ``init(key, data) -> state``, where ``data`` is the data of one step, as given to ``Schedule.step``.
      update: ``update(state, context) -> state``, with the context gathered over a period (see above).
      read: ``read(state, query) -> answer``. The default returns the state itself.
      gather: "stack" or "sum".
      needs: names of levels whose state *after* step t this level's update at step t uses. They must be at least as
        fast as this level, and are updated before it.
      sees: names of levels whose state from *before* step t the update at step t uses. They must be at most as fast.
      starts_from: name of a slower level that provides the initial state (§3.3, by initialisation). This level restarts
        whenever the slower one is updated or itself restarts. Its period must divide the slower one's.
      start: ``start(answer) -> state`` makes an initial state from parameters, such as those of ``starts_from``.
      paths: paths of the parameters that this level owns in a larger tree, keys joined by "."; two levels must not
        share a parameter.
      context, objective: descriptions in words, shown by ``Schedule.tree``.
      parts: ``parts(state) -> (parameters, optimizer state)``, used to count both.
      inner: the schedule that the objective runs, if any; shown by ``Schedule.tree``.

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
    inner: Tree | None = None

    def __post_init__(self):
        """Checks the arguments that need no other level to be checked."""
        if isinstance(self.period, bool) or not isinstance(self.period, int) or self.period < 1:
            raise ValueError(f"level {self.name!r}: period={self.period!r}: expected an integer of at least 1")
        if self.gather not in GATHERS:
            raise ValueError(f"level {self.name!r}: gather={self.gather!r}: expected one of {GATHERS}")
        if self.starts_from is not None and self.start is None:
            raise ValueError(f"level {self.name!r}: starts_from={self.starts_from!r} needs a start function")

    def empty(self, context: jax.ShapeDtypeStruct) -> Array:
        """Zeros in which an array of the context is gathered: ``[period, ...]`` for stacks, ``[...]`` for sums.

        Sums have at least 32 bits; bools are summed as int32.
        """
        if self.gather == "stack":
            return jnp.zeros((self.period, *context.shape), context.dtype)
        kinds = ((jnp.unsignedinteger, jnp.uint32), (jnp.integer, jnp.int32), (jnp.bool_, jnp.int32))
        wide = next((wide for kind, wide in kinds if jnp.issubdtype(context.dtype, kind)), jnp.float32)
        return jnp.zeros(context.shape, jnp.promote_types(context.dtype, wide))
