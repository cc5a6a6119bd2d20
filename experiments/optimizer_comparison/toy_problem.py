"""The paper's problem in two dimensions (Eq. 53, Figure 4), solved by optimizers as memories of the gradient."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from nl_jax.optim import deep_momentum, delta_momentum, feature_momentum, m3, preconditioned_momentum
from nl_jax.plotting import COLORS, WIDTH, new_figure

START = (-3.5, 2.0)
GOAL = 1e-3
STEPS = 2000  # largest number of steps
RATES = np.logspace(-4, 1, 101)  # 20 per decade, the same for all optimizers
# (k, a, ω): the setting of Figure 4, then others, so that conclusions do not depend on one lucky setting.
SETTINGS = ((10, 1, 2), (10, 2, 1), (5, 1, 4), (50, 1, 1), (100, 1, 0.5), (100, 8, 0.2))
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "delta_momentum": delta_momentum,
    "delta_momentum_0.01": lambda rate: delta_momentum(rate, strength=0.01),
    "delta_momentum_paper": lambda rate: delta_momentum(rate, form="paper"),
    "preconditioned_momentum": preconditioned_momentum,
    "feature_momentum": feature_momentum,
    "deep_momentum": deep_momentum,
    "adam": optax.adam,
    "muon": optax.contrib.muon,
    "m3": m3,
}


class Path(NamedTuple):
    """The path of an optimizer at its best learning rate.

    Attributes:
        rate: the learning rate, one of `RATES`.
        steps: number of steps to a loss below `GOAL`; None if no rate reaches it.
        points: r and θ before each step, up to the goal; empty if it is not reached.
    """

    rate: float
    steps: int | None
    points: list[list[float]]


def loss(point: Any, setting: Sequence[float]) -> Float[Array, ""]:
    """The loss ψ = r² + k (r - θ + a sin(ω r))² at a point (r, θ) (Eq. 53)."""
    k, a, omega = setting
    r, theta = point
    return r**2 + k * (r - theta + a * jnp.sin(omega * r)) ** 2


def descend(make: Callable[[Any], optax.GradientTransformation], settings: Sequence[Sequence[float]]) -> list[Path]:
    """The path with the fewest steps to the goal over all `RATES`, for each setting; all runs are one program.

    The point is a vector. For Muon and M3, which are for matrices, it is a matrix with one row, whose orthogonalised
    form is the same row with length 1.
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
        reached = count < STEPS
        points_there = points_by_rate[best][: count + 1].tolist() if reached else []
        paths.append(Path(float(RATES[best]), count if reached else None, points_there))
    return paths


def draw(setting: Sequence[float], paths: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plots a panel for each optimizer: contours of the loss, and the path to the goal."""
    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    side = WIDTH / 4
    figure, panels = new_figure(
        rows, columns, width=side * columns, height=side * rows + 0.6, sharex=True, sharey=True, squeeze=False
    )
    r, theta = np.meshgrid(np.linspace(-4.5, 4.5, 200), np.linspace(-4.5, 4.5, 200))
    levels = np.log10(np.asarray(loss((r, theta), setting)) + GOAL)
    for axes in panels.flat[len(paths) :]:
        axes.set_visible(False)
    for axes, (name, path) in zip(panels.flat, paths.items(), strict=False):
        axes.grid(False)
        axes.contourf(r, theta, levels, levels=20, cmap="Greys", alpha=0.7)
        steps = "never" if path["steps"] is None else f"{path['steps']} steps"
        if path["points"]:
            axes.plot(*np.array(path["points"]).T, color=COLORS[0], marker=".", markersize=3, linewidth=1)
        axes.plot(0, 0, "*", color=COLORS[1], markersize=9)
        axes.set(title=f"{name.replace('_', ' ')}\n{steps}", xlim=(-4.5, 4.5), ylim=(-4.5, 4.5))
        axes.title.set_fontsize(9)
    figure.supxlabel("r")
    figure.supylabel("θ")
    return figure
