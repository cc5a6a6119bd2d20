"""Knowledge transfer between levels: MAML, a hypernetwork and a learned optimizer, made of it; and each part alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from level_cases import normal

from nl_jax import Level, Schedule
from nl_jax.levels import (
    Pair,
    by_backpropagation,
    by_context,
    by_generation,
    by_initialisation,
    by_parameters,
    first_order,
    from_loss,
    from_optax,
)


def mlp(sizes, key):
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (i, o)) / i**0.5, jnp.zeros(o)) for k, i, o in pairs]


def apply(layers, x):
    for w, b in layers[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


def squares(layers, data):
    x, y = data
    return jnp.mean((apply(layers, x) - y) ** 2)


def sines(key, count, points):
    """Tasks of MAML: y = A sin(x + φ), A in [0.1, 5], φ in [0, π], x in [-5, 5]; also (A, φ)."""
    a, b, c = jax.random.split(key, 3)
    amplitude = jax.random.uniform(a, (count, 1, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(b, (count, 1, 1), maxval=jnp.pi)
    x = jax.random.uniform(c, (count, points, 1), minval=-5.0, maxval=5.0)
    return x, amplitude * jnp.sin(x + phase), jnp.concatenate([amplitude, phase], axis=-1)[:, 0]


@pytest.mark.parametrize("exact", [True, False])
def test_maml_learns_sines(exact):
    tasks, steps, meta = 16, 3, 200
    start = mlp((1, 32, 32, 1), jax.random.key(0))
    fast = Schedule([from_loss("fast", squares, start, optax.sgd(0.03))])
    adapted = by_initialisation(fast, "fast", squares, exact=exact)
    # the period is the number of tasks in a meta-batch
    slow = Schedule([from_loss("slow", adapted, start, optax.adam(3e-3), period=tasks, inner=fast)])

    def episodes(key, count):
        x, y, _ = sines(key, count, 20)
        support = {"fast": tuple(jnp.repeat(u[:, None, :10], steps, axis=1) for u in (x, y))}
        return support, (x[:, 10:], y[:, 10:])

    data = {"slow": episodes(jax.random.key(1), tasks * meta)}
    state = slow.init(None, jax.tree.map(lambda x: x[0], data))
    learned = slow.read(jax.jit(slow.run)(state, data), "slow")
    support, query = episodes(jax.random.key(2), 200)

    def score(loss, params):
        return float(jnp.mean(jax.jit(jax.vmap(loss, (None, 0)))(params, (support, query))))

    after, before = score(adapted, learned), score(lambda p, data: squares(p, data[1]), learned)
    untrained = score(adapted, start)
    assert after < 0.5 * before, (after, before)
    assert after < 0.5 * untrained, (after, untrained)


def test_a_hypernetwork_makes_the_weights_of_sines():
    features = jnp.asarray(normal(1, 32, seed=1)), 3 * jnp.asarray(normal(32, seed=2))

    def read(w, x):
        return jnp.cos(x @ features[0] + features[1]) @ w

    def loss(w, data):
        x, y = data
        return jnp.mean((read(w, x) - y[..., 0]) ** 2)

    def train(generate):
        objective = by_generation(generate, loss)
        start = mlp((2, 64, 32), jax.random.key(0))
        level = from_loss("hyper", objective, start, optax.adam(3e-3), period=16)
        schedule = Schedule([level])
        x, y, code = sines(jax.random.key(1), 16 * 300, 20)
        data = {"hyper": (code, (x, y))}
        state = schedule.init(None, jax.tree.map(lambda x: x[0], data))
        params = schedule.read(jax.jit(schedule.run)(state, data), "hyper")
        x, y, code = sines(jax.random.key(2), 200, 20)
        return float(jnp.mean(jax.vmap(objective, (None, 0))(params, (code, (x, y)))))

    made = train(apply)
    alike = train(lambda p, code: apply(p, 0 * code))  # the best weights for all tasks
    assert made < 0.2 * alike, (made, alike)


def test_a_learned_optimizer_beats_the_best_gradient_descent():
    size, steps, batch = 8, 20, 8

    def loss(w, task):
        scale, target = task
        return jnp.mean(scale * (w - target) ** 2)

    def learned(phi):
        """A transformation with parameters: a network mixes a coordinate's gradient and three momenta."""

        def update(g, momenta, params=None):
            momenta = phi["decay"][:, None] * momenta + g
            features = jnp.concatenate([g[None], momenta]).T
            return apply(phi["net"], features)[:, 0] - features @ phi["mix"], momenta

        return optax.GradientTransformation(lambda p: jnp.zeros((3, size)), update)

    def train(transformation, task):
        flow = by_backpropagation(lambda p, task: loss(p["w"], task), ["w"])  # makes the optimizer's context
        schedule = Schedule([from_optax("w", transformation, jnp.zeros(size))], flow)
        data = jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), task)
        return schedule.read(schedule.run(schedule.init(None, task), data), "w")

    net = jax.tree.map(lambda x: 0.01 * x, mlp((4, 8, 1), jax.random.key(0)))
    phi = {"decay": jnp.array([0.5, 0.9, 0.99]), "mix": jnp.array([0.1, 0.0, 0.0, 0.0]), "net": net}
    objective = by_generation(lambda phi, task: train(learned(phi), task), lambda w, task: jnp.log(loss(w, task)))
    descent = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    schedule = Schedule([from_loss("optimizer", objective, phi, descent, period=batch)])
    tasks = jnp.exp(jnp.asarray(normal(batch * 200, size))), jnp.asarray(normal(batch * 200, size, seed=1))
    data = {"optimizer": (tasks, tasks)}
    state = jax.jit(schedule.run)(schedule.init(None, jax.tree.map(lambda x: x[0], data)), data)

    tests = jnp.exp(jnp.asarray(normal(100, size, seed=2))), jnp.asarray(normal(100, size, seed=3))

    def score(transformation):
        return jnp.mean(jax.vmap(lambda task: jnp.log(loss(train(transformation, task), task)))(tests))

    others = [optax.sgd(rate, momentum) for rate in (0.1, 0.2, 0.4, 0.8, 1.6) for momentum in (None, 0.8)]
    assert score(learned(schedule.read(state, "optimizer"))) < min(map(score, [learned(phi), *others])) - 0.5


# Each part alone.


def test_first_order_is_the_derivative_without_the_hessian():
    with jax.enable_x64(True):
        a = normal(3, 3)
        a = a @ a.T

        def loss(w, x):
            return 0.5 * w @ a @ w - x @ w

        w, support, query = normal(3, seed=1), normal(4, 3, seed=2), normal(3, seed=3)
        fast = Schedule([from_loss("fast", loss, jnp.zeros(3), optax.sgd(0.1))])
        data = {"fast": support}, query
        adapted, hessian = w, np.eye(3)
        for x in support:
            adapted, hessian = adapted - 0.1 * (a @ adapted - x), (np.eye(3) - 0.1 * a) @ hessian
        gradient = a @ adapted - query
        for exact, expected in ((True, hessian.T @ gradient), (False, gradient)):
            objective = by_initialisation(fast, "fast", loss, exact=exact)
            np.testing.assert_allclose(objective(w, data), loss(adapted, query), rtol=1e-12)
            np.testing.assert_allclose(jax.grad(objective)(w, data), expected, rtol=1e-10)
        assert not np.allclose(hessian.T @ gradient, gradient, rtol=0.1)


def test_first_order_keeps_integers_and_values():
    level = from_optax("w", optax.adam(0.1), jnp.ones(3))
    state, gradient = level.init(None, None), jnp.arange(3.0)
    exact, passed = level.update(state, gradient), first_order(level).update(state, gradient)
    jax.tree.map(np.testing.assert_array_equal, exact, passed)
    assert passed.optimizer[0].count == 1


def test_backpropagation_at_two_frequencies_is_a_plain_loop():
    with jax.enable_x64(True):

        def loss(p, x):
            return jnp.mean((jnp.tanh(x @ p["inner"]) @ p["outer"] - x) ** 2)

        first = {"inner": normal(3, 3), "outer": normal(3, 3, seed=1)}
        xs = normal(12, 5, 3, seed=2)
        levels = [
            from_optax("inner", optax.sgd(0.1), first["inner"], period=3),
            from_optax("outer", optax.sgd(0.2), first["outer"]),
        ]
        schedule = Schedule(levels, by_backpropagation(loss, ["inner", "outer"]))
        state = schedule.run(schedule.init(None, xs[0]), xs)
        params, total = dict(first), 0
        for t, x in enumerate(xs):
            gradients = jax.grad(loss)(params, x)
            total = total + gradients["inner"]
            params["outer"] = params["outer"] - 0.2 * gradients["outer"]
            if (t + 1) % 3 == 0:
                params["inner"], total = params["inner"] - 0.1 * total, 0
        for name in params:
            np.testing.assert_allclose(schedule.read(state, name), params[name], rtol=1e-12)


def test_parameters_before_or_after_the_step():
    def counter(name, period=1):
        return Level(name, period, lambda key, data: 0.0, lambda state, context: state + 1.0)

    def reader(period):
        return Level("reader", period, lambda key, data: -1.0, lambda state, context: context.answers["counter"])

    for level, expected in [
        (by_parameters(reader(1), "counter", updated=True), [1, 2, 3, 4]),
        (by_parameters(reader(1), "counter"), [0, 1, 2, 3]),
        (by_parameters(reader(2), "counter", updated=True), [-1, 2, 2, 4]),
    ]:
        schedule = Schedule([level, counter("counter")])
        state, seen = schedule.init(None, {"counter": 0.0}), []
        for _ in range(4):
            state = schedule.step(state, {"counter": 0.0})
            seen.append(float(schedule.read(state, "reader")))
        assert seen == expected


def test_a_kept_context_is_attended_to():
    with jax.enable_x64(True):
        keys, values, queries = normal(14, 4), normal(14, 2, seed=1), normal(3, 4, seed=2)
        schedule = Schedule([by_context("seen", 4, 2, window=6, period=2)])
        start = schedule.init(None, {"seen": Pair(keys[0], values[0])})
        for n in (0, 4, 14):
            pairs = {"seen": Pair(keys[:n], values[:n])}
            state = schedule.run(start, pairs) if n else start
            kept = slice(max(n - 6, 0), n)
            scores = np.exp(queries @ keys[kept].T / 2)
            expected = (scores @ values[kept]) / np.maximum(scores.sum(-1, keepdims=True), 1e-300)
            np.testing.assert_allclose(schedule.read(state, "seen", queries), expected, rtol=1e-12)
        # and gradients reach what was kept
        gradient = jax.grad(
            lambda v: jnp.sum(schedule.read(schedule.run(start, {"seen": Pair(keys, v)}), "seen", queries))
        )
        assert np.count_nonzero(np.any(gradient(values) != 0, axis=1)) == 6
    with pytest.raises(ValueError, match="level 'seen': window=1: expected at least the period 2"):
        by_context("seen", 4, 2, window=1, period=2)
