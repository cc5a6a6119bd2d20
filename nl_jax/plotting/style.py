"""The one style of all figures: sizes that stay readable at the width of a README, and colours for the colour-blind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nl_jax.files import in_place_of

WIDTH = 8.0
"""Width of a figure in inches: at `save_figure`'s resolution 1,200 pixels, of which a README shows about 800."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's colours without yellow, which is too pale on white; their order keeps neighbours far apart."""
GRAY = "#808080"
"""The colour of what is only there to compare with."""
STYLE: Any = {
    "figure.dpi": 80,  # where a notebook shows it; `save_figure` has its own
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=COLORS),
    "grid.alpha": 0.3,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "image.cmap": "cividis",
}
"""Matplotlib's options of all figures, as `matplotlib.rc_context` takes them."""


def new_figure(rows: int = 1, columns: int = 1, *, height: float = 4.5, width: float = WIDTH, **options: Any) -> Any:
    """Returns ``(figure, axes)`` in the style of all figures; it sets no global option of Matplotlib.

    Args:
        rows, columns: numbers of panels; where there are several, ``axes`` is an array of them, as of ``subplots``.
        height, width: size in inches.
        options: of `Figure.subplots`, such as ``sharey=True``.

    Examples:
        >>> figure, axes = new_figure(height=3)
        >>> figure.get_size_inches().tolist()
        [8.0, 3.0]
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a Matplotlib figure as PNG, completely or not at all, and returns the path.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.plotting import new_figure, save_figure
        >>> figure, axes = new_figure()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_figure(figure, Path(folder) / "empty.png")
        ...     print(path.name, path.stat().st_size > 0)
        empty.png True
    """
    with in_place_of(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return path


def label_curves(axes: Axes, *, size: float = 10) -> None:
    """Writes the name of each labelled line beside its right end, in its colour; call it when all else is drawn.

    Names that would overlap move apart, and a thin line then leads to the curve. There is a legend instead where a
    curve ends before the last tenth of the panel, or where the names do not fit its height. Nothing happens where no
    line has a label.

    Args:
        axes: a panel with lines; its scales and limits are final.
        size: font size in points.

    Examples:
        >>> from nl_jax.plotting import label_curves, new_figure
        >>> figure, axes = new_figure()
        >>> lines = axes.plot([0, 1], [0, 1], label="hope")
        >>> label_curves(axes)
        >>> [text.get_text() for text in axes.texts]
        ['hope']
    """
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        return
    _, right = axes.get_xlim()
    axes.get_ylim()  # settles the limits, on which the transformation depends
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = np.array([to_axes.transform(_end(line, axes, right)) for line in lines])
    figure: Any = axes.figure
    gap = 1.25 * size / (72 * figure.get_size_inches()[1] * axes.get_position().height)
    others = len(lines) < len(axes.get_legend_handles_labels()[1])  # something else than lines has a label, too
    if others or not np.min(ends[:, 0]) > 0.9 or len(lines) * gap > 1.1 or not np.isfinite(ends).all():
        axes.legend(fontsize=size)
        return
    places = spread(ends[:, 1], gap)
    places += max(0.0, -places.min()) if places.min() < 0 else min(0.0, 1.0 - places.max())  # not below the axis
    for line, (x, y), place in zip(lines, ends, places, strict=True):
        leader = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            str(line.get_label()),
            xy=(x, y),
            xytext=(max(x, 1.0) + 0.025, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.get_color(),
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops=leader if abs(place - y) > gap / 3 else None,
        )


def _end(line: Line2D, axes: Axes, right: float) -> tuple[float, float]:
    """The last finite point of a line; of one across the whole panel, its point at the right."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    there = np.flatnonzero(np.isfinite(y))
    if not len(there):
        return np.nan, np.nan
    return (right if line.get_transform() != axes.transData else x[there[-1]]), y[there[-1]]


def spread(places: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """Moves places along a line apart until neighbours differ by ``gap``, as little as possible, in the same order.

    Examples:
        >>> spread([0.5, 0.0, 0.5], 0.2).round(2).tolist()
        [0.4, 0.0, 0.6]
    """
    order = np.argsort(places, kind="stable")
    clusters: list[list[float]] = []  # of each: the sum of what its members wish its first to be, and their number
    for place in np.asarray(places, float)[order]:
        clusters.append([place, 1])
        while len(clusters) > 1 and _first(clusters[-1]) < _first(clusters[-2]) + gap * clusters[-2][1]:
            total, count = clusters.pop()
            clusters[-1][0] += total - count * gap * clusters[-1][1]
            clusters[-1][1] += count
    moved = np.empty(len(order))
    moved[order] = [_first(cluster) + gap * i for cluster in clusters for i in range(int(cluster[1]))]
    return moved


def _first(cluster: list[float]) -> float:
    return cluster[0] / cluster[1]
