"""Checks that levels fit together in one schedule, and computes the order of their updates."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from nl_jax.levels.level import Level
from nl_jax.trees import PyTree, is_under


class Named(Protocol):
    """A collection of levels by name; indexing raises an error for an unknown name."""

    def __getitem__(self, name: str) -> Level:
        """Returns the level with this name."""


def as_levels(given: Any) -> tuple[Level, ...]:
    """The levels as a tuple; ``ValueError`` unless there are one or more, each a `Level`."""
    if not isinstance(given, Iterable):
        raise ValueError(f"levels is a {type(given).__name__}; expected a sequence of Level")
    levels = tuple(given)
    if not levels:
        raise ValueError("levels=(): expected one or more")
    for i, level in enumerate(levels):
        if not isinstance(level, Level):
            raise ValueError(f"levels[{i}] is a {type(level).__name__}; expected a Level")
    return levels


def change(was: str, now: str) -> str:
    """Says "from ... into ..." of two descriptions; of long ones, the part in which they begin to differ."""
    return f"from {_excerpt(was, now)} into {_excerpt(now, was)}"


def _excerpt(text: str, other: str, most: int = 200) -> str:
    """At most ``most`` characters of a text, from a little before the first in which it differs from the other."""
    differs = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    begin = max(0, differs - most // 2) if len(text) > most else 0
    end = begin + most
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"


def check(levels: Sequence[Level], named: Named) -> None:
    """Checks the levels against each other.

    Raises:
      ValueError: if two levels share a name or parameters, or if the period of a level does not fit those of the levels
        that it needs, sees or starts from.
    """
    for i, level in enumerate(levels):
        for other in levels[:i]:
            if other.name == level.name:
                raise ValueError(f"level {level.name!r}: two levels have this name")
            for path in level.paths:
                if is_under(path, other.paths) or any(is_under(p, (path,)) for p in other.paths):
                    raise ValueError(f"level {level.name!r}: its parameters {path!r} belong to {other.name!r} too")
        for name in level.needs:
            if named[name].period > level.period:
                raise ValueError(
                    f"level {level.name!r} needs {name!r}, which is slower and updated later; let it see {name!r}"
                )
        for name in level.sees:
            if named[name].period < level.period:
                raise ValueError(
                    f"level {level.name!r} sees {name!r}, which is faster and updated earlier; let it need {name!r}"
                )
        if level.starts_from is not None:
            slow = named[level.starts_from].period
            if slow <= level.period or slow % level.period:
                raise ValueError(
                    f"level {level.name!r}: period {level.period}; expected a divisor of, and less than, the period "
                    f"{slow} of {level.starts_from!r}, from which it starts"
                )


def order(levels: Sequence[Level], named: Named) -> tuple[tuple[str, ...], ...]:
    """Groups of names, the fastest first; levels of which neither precedes the other share a group (Definition 2)."""

    def depth(level: Level, path: tuple[str, ...] = ()) -> int:
        if level.name in path:
            raise ValueError(f"level {level.name!r} needs its own state: {' → '.join((*path, level.name))}")
        peers = [named[name] for name in level.needs if named[name].period == level.period]
        return max((1 + depth(peer, (*path, level.name)) for peer in peers), default=0)

    ranks: dict[tuple[int, int], list[str]] = {}
    for level in levels:
        ranks.setdefault((level.period, depth(level)), []).append(level.name)
    return tuple(tuple(ranks[key]) for key in sorted(ranks))


def chain(periods: Sequence[int]) -> tuple[int, ...]:
    """Lengths in steps of the nested scans, starting with 1. Every length divides all longer periods."""
    chain = [1]
    for i, period in enumerate(periods):
        if any(slower % period for slower in periods[i:]):
            break
        if period > 1:
            chain.append(period)
    return tuple(chain)


def number_of_steps(data: PyTree, *, by_level: bool) -> int:
    """Number of steps in a schedule's data, which must be the same for every array.

    Raises:
      ValueError: if it is not, or 0; it names the level where the data are ``by_level``.
    """
    lengths = {
        jax.tree_util.keystr(path): (*np.shape(x), 0)[0] for path, x in jax.tree_util.tree_leaves_with_path(data)
    }
    if not lengths:
        raise ValueError("data have no arrays, and so no number of steps")
    n = next(iter(lengths.values()))
    for path, length in lengths.items():
        if length != n or n == 0:
            where = f"level {path[2:].split(chr(39))[0]!r}" if by_level else f"data{path}"
            raise ValueError(f"{where}: context of {length} steps; expected the {n} of the first one, at least 1")
    return n
