"""The closed form of a chunk against its token-by-token definition, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import memory
from nl_jax.memory import Architecture, chunk_decay, end_of_chunk, read_chunk, solve_chunk
from nl_jax.ops.decay import decay_matrix
from nl_jax.ops.products import inner_products, outer_products
from nl_jax.ops.triangular import solve_unit_lower

chunk_update = jax.jit(memory.chunk_update)
sequential_update = jax.jit(memory.sequential_update)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def numpy_update(W, S, x, g, eta, alpha, mu, beta, w0=None):
    """The recurrence, written out for one memory without leading axes."""
    W, S = W.copy(), S.copy()
    rest = np.zeros_like(W) if w0 is None else w0
    for t in range(len(x)):
        answer = (W - rest) @ x[t]
        S = mu[t] * S - eta[t] * np.outer(g[t], x[t])
        W = rest + alpha[t] * (W - rest) - beta[t] * np.outer(answer, x[t]) + S
    return W, S


def problem(seed, chunk, size_in, size_out, leading=(), low_alpha=0.9, low_mu=0.5, pulled=False):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal((*leading, *shape))

    x = normal(chunk, size_in)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return {
        "W": normal(size_out, size_in),
        "S": normal(size_out, size_in),
        "x": x,
        "g": normal(chunk, size_out),
        "eta": rng.uniform(0, 1, (*leading, chunk)),
        "alpha": rng.uniform(low_alpha, 1, (*leading, chunk)),
        "mu": rng.uniform(low_mu, 1, (*leading, chunk)),
        "beta": rng.uniform(0, 1, (*leading, chunk)),
    } | ({"w0": normal(size_out, size_in)} if pulled else {})


def assert_close(actual, expected, tolerance=1e-10):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1e-30, float(np.max(np.abs(e))))
        assert np.max(np.abs(np.asarray(a) - np.asarray(e))) <= tolerance * scale


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize(("low_alpha", "low_mu"), [(0.9, 0.5), (0.01, 0.01), (0.0, 0.0)])
@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 256])
def test_chunk_equals_tokens(chunk, low_alpha, low_mu, pulled):
    case = problem(chunk, chunk, 5, 3, low_alpha=low_alpha, low_mu=low_mu, pulled=pulled)
    if low_alpha == 0.0:
        case["alpha"][::3] = 0.0
        case["mu"][1::2] = 0.0
    expected = numpy_update(**case)
    assert_close(sequential_update(**case), expected)
    assert_close(chunk_update(**case), expected)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 256])
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_gradients_agree(chunk, mu):
    case = problem(chunk, chunk, 4, 3, low_alpha=0.01, pulled=True)
    case["mu"] = np.full(chunk, mu)
    case["alpha"][chunk // 2] = 0.0

    def loss(update, case):
        W, S = update(**case)
        return jnp.sum(jnp.sin(W)) + jnp.sum(jnp.cos(S))

    gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    gradients = [gradient(update, case) for update in (chunk_update, sequential_update)]
    assert all(np.any(np.asarray(v) != 0) for k, v in gradients[1].items() if k != "S" or mu > 0)
    assert_close(gradients[0], gradients[1], 1e-9)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    chunk=st.integers(1, 40),
    size_in=st.integers(1, 9),
    size_out=st.integers(1, 9),
    leading=st.sampled_from([(), (3,), (2, 1, 3)]),
)
def test_any_shape(seed, chunk, size_in, size_out, leading):
    case = problem(seed, chunk, size_in, size_out, leading, low_alpha=0.01)
    assert_close(chunk_update(**case), sequential_update(**case))


def test_leading_axes_broadcast():
    case = problem(0, 6, 4, 3)
    wide = problem(1, 6, 4, 3, (2, 5))
    case |= {"g": wide["g"], "alpha": wide["alpha"][:1]}
    W, S = chunk_update(**case)
    assert W.shape == (2, 5, 3, 4)
    assert_close((W, S), sequential_update(**case))


def test_chunks_follow_each_other():
    case = problem(2, 30, 4, 3)
    whole = chunk_update(**case)
    tokens = ("x", "g", "eta", "alpha", "mu", "beta")
    W, S = case["W"], case["S"]
    for part in (slice(0, 11), slice(11, 12), slice(12, 30)):
        W, S = chunk_update(W, S, **{name: case[name][part] for name in tokens})
    assert_close((W, S), whole)


def test_read_sees_the_state_up_to_its_own_token():
    case = problem(3, 9, 4, 3, pulled=True)
    queries = np.random.default_rng(4).standard_normal((9, 4))
    decay = chunk_decay(jnp.asarray(case["alpha"]), jnp.asarray(case["mu"]))
    w0 = case["w0"]
    chunk = solve_chunk(
        (case["W"] - w0).T,
        jnp.asarray(case["S"].T),
        jnp.asarray(case["x"]),
        -case["eta"][:, None] * case["g"],
        jnp.asarray(case["beta"]),
        decay,
    )
    answers = read_chunk(chunk, jnp.asarray(queries), queries @ w0.T)
    for t in range(9):
        part = {k: v[: t + 1] if k in ("x", "g", "eta", "alpha", "mu", "beta") else v for k, v in case.items()}
        before = {k: v[:t] if k in ("x", "g", "eta", "alpha", "mu", "beta") else v for k, v in case.items()}
        assert_close(answers[t], numpy_update(**part)[0] @ queries[t])
        delta_w = numpy_update(**before)[0] - w0
        assert_close(chunk.removed[t], case["beta"][t] * (delta_w @ case["x"][t]))


def test_padding_changes_nothing():
    case = problem(5, 8, 4, 3)
    expected = numpy_update(**case)
    valid = np.r_[0, 0, np.ones(8), 0, 0, 0]

    def pad(v, value):
        return np.r_[np.full((2, *v.shape[1:]), value), v, np.full((3, *v.shape[1:]), value)]

    decay = chunk_decay(jnp.asarray(pad(case["alpha"], 1.0)), jnp.asarray(pad(case["mu"], 1.0)), jnp.asarray(valid))
    chunk = solve_chunk(
        case["W"].T,
        jnp.asarray(case["S"].T),
        pad(case["x"], 0.3),
        pad(-case["eta"][:, None] * case["g"], 0.0),
        pad(case["beta"], 0.0),
        decay,
    )
    assert_close([w.T for w in end_of_chunk(chunk)], expected)


def test_without_momentum_equals_momentum_zero():
    case = problem(6, 12, 4, 3)
    case |= {"mu": np.zeros(12), "S": np.zeros((3, 4))}
    decay = chunk_decay(jnp.asarray(case["alpha"]), None)
    chunk = solve_chunk(
        jnp.asarray(case["W"].T), None, case["x"], -case["eta"][:, None] * case["g"], jnp.asarray(case["beta"]), decay
    )
    delta_w, momentum = end_of_chunk(chunk)
    assert momentum is None
    assert_close(delta_w.T, numpy_update(**case)[0])


@pytest.mark.parametrize("size", [1, 5, 16, 17, 64, 100])
def test_solution(size):
    lower = np.tril(np.random.default_rng(size).uniform(-1, 1, (2, size, size)), -1) / max(1, size**0.5)
    expected = np.linalg.inv(np.eye(size) + lower)
    right = np.random.default_rng(1).standard_normal((2, size, 3))
    assert_close(jax.jit(solve_unit_lower)(jnp.asarray(lower), jnp.asarray(right)), expected @ right)
    weights = np.random.default_rng(0).standard_normal((2, size, 3))

    def direct(lower, right):
        return jnp.linalg.inv(jnp.eye(size) + jnp.tril(lower, -1)) @ right

    gradients, expected = (
        jax.jit(jax.grad(lambda *case, solve=solve: jnp.sum(weights * solve(*case)), argnums=(0, 1)))(lower, right)
        for solve in (solve_unit_lower, direct)
    )
    for a, b in zip(gradients, expected, strict=True):
        assert np.max(np.abs(a - b)) < 1e-8 * max(1.0, np.max(np.abs(b)))


def test_solution_is_stable_for_equal_keys_in_float32():
    # powers of a 64 × 64 matrix of (nearly) ones reach 1e17: one product form for all of it would lose every digit
    lower = 0.999 * np.tril(np.ones((64, 64)), -1)
    expected = np.linalg.inv(np.eye(64) + lower)
    solution = jax.jit(solve_unit_lower)(jnp.asarray(lower, jnp.float32), jnp.eye(64, dtype=jnp.float32))
    assert np.max(np.abs(solution - expected)) < 1e-4


def test_decay_matrix_and_their_gradient_at_zero():
    rate = jnp.asarray([0.5, 0.0, 0.9, 0.0, 0.7])
    products = decay_matrix(rate)
    for t in range(5):
        for s in range(5):
            assert products[t, s] == pytest.approx(float(np.prod(rate[s + 1 : t + 1])) if t >= s else 0.0)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((5, 5)))

    @jax.jit
    def loss(r):
        return jnp.sum(weights * decay_matrix(r))

    step = 1e-6
    for i in range(5):
        numeric = (loss(rate.at[i].add(step)) - loss(rate.at[i].add(-step))) / (2 * step)
        assert jax.grad(loss)(rate)[i] == pytest.approx(float(numeric), abs=1e-8)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("g", (5, 3)), ("eta", (5,)), ("beta", (1,)), ("W", (4, 3)), ("S", (3, 5)), ("w0", (2, 4))],
)
@pytest.mark.parametrize("update", [chunk_update, sequential_update])
def test_shapes_that_do_not_fit(update, name, shape):
    case = problem(0, 6, 4, 3) | {name: np.zeros(shape)}
    with pytest.raises(ValueError, match=f"^{name} has"):
        update(**case)


@pytest.mark.parametrize("update", [chunk_update, sequential_update])
def test_arguments_that_are_no_matrices_or_sequences_are_named(update):
    case = problem(0, 6, 4, 3)
    for change, message in [
        ({"eta": 0.1}, r"^eta has shape \(\); expected a last axis of the 6 tokens of x"),
        ({"x": np.zeros(4)}, r"^x has shape \(4,\); expected at least two axes"),
        ({"x": np.zeros((0, 4)), "g": np.zeros((0, 3))}, r"^x has shape \(0, 4\); expected at least one token"),
        (
            {"W": np.zeros((2, 3, 4)), "x": np.zeros((3, 6, 4))},
            r"^leading axes of W \(2,\), .*x \(3,\).*; expected axes that broadcast",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            update(**case | change)


def test_sizes_of_an_architecture():
    with pytest.raises(ValueError, match="size_out=-1: expected an integer of at least 1"):
        Architecture(4, -1)


@pytest.mark.parametrize("leading", [((), ()), ((2, 1, 3), (2, 1, 3)), ((1, 1), (1, 1)), ((2, 1), (3,))])
@pytest.mark.parametrize(
    ("product", "plain"), [(inner_products, "...ci,...di->...cd"), (outer_products, "...ic,...id->...cd")]
)
def test_products_with_a_transpose(product, plain, leading):
    rng = np.random.default_rng(0)
    shapes = [(4, 5), (6, 5)] if product is inner_products else [(5, 4), (5, 6)]
    x, y = (jnp.asarray(rng.standard_normal((*axes, *shape))) for axes, shape in zip(leading, shapes, strict=True))
    weights = rng.standard_normal((*np.broadcast_shapes(*leading), 4, 6))
    reference = functools.partial(jnp.einsum, plain)
    assert_close(product(x, y), reference(x, y))
    assert_close(*(jax.grad(lambda x, y, f=f: jnp.sum(weights * f(x, y)), (0, 1))(x, y) for f in (product, reference)))
