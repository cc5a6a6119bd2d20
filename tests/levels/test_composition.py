"""How levels fit together: their order from periods and needs, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from level_cases import loss_level, normal, still

from nl_jax import Level, Schedule


def test_order_is_computed_from_periods_and_needs():
    schedule = Schedule(
        [
            still("weights", needs=("first", "second")),
            still("slow", 8),
            still("second"),
            still("middle", 4, needs=("weights",)),
            still("first"),
            still("late", 8, needs=("slow", "middle")),
        ]
    )
    assert schedule.order == (("second", "first"), ("weights",), ("middle",), ("slow",), ("late",))
    assert schedule.table(8).splitlines()[-1] == "late     ·······█"
    np.testing.assert_array_equal(schedule.timeline(8).sum(0), [8, 8, 8, 2, 1, 1])


def test_adam_is_two_parallel_moments_and_the_weights_after_them():
    def moment(name, rate, power):
        return Level(
            name,
            1,
            lambda key, data: jnp.zeros(3),
            lambda m, g: rate * m + (1 - rate) * g[0] ** power,
        )

    def descend(state, context):
        w, t = state
        t = t + 1
        first = context.answers["first"] / (1 - 0.9**t)
        second = context.answers["second"] / (1 - 0.999**t)
        return w - 0.1 * first / (jnp.sqrt(second) + 1e-8), t

    weights = Level(
        "weights", 1, lambda key, data: (jnp.ones(3), 0.0), descend, lambda s, q: s[0], needs=("first", "second")
    )

    def flow(read, x):
        g = jax.grad(lambda w: jnp.sum((w - x) ** 2))(read("weights"))
        return {"first": g, "second": g}

    with jax.enable_x64(True):
        schedule = Schedule([weights, moment("first", 0.9, 1), moment("second", 0.999, 2)], flow)
        assert schedule.order == (("first", "second"), ("weights",))
        xs = normal(7, 3)
        state = schedule.run(schedule.init(None, xs[0]), xs)
        adam, w = optax.adam(0.1), jnp.ones(3)
        memory = adam.init(w)
        for x in xs:
            updates, memory = adam.update(2 * (w - x), memory)
            w = w + updates
        np.testing.assert_allclose(schedule.read(state, "weights"), w, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule([]), r"levels=\(\): expected one or more"),
        (lambda: Schedule([still("same"), still("same", 2)]), r"level 'same': two levels"),
        (lambda: Schedule([loss_level("x", "a"), loss_level("y", "a.w")]), r"level 'y': .* 'a.w' belong to 'x' too"),
        (lambda: Schedule([loss_level("x", "a.w"), loss_level("y", "")]), r"level 'y': .* '' belong to 'x' too"),
        (lambda: Schedule([still("x", needs=("y",))]), r"level 'y': unknown"),
        (lambda: Schedule([still("x", needs=("y",)), still("y", 2)]), r"level 'x' needs 'y', which is slower"),
        (lambda: Schedule([still("x", 2, sees=("y",)), still("y")]), r"level 'x' sees 'y', which is faster"),
        (
            lambda: Schedule([still("x", needs=("y",)), still("y", needs=("x",))]),
            r"level 'x' needs its own state: x → y",
        ),
        (
            lambda: Schedule([still("x", 2, starts_from="y", start=float), still("y", 3)]),
            r"level 'x': period 2; expected a divisor",
        ),
        (lambda: Schedule([still("x")], has_aux=True), "has_aux=True needs a flow"),
        (lambda: Schedule(still("x")), "levels is a Level; expected a sequence of Level"),
        (lambda: Schedule(["x"]), r"levels\[0\] is a str; expected a Level"),
    ],
)
def test_levels_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
