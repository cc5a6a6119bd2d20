"""Line charts as SVG text: small enough to be drawn anew every few seconds beside a run."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from nl_jax.plotting.style import COLORS, spread

WIDTH, HEIGHT = 800, 280
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 26, 40  # room for ticks, for the lines' names, for the title, for the axis
MOST_POINTS = 300
GRID = 'stroke="currentColor" stroke-opacity="0.15"'
SPACING = 15  # least distance between two names


class Line(NamedTuple):
    """A curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, log: bool = False) -> str:
    """The chart as an SVG element, with each line's name at its end.

    Args:
        lines: the curves; values that are not finite, and on a logarithmic axis not positive, are left out.
        title: what the vertical axis shows, with its unit.
        x_label: what the horizontal axis shows.
        log: whether the vertical axis is logarithmic.
    """
    kept = [line for line in (_drawable(line, log) for line in lines) if line.x]
    if not kept:
        return ""
    x_low, x_high = _ends([x for line in kept for x in line.x])
    values = [math.log10(y) if log else y for line in kept for y in line.y]
    y_low, y_high = _ends(values)

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="15" font-weight="bold">{html.escape(title)}</text>']
    parts += [f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{x_label}</text>']
    for tick in ticks(x_low, x_high):
        x = place(tick, kept[0].y[0])[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:,.6g}</text>')
    for tick in (10.0**t for t in ticks(y_low, y_high)) if log else ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {GRID}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.3g}</text>')
    ends = [place(line.x[-1], line.y[-1])[1] for line in kept]
    names = _short([line.name for line in kept])
    for i, (line, name, y) in enumerate(zip(kept, names, _apart(ends), strict=True)):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line.x, line.y))
        color, label = COLORS[i % len(COLORS)], html.escape(f"{line.y[-1]:.4g} {name}")
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{y + 4:.1f}" fill="{color}">{label}</text>')
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" font-size="12" fill="currentColor">'
        f"<title>{html.escape(title)}</title>\n{body}\n</svg>"
    )


def _short(names: Sequence[str]) -> list[str]:
    """The names without the parts between slashes that all of them share."""
    parts = [name.split("/") for name in names]
    if len(names) < 2 or len({len(own) for own in parts}) > 1:
        return list(names)
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return ["/".join(part for part, keep in zip(own, differ, strict=True) if keep) for own in parts]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _drawable(line: Line, log: bool) -> Line:
    """The points that can be drawn, at most `MOST_POINTS`, each the mean of neighbours."""
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]
    size = -(-len(pairs) // MOST_POINTS) or 1
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    means = [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]
    return Line(line.name, [x for x, _ in means], [y for _, y in means])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value, apart from each other."""
    low, high = min(values), max(values)
    margin = (abs(low) or 1.0) * 0.05 if high - low <= 1e-12 * max(abs(low), abs(high)) else 0.0
    return low - margin, high + margin


def _apart(places: Sequence[float]) -> list[float]:
    """Places of names moved so that no two overlap, and none lies below the horizontal axis."""
    moved = spread(places, SPACING)
    return (moved - max(0.0, moved.max() - (HEIGHT - BOTTOM))).tolist()
