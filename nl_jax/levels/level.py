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
reads a level flows through all of its updates (``nl_jax.levels.first_order`` stops it there).
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
    """What a schedule is to the level whose objective runs it: something that describes itself."""

    def tree(self, state: Any = None, indent: str = "") -> str:
        """The nested system as text."""


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
    inner: Tree | None = None

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
