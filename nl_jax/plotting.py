"""Plots, drawn by Matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nl_jax.files import in_place_of


def plot_timeline(names: Sequence[str], timeline: Bool[np.ndarray, "n levels"]) -> Figure:
    """Plots the steps at which each level is updated, as a row of ticks for each level, the last one on top."""
    figure = Figure(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.eventplot([1 + np.flatnonzero(due) for due in timeline.T], lineoffsets=range(len(names)), linelengths=0.7)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0.5, len(timeline) + 0.5)
    axes.set_xlabel("step")
    axes.set_title("Updates")
    return figure


def plot_band(
    axes: Axes,
    x: Any,
    curves: Float[np.ndarray, "seeds points"],
    *,
    alpha: float = 0.2,
    marker: str = "o",
    **style: Any,
) -> None:
    """Draws the mean of curves in the given line ``style``, and a band of opacity ``alpha`` from min to max."""
    (line,) = axes.plot(x, curves.mean(axis=0), marker=marker, markersize=3, **style)
    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=alpha, linewidth=0)


def plot_matrix(axes: Axes, matrix: Float[np.ndarray, "rows columns"], *, title: str = "") -> None:
    """Draws a matrix of accuracies from 0 to 1, the first row on top; entries that are NaN stay white."""
    axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="viridis", aspect="equal")
    axes.set(title=title, xlabel="task", ylabel="after task")
    axes.set_xticks([])
    axes.set_yticks([])


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a Matplotlib figure as PNG, completely or not at all, and returns the path."""
    with in_place_of(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return path
