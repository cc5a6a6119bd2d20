"""What is said of bounds: of the recurrence, of a chunk's learning, and of whole mixers under all of their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import Schedule
from nl_jax.levels import Pair, from_memory
from nl_jax.memory import (
    OBJECTIVES,
    RULES,
    Architecture,
    Memory,
    Rule,
    Tokens,
    Weights,
    chunk_decay,
    end_of_chunk,
    learn_chunk,
    limit_cotangent,
    limit_norm,
)
from nl_jax.memory.guards import LARGEST_TOKEN
from nl_jax.modules import MIXERS, mixer

SIZE, WIDTH, HEADS = 3, 8, 2
rules = st.builds(Rule, st.sampled_from(RULES), st.booleans(), st.booleans(), st.booleans())
rates = st.sampled_from([0.0, 0.1, 1.0, 5.0, 1e4])
fractions = st.sampled_from([0.0, 0.3, 0.9, 1.0])


def learned(rule, objective, keys, eta, alpha, mu=None, start=None):
    """A matrix that starts at the identity (by default) after a chunk of keys whose values are all zero, [in, out]."""
    tokens = len(keys)
    one = jnp.ones((1, 1, tokens))
    start = jnp.eye(SIZE) if start is None else start
    chunk = learn_chunk(
        Memory(Architecture(SIZE, SIZE), OBJECTIVES[objective], rule, tokens),
        Weights(
            w0=None,
            delta_w=(start[None, None],),
            momentum=None if mu is None else (jnp.zeros((1, 1, SIZE, SIZE)),),
            w_at_boundary=(start[None, None],),
        ),
        Tokens(
            keys=jnp.asarray(keys, jnp.float32)[None, None],
            values=jnp.zeros((1, 1, tokens, SIZE)),
            eta=eta * one,
            alpha=alpha * one,
            one_minus_mu=None if mu is None else (1.0 - mu) * one,
            decay=chunk_decay(alpha * one, None if mu is None else mu * one),
        ),
        starts_at_boundary=True,
    )[0]
    return np.asarray(end_of_chunk(chunk)[0][0, 0])


def length(matrix):
    return np.linalg.norm(matrix, ord=2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rule=rules, eta=rates, alpha=fractions, size=st.sampled_from([0.0, 0.5, 1.0, 30.0]))
def test_no_rule_expands_what_the_delta_term_acts_on(rule, eta, alpha, size):
    """Without a forcing (dot product, values of zero) one token gives αI - βxxᵀ: no longer than 1, whatever x is."""
    key = size * np.array([[0.6, -0.8, 0.0]])
    assert length(learned(rule, "dot_product", key, eta, alpha)) <= 1 + 1e-5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rule=rules.filter(lambda rule: rule.form != "paper" and not rule.allow_neg_eigval),
    eta=rates,
    alpha=fractions,
    likeness=st.sampled_from([0.0, 0.9, 1.0]),
    tokens=st.sampled_from([1, 7, 64]),
)
def test_a_chunk_brings_answers_nearer_to_their_values(rule, eta, alpha, likeness, tokens):
    """L2 with values of zero is a linear map of the matrix: no longer than 1, however alike the keys are."""
    keys = np.random.default_rng(0).standard_normal((tokens, SIZE))
    keys = likeness * keys[:1] + (1 - likeness) * keys
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    assert length(learned(rule, "l2", keys, eta, alpha)) <= 1 + 1e-5


@pytest.mark.parametrize("name", ["l2", "lp", "huber", "dot_product"])
def test_curvature_bounds_the_slope(name):
    error = jnp.concatenate([-jnp.logspace(2, -8, 200), jnp.logspace(-8, 2, 200)])
    slope = jax.vmap(jax.grad(lambda e: OBJECTIVES[name].gradient(e[None], jnp.zeros(1))[0]))(error)
    assert np.all((slope >= -1e-6) & (slope <= OBJECTIVES[name].curvature * (1 + 1e-5)))


def test_a_level_has_the_limits_of_a_mixer():
    """The paper's rule at an absurd rate on one pair again and again; a matrix's sum of outer products is exact."""
    pair = {"m": Pair(jnp.tile(jnp.eye(SIZE)[0], (400, 1)), jnp.tile(jnp.eye(SIZE)[1], (400, 1)))}

    def delta_w(architecture, objective, eta):
        rule = Rule("paper", delta=False)
        schedule = Schedule([from_memory("m", architecture, objective=objective, rule=rule, period=4, eta=eta)])
        state = schedule.init(jax.random.key(0), jax.tree.map(lambda x: x[0], pair))
        return [np.linalg.norm(w) for w in schedule.run(state, pair).levels["m"].delta_w]

    assert max(delta_w(Architecture(SIZE, SIZE, hidden=8, depth=2, gated=True), "l2", 1e4)) <= 1000.1
    assert max(delta_w(Architecture(SIZE, SIZE), "lp", 1e30)) <= 1000.1
    assert delta_w(Architecture(SIZE, SIZE), "dot_product", 10.0) == pytest.approx([4000.0])


@pytest.mark.parametrize("read", ["token", "boundary"])
def test_a_sum_that_needs_no_limit_has_none(read):
    """Linear attention's state after 2,000 equal tokens is 2,000 times what one writes, wherever it is read."""
    module = mixer("linear_attention", width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), chunk_size=16, read=read)
    x = jnp.repeat(jax.random.normal(jax.random.key(0), (1, 1, WIDTH)), 2000, axis=1)
    _, state = jax.jit(lambda module, x: module(x))(module, x)
    np.testing.assert_allclose(np.linalg.norm(state.delta_w[0][0][0], axis=(-2, -1)), 2000, rtol=1e-2)


def test_limits():
    x = jnp.array([[3.0, 4.0], [0.3, 0.4], [3e30, 4e30], [0.0, 0.0]])
    np.testing.assert_allclose(limit_norm(x, 1.0, -1), [[0.6, 0.8], [0.3, 0.4], [0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    slope = jax.jacobian(lambda x: limit_norm(x, 1.0, -1))(x)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[1, :, 1], np.eye(2))
    np.testing.assert_allclose(slope[0, :, 0], (np.eye(2) - np.outer([0.6, 0.8], [0.6, 0.8])) / 5, atol=1e-6)

    def total(x, factor):
        return jnp.sum(factor * limit_cotangent({"x": x})["x"])

    assert jax.grad(total)(jnp.ones(()), 2.0) == 2.0
    assert jax.jit(jax.grad(total))(jnp.ones(()), 1e30) == 1e6
    assert jax.grad(total)(jnp.ones(()), -jnp.inf) == -1e6
    assert jax.jvp(lambda x: total(x, 1e30), (jnp.ones(()),), (jnp.ones(()),))[1] == jnp.float32(1e30)
    np.testing.assert_array_equal(jax.vmap(jax.grad(total), (0, None))(jnp.ones(3), 1e30), jnp.full(3, 1e6))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4])
def test_what_is_short_enough_stays_as_it_is(dtype, size):
    x = jnp.asarray(size * np.random.default_rng(0).standard_normal((100, WIDTH)), dtype)
    np.testing.assert_array_equal(jax.jit(lambda x: limit_norm(x, LARGEST_TOKEN, -1))(x), x)


def streams(time):
    """Texts that have broken memories: [1, time, WIDTH] each."""
    rng = np.random.default_rng(0)
    token = rng.standard_normal((1, 1, WIDTH))
    return {
        "random": rng.standard_normal((1, time, WIDTH)),
        "one token": np.repeat(token, time, axis=1),
        "two tokens in turn": np.resize(rng.standard_normal((2, WIDTH)), (1, time, WIDTH)),
        "a token and its opposite": token * np.where(np.arange(time) % 2, 1.0, -1.0)[:, None],
        "nearly one token": token + 1e-3 * rng.standard_normal((1, time, WIDTH)),
        "zero": np.zeros((1, time, WIDTH)),
        "huge": 1e15 * rng.standard_normal((1, time, WIDTH)),
        "huge, one token": 1e15 * np.repeat(token, time, axis=1),
    }


def run(name, options, time, dtype=jnp.float32, seed=0):
    """By stream: everything that comes out, [(y, state), gradients of parameters and tokens], as one tree."""
    module = mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(seed), **options)
    module = jax.tree.map(lambda p: p.astype(dtype), module)

    def loss(module, x):
        y, state = module(x)
        return jnp.mean(jnp.sin(y.astype(jnp.float32)) + jnp.square(y.astype(jnp.float32))), (y, state)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return {stream: both(module, jnp.asarray(x, dtype)) for stream, x in streams(time).items()}


def assert_finite(outcomes):
    for stream, tree in outcomes.items():
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree)), stream


@pytest.mark.parametrize(
    ("name", "options", "time"),
    [
        pytest.param(
            "titans",
            {"eta": ("softplus", 5.0), "alpha": ("sigmoid", 0.0), "allow_neg_eigval": True},
            1024,
            marks=pytest.mark.slow,
        ),
        ("oja", {"eta": ("sigmoid", 5.0), "alpha": ("sigmoid", 0.0), "allow_neg_eigval": True}, 1024),
        ("mesa", {"eta": ("softplus", 1e4), "alpha": 1.0}, 512),
        ("ttt_linear", {}, 1024),
        ("ttt_linear", {"objective": "dot_product"}, 64),
        pytest.param("dla", {"alpha": ("hard_tanh", 0.0)}, 512, marks=pytest.mark.slow),
        pytest.param(
            "self_modifying_titans", {"rule": "paper", "delta": True, "eta_bias": 5.0}, 512, marks=pytest.mark.slow
        ),
        pytest.param("self_modifying_titans", {"memory_gates": False, "eta_bias": 20.0}, 512, marks=pytest.mark.slow),
        pytest.param(
            "self_modifying_titans",
            {"alpha_bias": 0.0, "eta_bias": 50.0, "allow_neg_eigval": True, "chunk_size": 64},
            1024,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_options_that_were_unstable(name, options, time):
    assert_finite(run(name, {"chunk_size": 16, **options}, time))


def test_an_mlp_learns_dot_products_in_bfloat16():
    """Whose gradient has the values' type."""
    options = {"objective": "dot_product", "chunk_size": 16}
    module = nnx.eval_shape(lambda: mixer("atlas", width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **options))
    module = jax.eval_shape(lambda m: jax.tree.map(lambda p: p.astype(jnp.bfloat16), m), module)
    y, _ = jax.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((1, 40, WIDTH), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


def test_gradients_of_the_defaults_stay_small_on_repeated_text():
    """Steps of a chunk's equal keys add up to at most one; where they added up to 3.4 the gradient reached 1e9."""
    outcomes = run("self_modifying_titans", {"chunk_size": 16}, 1024, seed=1)
    for stream in ("one token", "two tokens in turn", "a token and its opposite", "nearly one token"):
        gradients = outcomes[stream][1][0]
        assert np.sqrt(sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(gradients))) < 1e4, stream


BOOLEAN = (True, False)
OF_ATTENTION = {
    "use_rope": BOOLEAN,
    "qk_norm": BOOLEAN,
    "convolution": BOOLEAN,
    "bias": BOOLEAN,
    "num_kv_heads": (1, 2),
}
# of mixers that have few
OWN_OPTIONS: dict[str, dict] = {
    "attention": OF_ATTENTION | {"context_length": (1, 5, 300)},
    "sliding_window_attention": OF_ATTENTION | {"window": (1, 5)},
    "mesa": {"iterations": (1, 8, 100)},
    "comba": {"correction": (0.0, 1.0)},
    "gla": {"rank": (1, 4)},
    "rwkv7": {"rank": (1, 4)},
    "lstm": {},
    "srwm": {},
    "sliding_window_memory": {"memory": ("rwkv7", "titans"), "window": (1, 5)},
}


@st.composite
def compositions(draw):
    """A mixer, and values for any of its options; several of them exclude each other."""
    name = draw(st.sampled_from(list(MIXERS)))
    given: dict = {"chunk_size": draw(st.sampled_from([1, 4, 16, 64]))}
    choices: dict = {
        "rule": RULES,
        "delta": BOOLEAN,
        "delta_after_retention": BOOLEAN,
        "allow_neg_eigval": BOOLEAN,
        "read": ("token", "boundary"),
        "retention": ("initial", "zero"),
        "objective": tuple(OBJECTIVES),
        "shrinkage": BOOLEAN,
    }
    if name == "self_modifying_titans":
        choices |= {
            "momentum": BOOLEAN,
            "gated": BOOLEAN,
            "self_targets": BOOLEAN,
            "memory_gates": (True, False, None),
            "adaptive": ((), ("key", "value"), ("query", "eta"), ("key", "value", "query", "eta", "alpha")),
            "projection_chunk_size": (1, 4, 16),
            "frozen": BOOLEAN,
            "eta_bias": (-4.0, 5.0, 50.0, 1e4),
            "alpha_bias": (-5.0, 0.0, 4.0),
            "alpha": (None, 1.0, ("hard_tanh", 0.0)),
        }
    else:
        choices |= {
            "eta": (("softplus", 0.0), ("softplus", 5.0), ("sigmoid", 5.0), ("softplus", 1e4), 1.0, 1e4, 0.0),
            "alpha": (("sigmoid", 0.0), ("sigmoid", 8.0), ("hard_tanh", 0.0), 1.0, 0.5, 0.0),
            "mu": (None, ("sigmoid", -1.0), ("sigmoid", 3.0), 0.5, 1.0),
            "window": (1, 3),
            "initial": ("learned", "zero"),
        }
        if name in ("ttt_mlp", "titans", "atlas"):
            choices["gated"] = BOOLEAN
    if name in OWN_OPTIONS:
        gates = {gate: choices[gate] for gate in ("eta", "alpha") if name in ("mesa", "comba")}
        choices = OWN_OPTIONS[name] | gates
    for option, values in choices.items():
        if draw(st.booleans()):
            given[option] = draw(st.sampled_from(values))
    return name, given


def check(composition, dtype):
    name, options = composition
    time = {1: 48, 4: 64, 16: 160, 64: 256}[options["chunk_size"]]
    try:
        mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **options)
    except ValueError:
        return  # options that exclude each other are refused
    assert_finite(run(name, options, time, dtype))


@pytest.mark.parametrize("options", [{"use_rope": False}, {"qk_norm": True}])
def test_attention_to_huge_tokens(options):
    """Where gradients of scores, or squares in a norm, overflowed."""
    assert_finite(run("attention", {"context_length": 160, **options}, 160))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(compositions(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_any_options_on_any_text_are_finite_forward_and_backward(composition, dtype):
    check(composition, dtype)


@pytest.mark.slow
@settings(max_examples=16, deadline=None, derandomize=True)
@given(compositions(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_more_options_on_any_text_are_finite_forward_and_backward(composition, dtype):
    check(composition, dtype)
