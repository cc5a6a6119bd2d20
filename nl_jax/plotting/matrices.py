"""Matrices as pictures: accuracy after each task, and what a memory holds of each token."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from nl_jax.plotting.style import WIDTH, new_figure

WITH_NUMBERS = 8  # an accuracy matrix of at most so many tasks has its numbers written in it
VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "␣", "\r": "␍"})


def accuracy_heat_map(matrices: Float[np.ndarray, "T T"] | Mapping[str, Float[np.ndarray, "T T"]]) -> Figure:
    """Draws accuracy on each task (columns) after each task (rows), the first on top; entries that are NaN stay white.

    Args:
        matrices: one accuracy matrix (`nl_jax.evaluation.accuracy_matrix`), or one by learner, with a panel each.

    Examples:
        >>> figure = accuracy_heat_map(np.array([[0.9, np.nan], [0.5, 0.8]]))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.90', '0.50', '0.80']
    """
    named = matrices if isinstance(matrices, Mapping) else {"": matrices}
    if not named:
        raise ValueError("matrices has no entries; expected one or more")
    columns = min(4, len(named))
    rows = math.ceil(len(named) / columns)
    width = WIDTH if columns > 1 else 5.0
    side = width / columns
    figure, grid = new_figure(rows, columns, width=width, height=0.9 + rows * side, squeeze=False)
    figure.set_layout_engine("compressed")  # the panels are square, whatever room there is
    panels = grid.ravel()
    for axes, (name, matrix) in zip(panels, named.items(), strict=False):
        _draw_accuracies(axes, np.asarray(matrix), name)
    for axes in panels[len(named) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("after task")
    for axes in panels[max(0, len(named) - columns) : len(named)]:  # the lowest of each column
        axes.set_xlabel("accuracy on task")
    bar = figure.colorbar(panels[0].images[0], ax=list(panels), location="bottom", shrink=0.5, aspect=30)
    bar.set_label("accuracy")
    return figure


def _draw_accuracies(axes: Axes, matrix: np.ndarray, title: str) -> None:
    axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="cividis", aspect="equal")
    axes.grid(False)
    axes.set_title(title)
    step = max(1, math.ceil(len(matrix) / 6))
    ticks = list(range(0, len(matrix), step))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    if len(matrix) <= WITH_NUMBERS:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                color = "white" if value < 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)


def memory_heat_map(
    values: Float[np.ndarray, "rows T"] | Float[np.ndarray, " T"],
    tokens: Sequence[str],
    *,
    label: str,
    rows: Sequence[str] | None = None,
    title: str = "",
    centre: float | None = None,
    per_line: int = 64,
) -> Figure:
    """Draws values of each token of a text as colours above the tokens, which are read like lines of text.

    Args:
        values: a value for each token, or several (rows), such as one for each memory or for each later token.
        tokens: the text, a string for each token; white space is shown by signs.
        label: what the colours are, with their unit.
        rows: names of the rows.
        title: title of the figure.
        centre: if given, the value that is white, with others red above it and blue below it.
        per_line: number of tokens in a line; a longer text goes on in the next line, with the same colours.

    Raises:
        ValueError: if there is not one value for each token, or not one name for each row.

    Examples:
        >>> figure = memory_heat_map(np.array([0.1, 0.9]), ["a", " "], label="η")
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['a', '␣']
    """
    values = np.atleast_2d(np.asarray(values, float))
    if values.ndim > 2 or not len(tokens) or per_line < 1:
        given = f"values of shape {values.shape}, {len(tokens)} tokens, per_line={per_line}"
        raise ValueError(f"{given}: expected values [rows, T], and at least one token in all and in a line")
    if values.shape[1] != len(tokens):
        raise ValueError(f"values has {values.shape[1]} columns; expected one for each of {len(tokens)} tokens")
    if rows is not None and len(rows) != len(values):
        raise ValueError(f"rows has {len(rows)} names; expected one for each of {len(values)} rows")
    lines = math.ceil(len(tokens) / per_line)
    tall = len(values) * (0.22 if len(values) <= 16 else 3.5 / len(values))
    figure, panels = new_figure(lines, height=0.9 + lines * (tall + 0.4), squeeze=False)
    norm = _norm(values, centre)
    shown = [token.translate(VISIBLE) for token in tokens]
    for line, axes in enumerate(panels[:, 0]):
        part = slice(line * per_line, (line + 1) * per_line)
        picture = np.full((len(values), per_line if lines > 1 else len(tokens)), np.nan)
        picture[:, : len(shown[part])] = values[:, part]
        image = axes.imshow(picture, aspect="auto", norm=norm, cmap="cividis" if centre is None else "RdBu_r")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        long = max(map(len, shown)) > 1
        axes.set_xticks(range(len(shown[part])), shown[part], family="monospace", rotation=90 if long else 0)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelsize=min(10.0, 0.8 * 72 * WIDTH / (0.65 * picture.shape[1])))
        axes.set_yticks(range(len(values)) if rows is not None else [], rows)
    bar = figure.colorbar(image, ax=list(panels[:, 0]), location="right", pad=0.01, aspect=30, fraction=0.05)
    bar.set_label(label)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _norm(values: np.ndarray, centre: float | None) -> Normalize:
    """The scale of the colours: from min to max, or as far on both sides of the centre."""
    if centre is None:
        return Normalize(np.nanmin(values), np.nanmax(values))
    reach = float(np.nanmax(np.abs(values - centre))) or 1.0
    return TwoSlopeNorm(centre, centre - reach, centre + reach)
