import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import SmallModel, compare, per_matrix, run

from nl_jax.optim import delta_momentum


def reference(lr, decay=0.9, strength=1.0, form="contractive", rms=False):
    def rule(w):
        m, v = np.zeros_like(w), np.zeros_like(w)
        g = yield
        while True:
            v = 0.9 * v + 0.1 * g**2
            p = g / (np.sqrt(v) + 1e-8) if rms else g
            if w.ndim < 2:
                beta = strength / (1 + strength * g**2)
                m = (decay * m * (1 - beta * g**2) if form == "contractive" else m * (decay - strength * g**2)) + p
            else:
                for mi, gi, pi in zip(per_matrix(m), per_matrix(g), per_matrix(p), strict=True):
                    mi, gi, pi = mi.T, gi.T, pi.T  # [out, in], as in Eq. 49
                    eye = np.eye(gi.shape[1])
                    beta = strength / (1 + strength * np.sum(gi**2))
                    if form == "contractive":
                        mi[...] = decay * mi @ (eye - beta * gi.T @ gi) + pi
                    else:
                        mi[...] = mi @ (decay * eye - strength * gi.T @ gi) + pi
            w = w - lr * m
            g = yield w

    return rule


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.7, "strength": 0.1}, {"strength": 0.0}, {"strength": 0.01, "form": "paper"}],
    ids=str,
)
def test_equals_the_equation(options):
    compare(delta_momentum(0.05, **options), reference(0.05, **options))


def test_preconditioner():
    rms = optax.scale_by_rms(0.9, eps=1e-8, eps_in_sqrt=False)
    compare(delta_momentum(0.05, preconditioner=rms), reference(0.05, rms=True))


def test_without_delta_term_it_is_momentum():
    model = SmallModel()
    _, a, _ = model.train(delta_momentum(0.1, strength=0.0), 20)
    _, b, _ = model.train(optax.sgd(0.1, momentum=0.9), 20)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


def test_infinite_strength_forgets_all_along_the_gradient():
    g = [jnp.array([[1e-8, 0.0]]).T, jnp.array([[1e-8, 1e-8]]).T, jnp.zeros((2, 1))]
    trace, _ = run(delta_momentum(1.0, 1.0, strength=float("inf")), jnp.zeros((2, 1)), g)
    # (1, 0) loses its half along (1, 1), then that gradient is added; a zero gradient takes nothing
    np.testing.assert_allclose(trace[1] - trace[0], [[-1.5e-8], [-0.5e-8]], rtol=1e-5)
    np.testing.assert_allclose(trace[2] - trace[1], trace[1] - trace[0], rtol=1e-5)


def test_contractive_for_every_gradient_where_the_papers_form_is_not():
    """|m| ≤ Σ α^i max|g| for the default; ten gradients of size 3 make the paper's one grow without bound."""
    gradients = [jnp.full((4, 4), 3.0)] * 40
    trace, _ = run(delta_momentum(1.0), jnp.zeros((4, 4)), gradients)
    moves = np.abs(np.diff(np.stack(trace), axis=0)).max()
    assert moves <= 3.0 / (1 - 0.9)
    papers, _ = run(delta_momentum(1.0, form="paper"), jnp.zeros((4, 4)), gradients[:10])
    assert np.abs(papers[-1]).max() > 1e6


def test_reaches_the_minimum_of_equation_53_sooner_than_momentum():
    """Each with the best of the same learning rates."""

    def loss(p):
        r, theta = p
        return r**2 + 10.0 * (r - theta + jnp.sin(2.0 * r)) ** 2

    def steps(tx, n=300):
        def step(carry, _):
            p, state = carry
            value, g = jax.value_and_grad(loss)(p)
            update, state = tx.update(g, state)
            return (optax.apply_updates(p, update), state), value

        start = (jnp.array(-3.5), jnp.array(2.0))
        values = jax.lax.scan(step, (start, tx.init(start)), None, n)[1]
        return jnp.where(jnp.any(values < 1e-3), jnp.argmax(values < 1e-3), n)

    rates = np.logspace(-3, -1, 21)
    best = [
        min(jax.jit(jax.vmap(lambda lr, f=f: steps(f(lr))))(rates))
        for f in (lambda lr: optax.sgd(lr, momentum=0.9), lambda lr: delta_momentum(lr))
    ]
    assert best[1] <= 0.7 * best[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 1.1}, "decay=1.1"), ({"strength": -1.0}, "strength=-1.0"), ({"form": "exact"}, "form='exact'")],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        delta_momentum(0.1, **options)
