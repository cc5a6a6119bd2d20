import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import SmallModel, compare, run

from nl_jax.optim import conjugate_gradient, delta_matmul, dgd, generalized_gradient_descent, newton


def square(x):
    return 0.5 * jnp.sum(jnp.square(x))


def test_the_defaults_are_gradient_descent():
    with jax.enable_x64(True):
        model = SmallModel(jnp.float64)
        results = [model.train(tx, 60)[1] for tx in (generalized_gradient_descent(0.1), optax.sgd(0.1))]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), *results)


def test_elastic_objective():
    """⟨W, g⟩ + ½λW²: W ← (W - ηg) / (1 + ηλ), implicit weight decay."""

    def rule(w):
        g = yield
        while True:
            w = (w - 0.3 * g) / (1 + 0.3 * 0.7)
            g = yield w

    compare(generalized_gradient_descent(0.3, lambda w, g, current: jnp.sum(w * g) + 0.7 * square(w)), rule)


def test_retention_toward_several_recent_weights():
    """Ret = ½ Σ cᵢ ‖W - W_{t-i}‖²: W ← Σ cᵢ W_{t-i} - ηg for Σ cᵢ = 1."""
    weights = (0.5, 0.3, 0.2)

    def rule(w):
        recent, g = [w, w, w], (yield)
        while True:
            new = sum(c * r for c, r in zip(weights, recent, strict=True)) - 0.1 * g
            recent = [new, *recent[:2]]
            g = yield new

    def retention(w, recent):
        return sum(c * square(w - r) for c, r in zip(weights, recent, strict=True))

    tx = generalized_gradient_descent(0.1, retention=retention, history=3)
    state = compare(tx, rule)
    assert len(optax.tree.get(state, "older")) == 2


def test_retention_that_is_not_quadratic():
    """Exponentiated gradient: Ret = Σ W log (W / W_t) - W + W_t, W ← W_t exp(-ηg)."""

    def rule(w):
        w = np.abs(w)
        g = yield
        while True:
            w = w * np.exp(-0.1 * g)
            g = yield w

    def retention(w, recent):
        return jnp.sum(w * jnp.log(w / recent[0]) - w)

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w, gradients = np.abs(rng.standard_normal((3, 2))) + 0.1, list(rng.standard_normal((60, 3, 2)))
        trace, _ = run(
            generalized_gradient_descent(0.1, retention=retention, solver=newton(20)), jnp.asarray(w), gradients
        )
        reference = rule(w)
        next(reference)
        for got, g in zip(trace, gradients, strict=True):
            np.testing.assert_allclose(got, reference.send(g), rtol=1e-8)


def test_delta_gradient_descent_is_an_instance():
    """Eq. 56 as an objective of the weights, given the input; against `dgd` and its layer."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w = w1 = jnp.asarray(rng.standard_normal((3, 2)))

        @jax.jit
        def step(w, w1, x, target):
            loss = lambda y: square(y - target)  # noqa: E731
            u = -jax.grad(loss)(x @ w)
            tx = generalized_gradient_descent(
                0.4, lambda w, g, current: square(x @ w - u), solver=conjugate_gradient(3)
            )
            w = w + tx.update(jnp.zeros_like(w), tx.init(w), w)[0]
            p = {"kernel": w1, "key_square": jnp.zeros(())}
            g = jax.grad(lambda p: loss(delta_matmul(x, p["kernel"], p["key_square"])))(p)
            return w, w1 + dgd(0.4).update(g, dgd(0.4).init(p))[0]["kernel"]

        for _ in range(50):
            w, w1 = step(w, w1, rng.standard_normal(3), rng.standard_normal(2))
            np.testing.assert_allclose(w, w1, rtol=1e-8)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("curvature", [0.0, 1e-20, 0.05, 1.0, 1e6])
@pytest.mark.parametrize("iterations", [3, 10, 200])
def test_conjugate_gradient_stops_where_nothing_is_left(iterations, curvature, size):
    """More iterations than unknowns; slopes and curvatures of every size, none included, where it stays."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)
    matrix, start = curvature * (a @ a.T + jnp.eye(3)), jnp.asarray([1.0, -2.0, 3.0])
    b = size * jnp.asarray([0.3, 1.0, -0.5])
    loss = lambda x: 0.5 * (x - start) @ matrix @ (x - start) - b @ (x - start)  # noqa: E731
    step = conjugate_gradient(iterations)(loss, start) - start
    expected = np.linalg.solve(np.asarray(matrix, float), b) if curvature else np.zeros(3)
    np.testing.assert_allclose(step, expected, rtol=1e-3, atol=1e-6 * np.linalg.norm(start))


def test_conjugate_gradient_in_an_optimizer():
    """Three unknowns, ten iterations: finite weights at the minimum, and no step left out."""
    objective = lambda w, g, current: 0.05 * square(w - jnp.asarray([1.0, 2.0, 3.0]))  # noqa: E731
    nothing = lambda w, recent: 0.0 * square(w)  # noqa: E731
    tx = generalized_gradient_descent(1.0, objective, nothing, solver=conjugate_gradient(10))
    trace, state = run(tx, jnp.zeros(3), [jnp.ones(3)] * 4)
    np.testing.assert_allclose(trace, np.tile([1.0, 2.0, 3.0], (4, 1)), rtol=1e-6)
    assert state.total_notfinite == 0


@pytest.mark.parametrize("rate", [0.1, optax.constant_schedule(0.1)], ids=["number", "schedule"])
def test_learning_rate(rate):
    w = jnp.ones(2)
    tx = generalized_gradient_descent(rate)
    np.testing.assert_allclose(tx.update(w, tx.init(w), w)[0], -0.1, rtol=1e-6)
