import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import SmallModel, compare, run

from nl_jax.optim import (
    Memory,
    adagrad_memories,
    adam_memories,
    conjugate_gradient,
    delta_momentum,
    generalized_gradient_descent,
    generalized_momentum,
    gradient_descent,
    m3,
    momentum_memories,
    muon_memories,
    newton,
    rmsprop_memories,
)


def stacked_muon(lr, **options):
    numbers = lambda p: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), p)  # noqa: E731
    return optax.contrib.muon(lr, muon_weight_dimension_numbers=numbers, **options)


def matrices_only(tx):
    """``tx`` for hidden matrices, Adam for the rest, so that Muon runs on the whole model."""
    return optax.partition(
        {True: tx, False: optax.adam(1e-2)},
        lambda params: jax.tree_util.tree_map_with_path(lambda path, p: p.ndim > 1 and "bias" not in str(path), params),
    )


@pytest.mark.parametrize(
    ("memories", "optimizer"),
    [
        (generalized_momentum(0.1, *momentum_memories(0.9)), optax.sgd(0.1, momentum=0.9)),
        (generalized_momentum(1e-2, *adam_memories()), optax.adam(1e-2)),
        (generalized_momentum(0.1, *adagrad_memories()), optax.adagrad(0.1)),
        (generalized_momentum(1e-2, *rmsprop_memories()), optax.rmsprop(1e-2)),
        (matrices_only(generalized_momentum(1e-2, *muon_memories())), matrices_only(stacked_muon(1e-2))),
    ],
    ids=["momentum", "adam", "adagrad", "rmsprop", "muon"],
)
def test_classical_optimizers_are_memories(memories, optimizer):
    """100 steps of a byte-level model on Python source: parameters and losses are optax's to 1e-6 (App. B)."""
    with jax.enable_x64(True):
        model = SmallModel(jnp.float64)
        (losses, params, _), (their_losses, theirs, _) = (model.train(tx, 100) for tx in (memories, optimizer))
        np.testing.assert_allclose(losses, their_losses, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), params, theirs)
        assert losses[-10:].mean() < 0.9 * losses[:5].mean()  # it did learn


def test_adams_memory_solves_the_regression_of_all_past_gradients():
    """Eq. 101-108 with every gradient at hand: min_m Σ w_i (m g_i - P)² by least squares, P² = Σ w_i g_i²."""
    with jax.enable_x64(True):
        b, g = 0.9, np.random.default_rng(0).standard_normal((30, 4))
        trace, _ = run(generalized_momentum(1.0, *adam_memories(b, b, eps=0.0)), jnp.zeros(4), list(g))
        w = b ** np.arange(29, -1, -1.0)
        w = w / w.sum()
        for i in range(4):
            root = np.sqrt(np.sum(w * g[:, i] ** 2))
            keys = np.sqrt(w) * g[:, i]
            m = np.linalg.lstsq(keys[:, None], np.sqrt(w) * root, rcond=None)[0][0]
            np.testing.assert_allclose(trace[-1][i] - trace[-2][i], -m, rtol=1e-10)


def generic(w):
    """Robust memory: m minimises Σ √(1 + (m - g)²) + ½ (m - last)² (scalars by bisection)."""
    m, g = np.zeros_like(w), (yield)
    while True:
        low, high = m - 2, m + 2
        for _ in range(80):
            middle = (low + high) / 2
            slope = (middle - g) / np.sqrt(1 + (middle - g) ** 2) + middle - m
            low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
        m = (low + high) / 2
        w = w - 0.1 * m
        g = yield w


ROBUST = Memory(
    objective=lambda m, c: jnp.sum(jnp.sqrt(1.0 + jnp.square(m - c.gradient))),
    retention=lambda m, last, c: 0.5 * jnp.sum(jnp.square(m - last)),
)


@pytest.mark.parametrize("solver", [newton(20), gradient_descent(0.6, 200)], ids=["newton", "gradient_descent"])
def test_an_objective_that_is_not_quadratic(solver):
    compare(generalized_momentum(0.1, [ROBUST], solver=solver), generic, rtol=1e-8)


def test_delta_momentum_is_a_memory():
    """½κ‖(m - g)ᵀg‖² + ½‖m - αm' - g‖² couples the elements of a matrix; exact for gradients of rank one."""
    kappa, alpha = 0.7, 0.9
    memory = Memory(
        objective=lambda m, c: 0.5 * kappa * jnp.sum(jnp.square(c.gradient.T @ (m - c.gradient))),
        retention=lambda m, last, c: 0.5 * jnp.sum(jnp.square(m - alpha * last - c.gradient)),
    )
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        g = [np.outer(rng.standard_normal(4), rng.standard_normal(3)) for _ in range(50)]
        txs = (
            generalized_momentum(0.1, [memory], solver=conjugate_gradient(2)),
            delta_momentum(0.1, alpha, strength=kappa),
        )
        a, b = (np.stack(run(tx, jnp.zeros((4, 3)), g)[0]) for tx in txs)
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_memories_see_those_before_them():
    """The second holds the mean of the first: an average of an average."""

    def rule(w):
        a, b, g = 0 * w, 0 * w, (yield)
        while True:
            a = (a + g) / 2
            b = (b + a) / 2
            w = w - (a + b)
            g = yield w

    half = lambda of: Memory(  # noqa: E731
        objective=lambda m, c: jnp.sum((m - of(c)) ** 2), retention=lambda m, last, c: jnp.sum((m - last) ** 2)
    )
    memories = [half(lambda c: c.gradient), half(lambda c: c.memories[0])]
    compare(generalized_momentum(1.0, memories, lambda c: c.memories[0] + c.memories[1]), rule)


def test_state_holds_only_memories_that_retain():
    w = jnp.ones((8, 8))
    sizes = [
        sum(x.size for x in jax.tree.leaves(generalized_momentum(0.1, *m).init(w)) if x.ndim)
        for m in (momentum_memories(), adam_memories(), rmsprop_memories(), adagrad_memories(), muon_memories())
    ]
    assert sizes == [64, 128, 64, 64, 64]


def test_m3_without_slow_memories_is_muon_with_a_denominator():
    """The fast direction of M3 is Muon's without Nesterov momentum and width scaling."""
    with jax.enable_x64(True):
        g = list(np.random.default_rng(0).standard_normal((10, 4, 4)) ** 0)  # constant: the denominator is 1/2
        a = run(m3(0.2, periods=(), nesterov=False, matrices=True), jnp.zeros((4, 4)), g)[0][-1]
        b = run(stacked_muon(0.1, nesterov=False), jnp.zeros((4, 4)), g)[0][-1]
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: generalized_momentum(0.1, []), r"memories=\(\)"),
        (lambda: generalized_gradient_descent(0.1, history=0), "history=0"),
        (lambda: run_without_params(), "params=None"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def run_without_params():
    tx = generalized_gradient_descent(0.1)
    return tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
