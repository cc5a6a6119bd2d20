"""Time of an optimizer's step alone, and the size of its state (Figure 12)."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarking.timed_programs import Timing, interleave, one_line
from experiments.optimizer_comparison.table import Optimizer

LAYERS = 6
M3_PERIOD = 16  # its slow memory's, by default
END = f"m3, step {M3_PERIOD}"  # the last of a period, in which the slow memory is orthogonalised too


def parameter_shapes(size: float) -> dict[str, jax.ShapeDtypeStruct]:
    """Matrices of 6 layers of a Transformer, without embeddings: 4 of width², 2 of 4 width², about ``size`` in all.

    The width is a multiple of 64, 64 or more.
    """
    width = 64 * max(1, round((size / (12 * LAYERS)) ** 0.5 / 64))
    shapes = {name: (width, width) for name in ("query", "key", "value", "output")}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return {name: jax.ShapeDtypeStruct((LAYERS, *shape), jnp.float32) for name, shape in shapes.items()}


def state_bytes(transformation: optax.GradientTransformation, shapes: Any) -> int:
    """Bytes of an optimizer's state for parameters of these shapes."""
    state = jax.eval_shape(transformation.init, shapes)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def measure(optimizers: Mapping[str, Optimizer], size: float, rounds: int, max_seconds: float) -> dict[str, Any]:
    """Times the steps of all optimizers in turn, round by round, each from gradients, state and parameters to updates.

    The state is donated, as in training. M3 orthogonalises its slow memory once in a period: that step is timed by
    itself, and M3's step time is the mean over a period, of medians.

    Args:
        optimizers: by name.
        size: parameters, about.
        rounds: after one to warm up.
        max_seconds: a step that takes longer to warm up is not repeated: that time counts.

    Returns:
        ``parameters``, and ``optimizers``: for each ``state_bytes``, and ``step_seconds`` or a ``problem``.
    """
    shapes = parameter_shapes(size)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {name: jax.random.normal(key, s.shape) for key, (name, s) in zip(keys, shapes.items(), strict=True)}
    gradients = jax.tree.map(lambda p: jnp.roll(p, 1, axis=-1), params)
    calls: dict[str, Callable[[], float]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, optimizer in optimizers.items():
        transformation = optimizer.make(optimizer.rate, 0.1)
        figures[name] = {"state_bytes": state_bytes(transformation, shapes)}
        try:
            step = Step(transformation, gradients, params)
        except Exception as error:  # whatever it is, the others go on
            figures[name]["problem"] = one_line(error)
            continue
        calls[name] = step.at(0)
        if name == "m3":
            calls[END] = step.at(M3_PERIOD - 1)
    timings = interleave(calls, rounds, max_seconds)
    for name, row in figures.items():
        if name in timings:
            row |= _row([timings[name], timings[END]] if name == "m3" else [timings[name]])
    return {"parameters": sum(math.prod(s.shape) for s in shapes.values()), "optimizers": figures}


class Step:
    """Steps of one optimizer on the same gradients, compiled; the state goes from one to the next.

    Args:
        transformation: the optimizer.
        gradients, params: trees of arrays.
    """

    def __init__(self, transformation: optax.GradientTransformation, gradients: Any, params: Any):
        self._given = gradients, params
        self._state: Any = jax.block_until_ready(jax.jit(transformation.init)(params))

        def update(state, gradients, params, count):
            if optax.tree.get_all_with_path(state, "count"):
                state = optax.tree.set(state, count=count)
            # the state first: XLA gives donated buffers to results in their order, and copies what is crossed
            return transformation.update(gradients, state, params)[::-1]

        update = jax.jit(update, donate_argnums=0)
        self._update = update.lower(self._state, *self._given, jnp.zeros((), jnp.int32)).compile()

    def at(self, count: int) -> Callable[[], float]:
        """A step as a call, as if ``count`` steps had been taken before it."""
        steps = jnp.asarray(count, jnp.int32)

        def call() -> float:
            self._state, _ = jax.block_until_ready(self._update(self._state, *self._given, steps))
            return 0.0

        return call


def _row(timings: Sequence[Timing]) -> dict[str, Any]:
    """Figures of one optimizer: its steps, and those that end a period where it has one."""
    for timing in timings:
        if not timing.seconds:
            return {"problem": timing.problem}
    first, *last = (statistics.median(timing.seconds) for timing in timings)
    row: dict[str, Any] = {"step_seconds": first, "all_step_seconds": [timing.seconds for timing in timings]}
    if last:
        row |= {"step_seconds": first + (last[0] - first) / M3_PERIOD, "last_of_period_seconds": last[0]}
    return row
