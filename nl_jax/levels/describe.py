"""Descriptions of levels and of their updates as text."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
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


def sources(contexts: Callable[[dict[str, Any]], dict[str, Any]], states: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """By level, the levels whose states its context depends on, found by tracing ``contexts(states)``.

    A level without a context is not in the answer. What a loop or a condition computes counts as made of all that
    it reads.
    """
    traced, shapes = jax.make_jaxpr(contexts, return_shape=True)(states)
    inputs = iter(traced.jaxpr.invars)
    origins = {next(inputs): {name} for name in sorted(states) for _ in jax.tree.leaves(states[name])}
    outputs = iter(_origins(traced.jaxpr, origins))
    found = {}
    for name in sorted(shapes):  # leaves of a dictionary come in the order of its keys
        found[name] = set().union(*(next(outputs) for _ in jax.tree.leaves(shapes[name])))
    return {name: tuple(sorted(names)) for name, names in found.items()}


def _origins(jaxpr: core.Jaxpr, origins: dict[Any, set[str]]) -> list[set[str]]:
    """For each output, the names that it depends on, given those of the inputs."""
    known = dict(origins)

    def of(variable: Any) -> set[str]:
        return set() if isinstance(variable, core.Literal) else known.get(variable, set())

    for equation in jaxpr.eqns:
        body = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        if body is None:
            given = [set().union(*map(of, equation.invars))] * len(equation.outvars)
        else:
            inner = {a: of(b) for a, b in zip(body.jaxpr.invars, equation.invars, strict=True)}
            given = _origins(body.jaxpr, inner)
        known.update(zip(equation.outvars, given, strict=True))
    return [of(variable) for variable in jaxpr.outvars]


def _size(tree: Any) -> int:
    return sum(prod(jnp.shape(x)) for x in jax.tree.leaves(tree))
