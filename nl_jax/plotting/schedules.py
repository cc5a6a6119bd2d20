"""Pictures of a schedule: which level is updated when, and how the levels form one nested system."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from nl_jax.plotting.style import COLORS, GRAY, new_figure

SHOWN_PERIODS = 200  # where there are more, updates are thin lines


class LevelLike(Protocol):
    """What is drawn of a level (`nl_jax.Level`)."""

    name: str
    period: int
    needs: tuple[str, ...]
    sees: tuple[str, ...]
    starts_from: str | None
    context: str
    objective: str


class ScheduleLike(Protocol):
    """What is drawn of a schedule (`nl_jax.Schedule`)."""

    @property
    def order(self) -> tuple[tuple[str, ...], ...]:
        """Groups of level names, the fastest first."""

    def __getitem__(self, name: str) -> Any:
        """Returns the level with this name."""

    def timeline(self, n: int) -> Bool[np.ndarray, "n levels"]:
        """Whether each level is updated at each of the first n steps."""

    def sources(self, data: Any) -> Mapping[str, Sequence[str]]:
        """By level, the names of the levels whose answers its context is made of."""


def level_timeline(schedule: ScheduleLike, steps: int) -> Figure:
    """Draws when each level of a schedule is updated, the slowest level on top.

    A pale bar is a period, in which a level gathers contexts; the dark end of the bar is the update that uses them.

    Args:
        schedule: an `nl_jax.Schedule`.
        steps: number of steps to draw.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from nl_jax import Schedule
        >>> from nl_jax.levels import from_optax
        >>> from nl_jax.plotting import level_timeline
        >>> sgd, w = optax.sgd(0.1), jnp.ones(())
        >>> levels = [from_optax("fast", sgd, w), from_optax("slow", sgd, w, period=4)]
        >>> [label.get_text() for label in level_timeline(Schedule(levels), 8).axes[0].get_yticklabels()]
        ['fast\\nevery step', 'slow\\nevery 4 steps']
    """
    names = [name for group in schedule.order for name in group]
    figure, axes = new_figure(height=1.2 + 0.55 * len(names))
    for row, (name, due) in enumerate(zip(names, schedule.timeline(steps).T, strict=True)):
        color, period = COLORS[row % len(COLORS)], schedule[name].period
        ends = 1 + np.flatnonzero(due)
        starts = np.arange(0, steps, period)
        if len(starts) > SHOWN_PERIODS:
            axes.barh(row, steps, left=0, height=0.6, color=color, alpha=1.0 if period == 1 else 0.25, linewidth=0)
            axes.vlines(ends if period > 1 else [], row - 0.3, row + 0.3, color=color, linewidth=0.5)
            continue
        axes.barh(
            row, np.minimum(period, steps - starts), left=starts, height=0.6, color=color, alpha=0.25, linewidth=0
        )
        axes.vlines(starts[1:], row - 0.3, row + 0.3, color="white", linewidth=1)
        thick = min(1.0, 0.3 * period)
        if period == 1:
            axes.barh(row, 0.8, left=ends - 0.9, height=0.6, color=color)
        else:
            axes.barh(row, thick, left=ends - thick, height=0.6, color=color)
    axes.set_yticks(range(len(names)), [f"{name}\n{every(schedule[name].period)}" for name in names])
    for tick, color in zip(axes.get_yticklabels(), COLORS * len(names), strict=False):
        tick.set_color(color)
    axes.grid(False, axis="y")
    axes.set(xlim=(0, steps), ylim=(-0.5, len(names) - 0.5), xlabel="steps")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def every(period: int) -> str:
    """A period in words."""
    return "every step" if period == 1 else f"every {period:,} steps"


# Kinds of knowledge that flows between levels: colour, line style, meaning.
_FLOWS: dict[str, Any] = {
    "reads": (COLORS[0], "-", "its answers are part of the other's context"),
    "needs": (COLORS[1], "-", "its state after the step is read by the other's update"),
    "sees": (COLORS[1], "--", "its state before the step is read by the other's update"),
    "starts": (COLORS[2], ":", "the other starts from it, anew after each of its updates"),
}
_BOX, _LANE = 5.2, 0.28  # width of a box, distance of two arrows' vertical parts


def nested_system(schedule: ScheduleLike, data: Any = None) -> Figure:
    """Draws the levels of a schedule as boxes, the slowest on top, with arrows for what flows between them.

    A box has a level's name, period, context and objective. Arrows on the right are knowledge that one level takes
    from another (§3.3): each kind has its own line, which the key below explains. The arrow on the left is the data.

    Args:
        schedule: an `nl_jax.Schedule`.
        data: data of one step. If given, the schedule's flow is traced, and arrows show whose answers it puts into
            whose context; without, there are only the arrows of ``needs``, ``sees`` and ``starts_from``.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from nl_jax import Schedule
        >>> from nl_jax.levels import from_optax
        >>> from nl_jax.plotting import nested_system
        >>> sgd, w = optax.sgd(0.1), jnp.ones(())
        >>> levels = [from_optax("fast", sgd, w), from_optax("slow", sgd, w, period=4)]
        >>> any("slow" in text.get_text() for text in nested_system(Schedule(levels)).axes[0].texts)
        True
    """
    names = [name for group in schedule.order for name in group]
    arrows = _arrows(schedule, names, {} if data is None else schedule.sources(data))
    kinds = dict.fromkeys(kind for kind, _, _ in arrows)
    figure, axes = new_figure(height=0.9 + 0.95 * len(names) + 0.28 * len(kinds))
    axes.set_axis_off()
    axes.add_patch(
        FancyBboxPatch((0, -0.95), _BOX, 0.35, boxstyle="round,pad=0.06", color=GRAY, alpha=0.2, linewidth=0)
    )
    axes.text(_BOX / 2, -0.775, "data, one step at a time", ha="center", va="center", fontsize=11)
    for row, name in enumerate(names):
        _draw_box(axes, row, schedule[name])
        _draw_route(axes, [(-0.06, -0.775), (-0.4, -0.775), (-0.4, row), (-0.08, row)], GRAY, "-")
    for lane, (kind, start, end) in enumerate(sorted(arrows, key=lambda arrow: abs(arrow[1] - arrow[2]))):
        color, style, _ = _FLOWS[kind]
        begin, finish = (_port(arrows, row, (kind, start, end)) for row in (start, end))
        x = _BOX + 0.35 + _LANE * lane
        _draw_route(axes, [(_BOX + 0.06, begin), (x, begin), (x, finish), (_BOX + 0.08, finish)], color, style)
    if kinds:
        key = [
            Line2D([], [], color=color, linestyle=style, label=text)
            for color, style, text in map(_FLOWS.__getitem__, kinds)
        ]
        figure.legend(handles=key, loc="outside lower center", frameon=False, fontsize=10)
    axes.set(xlim=(-0.6, _BOX + 0.5 + _LANE * max(len(arrows), 1)), ylim=(-1.1, len(names) - 0.45))
    return figure


def _arrows(
    schedule: ScheduleLike, names: Sequence[str], sources: Mapping[str, Sequence[str]]
) -> list[tuple[str, int, int]]:
    """Kind, row where the knowledge comes from, and row that takes it; a level that reads itself has no arrow."""
    found = []
    for row, name in enumerate(names):
        level = schedule[name]
        takes = {"reads": sources.get(name, ()), "needs": level.needs, "sees": level.sees}
        takes["starts"] = (level.starts_from,) if level.starts_from else ()
        found += [
            (kind, names.index(other), row) for kind, others in takes.items() for other in others if other != name
        ]
    return found


def _port(arrows: Sequence[tuple[str, int, int]], row: int, arrow: tuple[str, int, int]) -> float:
    """The height at which an arrow meets the box of a row: arrows to rows above at the top, each at its own place."""
    mine = sorted((a for a in arrows if row in a[1:]), key=lambda a: (a[1] + a[2], a[1] == row))
    return row + 0.6 * ((mine.index(arrow) + 1) / (len(mine) + 1) - 0.5)


def _draw_box(axes: Axes, row: int, level: LevelLike) -> None:
    color = COLORS[row % len(COLORS)]
    box = FancyBboxPatch(
        (0, row - 0.3), _BOX, 0.6, boxstyle="round,pad=0.06", facecolor="white", edgecolor=color, linewidth=1.8
    )
    axes.add_patch(box)
    axes.text(0.1, row + 0.14, level.name, color=color, weight="bold", va="center", fontsize=12)
    axes.text(_BOX - 0.1, row + 0.14, every(level.period), color=color, ha="right", va="center", fontsize=11)
    texts = (("context", level.context), ("objective", level.objective))
    words = [f"{title}: {_short(text)}" for title, text in texts if text not in ("", "<lambda>")]
    axes.text(0.1, row - 0.16, "   ".join(words), va="center", fontsize=10, color="0.25")


def _short(text: str, length: int = 34) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _draw_route(axes: Axes, points: Sequence[tuple[float, float]], color: str, style: str) -> None:
    """Draws a line through points, with an arrow head at its end."""
    axes.plot(*zip(*points, strict=True), color=color, linestyle=style, linewidth=1.4, solid_joinstyle="round")
    x, y = points[-1]
    before = (x + 0.1 * np.sign(points[-2][0] - x), y)  # only the head: the line may be dotted
    head = {"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(x, y), xytext=before, arrowprops=head)
