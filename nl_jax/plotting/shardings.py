"""Which device holds which part of an array."""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nl_jax.plotting.style import COLORS, new_figure


def array_shardings(arrays: dict[str, jax.Array]) -> Figure:
    """Draws arrays as rectangles that are cut where one device's part ends and another's begins.

    Every part has the numbers of the devices that hold it. Of an array with more than two axes the last two are drawn,
    and a vector is a matrix with one row.

    Args:
        arrays: by title; the shape of each is written beside it.

    Examples:
        >>> figure = array_shardings({"w": jax.numpy.ones((4, 2))})
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0']
    """
    figure, panels = new_figure(columns=len(arrays), height=3.0, squeeze=False)
    for axes, (title, array) in zip(panels[0], arrays.items(), strict=True):
        rows, columns = (1, 1, *array.shape)[-2:]
        holders: dict[tuple[int, ...], list[int]] = {}
        parts: Any = array.sharding.devices_indices_map(array.shape)
        for device, index in parts.items():
            low_high = [part.indices(size)[:2] for part, size in zip(index, array.shape, strict=True)]
            place = tuple(edge for pair in [(0, 1), (0, 1), *low_high][-2:] for edge in pair)
            holders.setdefault(place, []).append(device.id)
        for number, ((top, bottom, left, right), devices) in enumerate(sorted(holders.items())):
            color, size = COLORS[number % len(COLORS)], (right - left, bottom - top)
            alpha = 0.35 if number < len(COLORS) else 0.7
            axes.add_patch(Rectangle((left, top), *size, facecolor=color, alpha=alpha, edgecolor="white", linewidth=2))
            text = ", ".join(map(str, sorted(set(devices))))
            axes.text((left + right) / 2, (top + bottom) / 2, text, ha="center", va="center", fontsize=10)
        axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(f"{title}\n{' × '.join(map(str, np.shape(array)))}")
    return figure
