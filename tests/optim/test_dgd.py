import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optimizer_cases import compare, random_tree

from nl_jax.memory import dot_product, huber
from nl_jax.optim import DeltaDense, delta_matmul, dgd


def params_of(model):
    return nnx.to_pure_dict(nnx.split(model)[1])


def sgd(lr):
    def rule(w):
        g = yield
        while True:
            w = w - lr * g
            g = yield w

    return rule


def test_parameters_without_delta_layer_take_gradient_descent():
    compare(dgd(0.1), sgd(0.1))


@pytest.mark.parametrize("form", ["contractive", "paper"])
@pytest.mark.parametrize("batch", [1, 5])
def test_equals_equation_57(form, batch):
    """A layer on squared loss, trained on new samples at every step, against the equation in NumPy."""
    lr = 0.3
    tx = dgd(lr, form=form)

    def loss(p, x, target):
        return 0.5 * jnp.mean(jnp.sum((delta_matmul(x, p["kernel"], p["key_square"]) - target) ** 2, -1))

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w = rng.standard_normal((2, 3))  # [out, in]
        p = {"kernel": jnp.asarray(w.T), "key_square": jnp.zeros(())}
        state = tx.init(p)
        step = jax.jit(lambda p, s, x, t: tx.update(jax.grad(loss)(p, x, t), s))
        for _ in range(60):
            x, target = rng.standard_normal((batch, 3)), rng.standard_normal((batch, 2))
            updates, state = step(p, state, x, target)
            p = optax.apply_updates(p, updates)
            eta = lr / (1 + lr * (np.mean(np.sum(x**2, -1)) if form == "contractive" else 1.0))
            surprise = [w @ a - b for a, b in zip(x, target, strict=True)]
            w = w @ (np.eye(3) - eta * np.mean([np.outer(a, a) for a in x], axis=0)) - eta * np.mean(
                [np.outer(d, a) for d, a in zip(surprise, x, strict=True)], axis=0
            )
            np.testing.assert_allclose(p["kernel"], w.T, rtol=1e-10)
            assert p["key_square"] == 0.0


def test_one_sample_takes_the_proximal_step():
    """W minimises ½‖W x - u‖² + ‖W - W₀‖² / 2η, u = -∇L at W₀ (Eq. 56)."""
    with jax.enable_x64(True):
        x, w, target, lr = *(jnp.asarray(v) for v in random_tree(0, {"x": (3,), "w": (3, 2), "t": (2,)}).values()), 7.0

        def loss(p):
            return jnp.sum(jnp.sin(delta_matmul(x, p["kernel"], p["key_square"])) * target)

        p = {"kernel": w, "key_square": jnp.zeros(())}
        updates, _ = dgd(lr).update(jax.grad(loss)(p), dgd(lr).init(p))
        u = -jax.grad(lambda y: jnp.sum(jnp.sin(y) * target))(x @ w)
        inner = lambda w1: 0.5 * jnp.sum((x @ w1 - u) ** 2) + jnp.sum((w1 - w) ** 2) / (2 * lr)  # noqa: E731
        np.testing.assert_allclose(jax.grad(inner)(w + updates["kernel"]), 0.0, atol=1e-12)


@pytest.mark.parametrize("rate", [1e-2, 1e8])
def test_bounded_for_every_learning_rate(rate):
    """‖W‖ never grows by more than the surprise term, which is at most ‖δ‖ / ‖x‖."""
    layer = DeltaDense(4, 4, use_bias=False, rngs=nnx.Rngs(0))
    tx = dgd(rate)
    step = jax.jit(
        lambda layer, x: tx.update(jax.grad(lambda f: jnp.mean(jnp.sum(jnp.sin(f(x)), -1)))(layer), state)[0]
    )
    state = tx.init(layer)
    largest = 0.0
    for x in 10.0 * jax.random.normal(jax.random.key(0), (200, 2, 4)):
        layer = optax.apply_updates(layer, step(layer, x))
        largest = max(largest, float(jnp.max(jnp.abs(layer.kernel[...]))))
    assert largest < 5.0


def test_the_papers_form_is_not():
    p = {"kernel": jnp.ones((2, 2)), "key_square": jnp.zeros(())}
    x = jnp.full((1, 2), 10.0)
    tx = dgd(1.0, form="paper")
    loss = lambda p: jnp.mean(delta_matmul(x, p["kernel"], p["key_square"]))  # noqa: E731
    step = jax.jit(lambda p: optax.apply_updates(p, tx.update(jax.grad(loss)(p), tx.init(p))[0]))
    for _ in range(20):
        p = step(p)
    assert not jnp.max(jnp.abs(p["kernel"])) < 1e6


def test_dot_product_objective_is_a_dense_layer():
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    layers = DeltaDense(3, 2, objective=dot_product, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    loss = lambda layer, x: jnp.mean(jnp.sin(layer(x)))  # noqa: E731
    (a, da), (b, db) = (jax.value_and_grad(loss, argnums=(0, 1))(layer, x) for layer in layers)
    assert a == b
    np.testing.assert_allclose(da[0].kernel[...], db[0].kernel[...], rtol=1e-5)
    np.testing.assert_allclose(da[0].bias[...], db[0].bias[...], rtol=1e-5)
    np.testing.assert_allclose(da[1], db[1], rtol=1e-5)
    assert da[0].key_square[...] == 0.0  # no slope, so the step is gradient descent's


def test_gradient_of_a_robust_objective():
    """Huber: each sample's pull is ∂L̃/∂answer at its own value u = -∇_y L, averaged."""
    x = jax.random.normal(jax.random.key(1), (6, 3))
    w = jax.random.normal(jax.random.key(2), (3, 2))
    rule = huber(0.5)
    grads = jax.grad(lambda w: jnp.mean(jnp.sum(jnp.sin(delta_matmul(x, w, jnp.zeros(()), rule)), -1)))(w)
    errors = [rule.gradient(a @ w, -jnp.cos(a @ w)) for a in x]
    expected = np.mean([np.outer(a, e) for a, e in zip(x, errors, strict=True)], axis=0)
    np.testing.assert_allclose(grads, expected, rtol=1e-5)


def test_layers_stacked_and_scanned_equal_layers_in_a_loop():
    class Net(nnx.Module):
        def __init__(self, scanned, rngs):
            make = lambda rngs: DeltaDense(4, 4, rngs=rngs)  # noqa: E731
            self.layers = nnx.vmap(make)(rngs.split(2))
            self.scanned = scanned

        def __call__(self, x):
            if self.scanned:
                return jax.lax.scan(lambda x, layer: (jnp.tanh(layer(x)), None), x, self.layers)[0]
            for i in range(2):
                x = jnp.tanh(jax.tree.map(lambda a, i=i: a[i], self.layers)(x))
            return x

    x = jax.random.normal(jax.random.key(0), (8, 4))
    results = []
    for scanned in (True, False):
        model, tx = Net(scanned, nnx.Rngs(0)), dgd(0.5)
        state = tx.init(model)
        gradient = jax.jit(jax.grad(lambda m: jnp.mean(jnp.sum((m(x) - 1.0) ** 2, -1))))
        for _ in range(3):
            g = gradient(model)
            updates, state = tx.update(g, state)
            model = optax.apply_updates(model, updates)
        results.append(params_of(model))
    assert results[0]["layers"]["key_square"].shape == (2,)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_trains_a_network_in_bfloat16():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = DeltaDense(3, 32, dtype=jnp.bfloat16, rngs=rngs)
            self.second = DeltaDense(32, 1, dtype=jnp.bfloat16, rngs=rngs)

        def __call__(self, x):
            return self.second(jax.nn.silu(self.first(x))).astype(jnp.float32)

    model, tx = Net(nnx.Rngs(0)), dgd(0.1)
    x = jax.random.normal(jax.random.key(0), (64, 3))
    loss = lambda model: jnp.mean((model(x)[:, 0] - jnp.sin(x[:, 0])) ** 2)  # noqa: E731

    @jax.jit
    def step(model, state):
        updates, state = tx.update(jax.grad(loss)(model), state)
        return optax.apply_updates(model, updates), state

    state, first = tx.init(model), loss(model)
    for _ in range(200):
        model, state = step(model, state)
    assert loss(model) < 0.7 * first
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))


def test_other_optimizers_leave_the_function_alone():
    """Whatever they do to key_square, the layer does not read it."""
    layer = DeltaDense(3, 2, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 3))
    moved = jax.tree.map(jnp.copy, layer)
    moved.key_square[...] = 3.0
    np.testing.assert_array_equal(layer(x), moved(x))


def test_bad_form():
    with pytest.raises(ValueError, match="form='exact'"):
        dgd(0.1, form="exact")
