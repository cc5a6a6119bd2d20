import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import MATRICES, SHAPES, SmallModel, compare, run

from nl_jax.optim import deep_momentum, newton_schulz


def silu(x):
    return x / (1 + np.exp(-x))


def silu_slope(x):
    s = 1 / (1 + np.exp(-x))
    return s * (1 + x * (1 - s))


class Adam:
    def __init__(self):
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, g):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        return -0.01 * self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


class Reference:
    """One memory with at most one hidden layer, its gradients by hand; initial weights as documented."""

    def __init__(self, size, hidden, key, shape_of_stack, slot, inner, retention):
        if hidden:
            first = jax.random.normal(jax.random.split(key, 1)[0], (*shape_of_stack, size, hidden), jnp.float64)
            self.a0 = np.asarray(first).reshape(-1, size, hidden)[slot] / size**0.5
            self.b0 = np.zeros((hidden, size))
        else:
            self.a0, self.b0 = None, np.zeros((size, size))
        self.da, self.db = 0.0, 0.0
        self.step_a, self.step_b, self.retention = inner(), inner(), retention

    def __call__(self, u):
        a = None if self.a0 is None else self.a0 + self.da
        b = self.b0 + self.db
        z = u if a is None else u @ a
        h = u if a is None else silu(z)
        error = (h @ b - u) / u.size
        gb = h.T @ error
        if a is not None:
            ga = u.T @ ((error @ b.T) * silu_slope(z))
            self.da = self.retention * self.da + self.step_a(ga)
        self.db = self.retention * self.db + self.step_b(gb)
        h = u if a is None else silu(u @ (self.a0 + self.da))
        return h @ (self.b0 + self.db)


def reference(lr, share="rows", hidden=(32,), inner=Adam, retention=0.99, output=None, seed=0):
    size_hidden = hidden[0] if hidden else 0

    def rule(w):
        index = sorted(SHAPES).index(next(name for name, shape in SHAPES.items() if shape == w.shape))
        key = jax.random.fold_in(jax.random.key(seed), index)
        matrix = share == "rows" and w.ndim >= 2
        stack = w.shape[:-2] if matrix else ()
        size = w.shape[-2] if matrix else w.size
        count = int(np.prod(stack))
        memories = [Reference(size, size_hidden, key, stack, i, inner, retention) for i in range(count)]
        g = yield
        while True:
            parts = g.reshape(count, *g.shape[-2:]) if matrix else [g.reshape(1, -1)]
            answers = []
            for memory, part in zip(memories, parts, strict=True):
                rows = part.T if matrix else part
                s = np.sqrt(np.mean(rows**2))
                y = memory(rows / s) * (s if output is None else 1.0)
                answers.append(y.T if matrix else y)
            step = np.stack(answers).reshape(w.shape)
            w = w - lr * (step if output is None else output(step))
            g = yield w

    return rule


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share": "parameter", "hidden": (5,), "seed": 3},
        {"hidden": (), "retention": 0.9},
    ],
    ids=str,
)
def test_equals_the_equation(options):
    compare(deep_momentum(0.1, **options), reference(0.1, **options), rtol=1e-8)


def test_inner_optimizer_and_output():
    compare(
        deep_momentum(0.1, hidden=(4,), inner=optax.sgd(0.1), output=jnp.tanh),
        reference(0.1, hidden=(4,), inner=lambda: lambda g: -0.1 * g, output=np.tanh),
        rtol=1e-8,
    )


def test_orthogonal_output():
    """Newton-Schulz of the answers: singular values of each step near 1 (Eq. 52)."""
    g = [jax.random.normal(jax.random.key(0), (6, 4))] * 50
    trace, _ = run(deep_momentum(1.0, hidden=(16,), output=newton_schulz), jnp.zeros((6, 4)), g)
    singular = np.linalg.svd(trace[-1] - trace[-2], compute_uv=False)
    assert singular.max() < 1.3
    assert singular.min() > 0.5


def test_an_objective_of_the_callers():
    """Eq. 50's value 1: a linear memory on -⟨answer, 1⟩ holds the sum of its keys."""
    u = jnp.array([[2.0], [2.0]])
    tx = deep_momentum(
        1.0, hidden=(), inner=optax.sgd(1.0), retention=0.5, objective=lambda answer, key: -jnp.sum(answer)
    )
    _, state = run(tx, u, [u] * 3)
    (weights,) = optax.tree.get(state, "change")
    np.testing.assert_allclose(weights, np.full((2, 2), 1.75), rtol=1e-6)


def test_keeps_what_comes_again_and_little_of_noise():
    """Keys with a fixed part and noise as strong: the answer to the fixed part is kept, that to noise is not."""
    d, steps = 16, 200
    noise = jax.random.normal(jax.random.key(0), (steps + 1, d, 8))
    fixed = jnp.zeros((d, 8)).at[0].set(d**0.5)
    _, state = run(deep_momentum(1.0, hidden=(), inner=optax.sgd(1.0)), noise[0], [fixed + n for n in noise[1:]])
    (weights,) = optax.tree.get(state, "change")
    answer_fixed, answer_noise = (x.T @ weights for x in (fixed, noise[0].at[0].set(0.0)))
    kept = lambda answer, x: float(jnp.sum(answer * x.T) / jnp.sum(x**2))  # noqa: E731
    assert kept(answer_fixed, fixed) > 0.9
    assert kept(answer_noise, noise[0].at[0].set(0.0)) < 0.8


def test_memory_of_state():
    """Two layers of in · hidden weights for each matrix, and nothing else."""
    _, state = run(deep_momentum(0.1, hidden=(8,), inner=optax.sgd(0.1)), jnp.ones((3, 16, 64)), [])
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 3 * 2 * 16 * 8


def test_shapes_of_all_kinds_have_memories():
    state = deep_momentum(0.1, hidden=(5,)).init({n: jnp.ones(s) for n, s in MATRICES.items()})
    change = optax.tree.get(state, "change")
    assert [w.shape for w in change["stack"]] == [(2, 3, 5), (2, 5, 3)]


def test_trains_a_model():
    losses = SmallModel().train(deep_momentum(1.0, hidden=(16,)), 80)[0]
    assert losses[-20:].mean() < 0.8 * losses[:5].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": (0,)}, r"hidden=\(0,\)"), ({"share": "all"}, "share='all'"), ({"retention": 2.0}, "retention=2.0")],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        deep_momentum(0.1, **options)
