"""What a schedule shows of itself: a tree of its levels, a figure of its timeline."""

import jax.numpy as jnp
import optax
from level_cases import still

from nl_jax import Schedule
from nl_jax.levels import Pair, from_loss, from_memory, from_optax
from nl_jax.memory import Architecture


def test_tree_says_what_there_is():
    inner = Schedule([from_optax("inside", optax.sgd(0.1), jnp.zeros(2))])

    def outer(w, x):
        return jnp.sum(w * x)

    schedule = Schedule(
        [
            from_loss("slow", outer, jnp.zeros((2, 3)), optax.adam(0.1), period=8, inner=inner),
            from_memory("memory", Architecture(4, 2), batch=(5,), period=2),
            from_optax("fast", optax.sgd(0.1), jnp.zeros(7), objective="outer"),
        ],
        lambda read, x: {"slow": jnp.ones(()), "memory": Pair(jnp.ones((5, 4)), jnp.ones((5, 2))), "fast": jnp.ones(7)},
    )
    assert schedule.tree(schedule.init(None, jnp.ones(()))).splitlines() == [
        "slow: period 8, context data, objective outer, 6 parameters, 13 in its optimizer",
        "  » inside: period 1, context gradients, summed, objective what made the gradients",
        "  memory: period 2, context keys and values, objective l2, 40 parameters, 0 in its optimizer",
        "    fast: period 1, context gradients, summed, objective outer, 7 parameters, 0 in its optimizer",
    ]


def test_plot_shows_the_timeline(tmp_path):
    schedule = Schedule([still("fast"), still("slow", 3)])
    figure = schedule.plot(6, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fast\nevery step", "slow\nevery 3 steps"]
    dark = [[p.get_x() + p.get_width() for p in bars if p.get_alpha() is None] for bars in axes.containers]
    assert [[round(end) for end in row] for row in dark if row] == [[1, 2, 3, 4, 5, 6], [3, 6]]
