"""Descriptions of levels and of their updates as text."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from nl_jax.levels.level import Level


def table(names: Sequence[str], timeline: Bool[np.ndarray, "n levels"]) -> str:
    """A row of text for each level: ``█`` at steps at which it is updated, ``·`` at all others."""
    width = max(map(len, names))
    rows = zip(names, timeline.T, strict=True)
    return "\n".join(f"{name:{width}}  {''.join('█' if due else '·' for due in row)}" for name, row in rows)


def line(level: Level, state: Any = None) -> str:
    """Describes a level: its period, context and objective; given a state, also the sizes of its two parts."""
    text = f"{level.name}: period {level.period}, context {level.context or '?'}, objective {level.objective or '?'}"
    if state is None:
        return text
    params, optimizer = map(_size, level.parts(state))
    return f"{text}, {params:,} parameters, {optimizer:,} in its optimizer"


def _size(tree: Any) -> int:
    return sum(prod(jnp.shape(x)) for x in jax.tree.leaves(tree))
