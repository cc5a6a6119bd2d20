"""The time of an optimizer's step alone, and the size of its state (Figure 12)."""

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
M3_PERIOD = 16  # the default period of the slow memory of M3
END = f"m3, step {M3_PERIOD}"  # the last step of a period, which also orthogonalises the slow memory


def parameter_shapes(size: float) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the matrices of a Transformer with 6 layers, without embeddings: 4 of width² and 2 of 4 width² each.

    Together they have about ``size`` parameters. The width is a multiple of 64, at least 64.
    """
    width = 64 * max(1, round((size / (12 * LAYERS)) ** 0.5 / 64))
    shapes = {name: (width, width) for name in ("query", "key", "value", "output")}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return {name: jax.ShapeDtypeStruct((LAYERS, *shape), jnp.float32) for name, shape in shapes.items()}


def state_bytes(transformation: optax.GradientTransformation, shapes: Any) -> int:
    """Number of bytes of an optimizer's state for parameters with these shapes."""
    state = jax.eval_shape(transformation.init, shapes)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def measure(optimizers: Mapping[str, Optimizer], size: float, rounds: int, max_seconds: float) -> dict[str, Any]:
    """Times the steps of all optimizers in turn, round by round, from gradients, state and parameters to updates.

    The state is donated, as in training. M3 orthogonalises its slow memory once per period: this step is timed
    separately, and the step time of M3 is the mean of the medians over a period.

    Args:
        optimizers: optimizers by name.
        size: approximate number of parameters.
        rounds: number of rounds after one to warm up.
        max_seconds: a step whose warm-up takes longer is not repeated; the time of its warm-up counts.

    Returns:
        ``parameters``, and ``optimizers``: for each optimizer ``state_bytes``, and ``step_seconds`` or a ``problem``.
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
        except Exception as error:  # any error concerns this optimizer only
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
    """The compiled step of one optimizer, always with the same gradients; the state passes from step to step.

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
            # the state comes first: XLA assigns donated buffers to results in order, and copies if orders differ
            return transformation.update(gradients, state, params)[::-1]

        update = jax.jit(update, donate_argnums=0)
        self._update = update.lower(self._state, *self._given, jnp.zeros((), jnp.int32)).compile()

    def at(self, count: int) -> Callable[[], float]:
        """A function that makes one step, as if ``count`` steps had been made before it."""
        steps = jnp.asarray(count, jnp.int32)

        def call() -> float:
            self._state, _ = jax.block_until_ready(self._update(self._state, *self._given, steps))
            return 0.0

        return call


def _row(timings: Sequence[Timing]) -> dict[str, Any]:
    """Figures of one optimizer from the timings of its steps and, if it has periods, of the steps that end one."""
    for timing in timings:
        if not timing.seconds:
            return {"problem": timing.problem}
    first, *last = (statistics.median(timing.seconds) for timing in timings)
    row: dict[str, Any] = {"step_seconds": first, "all_step_seconds": [timing.seconds for timing in timings]}
    if last:
        row |= {"step_seconds": first + (last[0] - first) / M3_PERIOD, "last_of_period_seconds": last[0]}
    return row
