import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import SmallModel, compare, per_matrix, run

from nl_jax.optim import (
    feature_momentum,
    identity_preconditioner,
    orthogonality_preconditioner,
    polynomial_features,
    preconditioned_momentum,
)


def momentum(lr, decay, value):
    """Eq. 47 and 51: ``value`` makes, from the parameter's shape, a function of the gradient."""

    def rule(w):
        m, f = np.zeros_like(w), value(w)
        g = yield
        while True:
            m = decay * m + f(g)
            w = w - lr * m
            g = yield w

    return rule


def identity(decay, inner_steps):
    def make(w):
        v, p, t = np.zeros_like(w), np.zeros_like(w), 0

        def precondition(g):
            nonlocal v, p, t
            t += 1
            v = decay * v + (1 - decay) * g**2
            v_hat = v / (1 - decay**t) + 1e-16
            if t == 1:
                p = np.ones_like(w) / np.sqrt(np.mean(v_hat))
            p = np.minimum(p, 2 / np.sqrt(v_hat))
            for _ in range(inner_steps):
                p = p - p * (v_hat * p**2 - 1) / (2 * np.maximum(1, v_hat * p**2))
            return p * g

        return precondition

    return make


def orthogonality(inner_steps, rate):
    def one(g):
        o = g / np.linalg.norm(g)
        for _ in range(inner_steps):
            o = o - rate * (o @ o.T @ o - o)
        return o

    def make(w):
        if w.ndim < 2:
            return lambda g: one(g.reshape(-1, 1)).reshape(g.shape)
        return lambda g: np.stack([one(x) for x in per_matrix(g)]).reshape(g.shape)

    return make


@pytest.mark.parametrize(("decay", "inner_steps"), [(0.999, 2), (0.5, 1)])
def test_identity_preconditioner(decay, inner_steps):
    tx = preconditioned_momentum(0.1, 0.8, preconditioner=identity_preconditioner(decay, inner_steps))
    compare(tx, momentum(0.1, 0.8, identity(decay, inner_steps)))


@pytest.mark.parametrize(("inner_steps", "rate"), [(5, 0.5), (3, 0.2)])
def test_orthogonality_preconditioner(inner_steps, rate):
    tx = preconditioned_momentum(0.1, preconditioner=orthogonality_preconditioner(inner_steps, rate))
    compare(tx, momentum(0.1, 0.9, orthogonality(inner_steps, rate)))


def test_a_preconditioner_of_optax():
    rms = optax.scale_by_rms(0.9, eps=1e-8, eps_in_sqrt=False)

    def value(w):
        v = np.zeros_like(w)

        def precondition(g):
            nonlocal v
            v = 0.9 * v + 0.1 * g**2
            return g / (np.sqrt(v) + 1e-8)

        return precondition

    compare(preconditioned_momentum(0.1, preconditioner=rms), momentum(0.1, 0.9, value))
    compare(feature_momentum(0.1, features=lambda g: g, preconditioner=rms), momentum(0.1, 0.9, value))


def test_the_learned_preconditioner_becomes_adams():
    """With enough inner steps P is 1 / √V, whatever the scale of each parameter, and whatever it was before."""
    g = [jnp.array([1e-6, 1e-2, 1.0, 1e4])] * 5 + [jnp.array([1e2, 1e-2, 1e-3, 1e-2])] * 5
    learned = preconditioned_momentum(1.0, 0.0, preconditioner=identity_preconditioner(0.5, inner_steps=60))
    adam = optax.adam(1.0, b1=0.0, b2=0.5)
    a, b = (np.stack(run(tx, jnp.zeros(4), g)[0]) for tx in (learned, adam))
    np.testing.assert_allclose(np.diff(a, axis=0), np.diff(b, axis=0), rtol=0.02, atol=1e-5)


def test_the_learned_preconditioner_lags_but_never_overshoots():
    """A gradient a million times larger than before: its step is at most 1.25 times Adam's."""
    g = [jnp.array([1e-3, 1.0])] * 50 + [jnp.array([1e3, 1.0])]
    trace, _ = run(preconditioned_momentum(1.0, 0.0), jnp.zeros(2), g)
    adam, _ = run(optax.adam(1.0, b1=0.0), jnp.zeros(2), g)
    assert 1.0 < abs(trace[-1] - trace[-2])[0] <= 1.25 * abs(adam[-1] - adam[-2])[0]


@pytest.mark.parametrize("coefficients", [(1.0, 0.5), (0.5, 0.0, 1.0)])
def test_polynomial_features(coefficients):
    def value(w):
        def phi(g):
            s = np.sqrt(np.mean(g**2))
            return s * sum(c * np.sign(g) * np.abs(g / s) ** (i + 1) for i, c in enumerate(coefficients))

        return phi

    tx = feature_momentum(0.1, features=polynomial_features(coefficients))
    compare(tx, momentum(0.1, 0.9, value))


def test_features_of_the_callers():
    compare(feature_momentum(0.1, 0.5, features=jnp.tanh), momentum(0.1, 0.5, lambda w: np.tanh))


@pytest.mark.parametrize(
    "tx",
    [
        preconditioned_momentum(3e-3),
        preconditioned_momentum(1e-2, preconditioner=orthogonality_preconditioner()),
        feature_momentum(0.02),
    ],
    ids=["identity", "orthogonality", "features"],
)
def test_trains_a_model(tx):
    losses = SmallModel().train(tx, 150)[0]
    assert losses[-20:].mean() < 0.75 * losses[:5].mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preconditioned_momentum(0.1, 1.5), "decay=1.5"),
        (lambda: feature_momentum(0.1, -0.5), "decay=-0.5"),
        (lambda: identity_preconditioner(decay=2.0), "decay=2.0"),
        (lambda: identity_preconditioner(inner_steps=0), "inner_steps=0"),
        (lambda: orthogonality_preconditioner(0), "inner_steps=0"),
        (lambda: orthogonality_preconditioner(inner_rate=2.0), "inner_rate=2.0"),
        (lambda: polynomial_features(()), r"coefficients=\(\)"),
        (lambda: run(feature_momentum(0.1, features=jnp.sum), jnp.ones(3), [jnp.ones(3)]), r"shape \(\) .* \(3,\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
