"""The paper's problem in two dimensions (Eq. 53, Figure 4), by optimizers as memories of the gradient."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.axes import Axes

from nl_jax.optim import deep_momentum, delta_momentum, feature_momentum, m3, preconditioned_momentum

START = (-3.5, 2.0)
GOAL = 1e-3
STEPS = 2000  # at most
RATES = np.logspace(-4, 1, 101)  # 20 a decade, the same for all
# (k, a, ω): Figure 4's first, then others, so that one lucky setting is not the story.
SETTINGS = ((10, 1, 2), (10, 2, 1), (5, 1, 4), (50, 1, 1), (100, 1, 0.5), (100, 8, 0.2))
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "delta_momentum": delta_momentum,
    "delta_momentum_0.01": lambda rate: delta_momentum(rate, strength=0.01),
    "delta_momentum_printed": lambda rate: delta_momentum(rate, form="printed"),
    "preconditioned_momentum": preconditioned_momentum,
    "feature_momentum": feature_momentum,
    "deep_momentum": deep_momentum,
    "adam": optax.adam,
    "muon": optax.contrib.muon,
    "m3": m3,
}


class Path(NamedTuple):
    """What an optimizer does at its best rate.

    Attributes:
        rate: of `RATES`.
        steps: to a loss below `GOAL`; None where no rate gets there.
        points: r and θ before each step, up to the goal.
    """

    rate: float
    steps: int | None
    points: list[list[float]]


def loss(point: Any, setting: Sequence[float]) -> Float[Array, ""]:
    """Of a point (r, θ), ψ = r² + k (r - θ + a sin(ω r))² (Eq. 53)."""
    k, a, omega = setting
    r, theta = point
    return r**2 + k * (r - theta + a * jnp.sin(omega * r)) ** 2


def descend(make: Callable[[Any], optax.GradientTransformation], settings: Sequence[Sequence[float]]) -> list[Path]:
    """The fewest steps to the goal over all `RATES`, in each setting; all runs are one program.

    The point is a matrix [1, 2], so that optimizers of matrices have something to do: its orthogonal form is itself at
    length 1. The others treat it as a vector, but for Delta Momentum, deep momentum and features, which get a vector.
    """
    shape = (1, 2) if make in (OPTIMIZERS["muon"], OPTIMIZERS["m3"]) else (2,)

    def run(rate, setting):
        transformation = make(rate)
        start = jnp.array(START).reshape(shape)

        def step(carry, _):
            point, state = carry
            value, gradient = jax.value_and_grad(lambda p: loss(p.reshape(2), setting))(point)
            update, state = transformation.update(gradient, state, point)
            return (optax.apply_updates(point, update), state), (value, point.reshape(2))

        _, (values, points) = jax.lax.scan(step, (start, transformation.init(start)), length=STEPS)
        there = values < GOAL
        return jnp.where(there.any(), jnp.argmax(there), STEPS), points

    over_rates = jax.vmap(run, in_axes=(0, None))
    steps, points = jax.device_get(
        jax.jit(jax.vmap(over_rates, in_axes=(None, 0)))(jnp.asarray(RATES), jnp.asarray(settings, jnp.float32))
    )
    paths = []
    for steps_by_rate, points_by_rate in zip(steps, points, strict=True):
        best = int(np.argmin(steps_by_rate))
        count = int(steps_by_rate[best])
        path = points_by_rate[best][: count + 1]
        paths.append(Path(float(RATES[best]), count if count < STEPS else None, path.tolist()))
    return paths


def draw(axes: Axes, setting: Sequence[float], paths: dict[str, dict[str, Any]]) -> None:
    """Contours of the loss, and the way of every optimizer down to the goal."""
    r, theta = np.meshgrid(np.linspace(-4.5, 3.0, 300), np.linspace(-4.5, 4.5, 300))
    levels = jax.vmap(jax.vmap(lambda *point: loss(point, setting)))(r, theta)
    axes.contourf(r, theta, np.log10(np.asarray(levels) + 1e-3), levels=30, cmap="Greys", alpha=0.7)
    for name, path in paths.items():
        if path["steps"] is not None:
            points = np.array(path["points"])
            axes.plot(*points.T, marker=".", markersize=3, linewidth=1, label=f"{name}, {path['steps']} steps")
    axes.plot(0, 0, "r*", markersize=10)
    axes.set(xlabel="r", ylabel="θ", xlim=(-4.5, 3.0), ylim=(-4.5, 4.5))
    axes.legend(fontsize=8)
