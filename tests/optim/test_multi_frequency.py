import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import run

from nl_jax.optim import multi_frequency, schedule_of_updates

LABELS = {"fast": "fast", "slow": {"w": "slow", "b": "slow"}}


def gradients(steps):
    rng = np.random.default_rng(0)
    shapes = {"fast": (3,), "slow": {"w": (2, 3), "b": ()}}
    return [jax.tree.map(rng.standard_normal, shapes, is_leaf=lambda s: isinstance(s, tuple)) for _ in range(steps)]


@pytest.mark.parametrize("period", [1, 3, 5])
def test_equals_a_plain_loop(period):
    with jax.enable_x64(True):
        grads = gradients(17)
        params = jax.tree.map(lambda g: jnp.asarray(g) * 0 + 1, grads[0])
        trace, _ = run(
            multi_frequency({"fast": (optax.sgd(0.1), 1), "slow": (optax.sgd(0.2), period)}, LABELS), params, grads
        )
        fast, slow, due = np.ones(3), np.ones((2, 3)), np.zeros((2, 3))
        for t, g in enumerate(grads):
            fast = fast - 0.1 * g["fast"]
            due = due + g["slow"]["w"]
            if (t + 1) % period == 0:
                slow, due = slow - 0.2 * due, 0 * due
            np.testing.assert_allclose(trace[t]["fast"], fast, rtol=1e-12)
            np.testing.assert_allclose(trace[t]["slow"]["w"], slow, rtol=1e-12)


def test_slow_parameters_stand_still_between_updates():
    grads = gradients(9)
    params = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads[0])
    trace, _ = run(multi_frequency({"fast": (optax.adam(0.1), 1), "slow": (optax.adam(0.1), 4)}, LABELS), params, grads)
    moved = [bool(jnp.any(b["slow"]["w"] != a["slow"]["w"])) for a, b in zip([params, *trace], trace, strict=False)]
    assert moved == [False, False, False, True, False, False, False, True, False]


@pytest.mark.parametrize("period", [1, 3, 4])
@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam])
def test_schedules_by_steps(optimizer, period):
    """Each update has the rate of the step at which it happens, whatever the period; a constant gradient shows it."""
    schedule = optax.linear_schedule(1.0, 0.0, 16)

    def make(rate):
        return multi_frequency({"slow": (optimizer(rate), period)}, lambda params: "slow")

    gradients = [jnp.ones(())] * 24
    trace, _ = run(make(schedule_of_updates(schedule, period)), jnp.zeros(()), gradients)
    constant, _ = run(make(1.0), jnp.zeros(()), gradients)  # the same updates at a rate of 1
    steps, units = np.diff([0.0, *trace]), np.diff([0.0, *constant])
    np.testing.assert_allclose(steps, units * [float(schedule(t)) for t in range(24)], atol=1e-5)
    assert trace[-1] == trace[15]  # the schedule ends after 16 steps
    assert period == 1 or not np.allclose(run(make(schedule), jnp.zeros(()), gradients)[0], trace)


@pytest.mark.parametrize("period", [0, -1, 1.5, True])
def test_bad_period(period):
    with pytest.raises(ValueError, match=r"period of 'slow' is .* at least 1"):
        multi_frequency({"slow": (optax.sgd(0.1), period)}, LABELS)


def test_label_without_transformation():
    with pytest.raises(ValueError, match="slow"):
        multi_frequency({"fast": (optax.sgd(0.1), 1)}, LABELS).init({"fast": jnp.ones(3), "slow": jnp.ones(3)})
