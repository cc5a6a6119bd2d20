"""Curves with their spread over seeds: forgetting, and bits per byte against context."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nl_jax.plotting.style import label_curves, new_figure


def plot_band(
    axes: Axes,
    x: Any,
    curves: Float[np.ndarray, "seeds points"],
    *,
    alpha: float = 0.2,
    marker: str = "o",
    **style: Any,
) -> None:
    """Draws the mean of curves in the given line ``style``, and a band of opacity ``alpha`` from min to max.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.plotting import new_figure, plot_band
        >>> figure, axes = new_figure()
        >>> plot_band(axes, [1, 2], np.array([[0.0, 1.0], [2.0, 3.0]]), label="two seeds")
        >>> axes.lines[0].get_ydata().tolist()  # the mean
        [1.0, 2.0]
    """
    (line,) = axes.plot(x, curves.mean(axis=0), marker=marker, markersize=3, **style)
    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=alpha, linewidth=0)


def forgetting_curves(matrices: Mapping[str, Sequence[Float[np.ndarray, "T T"]]]) -> Figure:
    """Draws accuracy against the number of tasks learned: on all tasks so far, and on the first one.

    Args:
        matrices: by learner, an accuracy matrix (`nl_jax.evaluation.accuracy_matrix`) for each seed or order of tasks;
            a curve is the mean over them, and its band reaches from min to max.

    Examples:
        >>> matrix = np.array([[0.9, np.nan], [0.5, 0.8]])
        >>> figure = forgetting_curves({"fine-tuning": [matrix]})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['accuracy on all tasks so far', 'accuracy on the first task']
    """
    figure, panels = new_figure(columns=2, height=4.2, sharey=True)
    for name, found in matrices.items():
        shapes = sorted({np.shape(m) for m in found})
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise ValueError(
                f"learner {name!r} has matrices of shapes {shapes}; expected one or more of one shape [T, T]"
            )
        tasks = np.arange(1, len(found[0]) + 1)
        plot_band(panels[0], tasks, np.array([np.nanmean(m, axis=1) for m in found]), alpha=0.1, label=name)
        plot_band(panels[1], tasks, np.array([m[:, 0] for m in found]), alpha=0.1, label=name)
    panels[0].set(ylabel="accuracy on all tasks so far", ylim=(0, 1.02))
    panels[1].set(ylabel="accuracy on the first task")
    for axes in panels:
        axes.set_xlabel("tasks learned")
        axes.xaxis.get_major_locator().set_params(integer=True)
    label_curves(panels[1], size=9)
    return figure


def bits_per_byte_against_context(
    curves: Mapping[str, Float[np.ndarray, "seeds points"]], ends: Sequence[int], **options: Any
) -> Figure:
    """Draws bits per byte at positions of a context, which is read on a logarithmic scale.

    Args:
        curves: by model, the figures of each seed; a curve is their mean, and its band reaches from min to max.
        ends: for each point, the last position that it is the mean of, such as those of `nl_jax.evaluation.octaves`.
        options: of `plot_bits`.

    Examples:
        >>> figure = bits_per_byte_against_context({"hope": np.array([[2.3, 2.1, 1.9]])}, [64, 128, 256])
        >>> figure.axes[0].get_ylabel()
        'bits per byte'
    """
    figure, axes = new_figure()
    plot_bits(axes, curves, ends, **options)
    return figure


def plot_bits(
    axes: Axes,
    curves: Mapping[str, Float[np.ndarray, "seeds points"]],
    ends: Sequence[int],
    *,
    unit: str = "bits per byte",
    xlabel: str = "position in the context, up to",
) -> None:
    """Draws `bits_per_byte_against_context` into a panel; ``unit`` and ``xlabel`` name its axes.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.plotting import new_figure, plot_bits
        >>> figure, axes = new_figure()
        >>> plot_bits(axes, {"hope": np.array([[2.3, 2.1, 1.9]])}, [64, 128, 256])
        >>> axes.get_xscale(), [label.get_text() for label in axes.get_xticklabels()]
        ('log', ['64', '128', '256'])
    """
    for name, values in curves.items():
        if np.ndim(values) != 2 or np.shape(values)[1] != len(ends):
            raise ValueError(
                f"curve {name!r} has shape {np.shape(values)}; expected [seeds, {len(ends)}], as many as ends"
            )
        plot_band(axes, ends, np.asarray(values), label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ends, [f"{end:,}" for end in ends], rotation=45 if len(ends) > 8 else 0)
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=unit)
    label_curves(axes)
