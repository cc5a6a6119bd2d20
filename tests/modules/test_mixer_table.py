"""What every mixer promises: states that stay as they are made, inputs of no size, and derivatives in every mode."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from mixer_groups import COMPOSED, FEWER_GATES

from nl_jax.modules import MIXERS, PAPER_FORM, AttentionState, HybridState, mixer

WIDTH, HEADS = 8, 2
CASES = {name: (name, {}) for name in MIXERS} | {
    "self_modifying_titans, the paper's": ("self_modifying_titans", {**PAPER_FORM, "projection_chunk_size": 8}),
    "titans, to zero": ("titans", {"retention": "zero", "depth": 3}),
    "attention, convolution": ("attention", {"convolution": True, "context_length": 5}),
}
COMPILED = ("delta_net", "attention")  # quick to compile; the others are slow
# Their derivatives are another row's: a matrix with fewer gates, an MLP with another objective, two side by side.
DERIVED = (*FEWER_GATES, "ttt_mlp", "sliding_window_memory")
FIRST_ORDER = (  # derivatives of second order take minutes to compile, or are those of a row without options
    *("self_modifying_titans", "atlas"),
    *(case for case in CASES if case not in MIXERS),
)
every_mixer = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in COMPOSED else case for case in CASES]
)
some_mixers = pytest.mark.parametrize(
    "case", [case if case in COMPILED else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)


def make(case, dtype=jnp.float32):
    name, options = CASES[case]
    module = mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **{"chunk_size": 4, **options})
    return jax.tree.map(lambda p: p.astype(dtype), module)


def tokens(time, batch=2, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (batch, time, WIDTH), dtype)


def types(function, *arguments):
    """Of what a function returns, traced but not compiled."""
    return jax.tree.map(lambda u: (u.shape, u.dtype, u.weak_type), jax.eval_shape(function, *arguments))


@every_mixer
def test_a_state_can_be_donated_and_one_program_serves_all_calls(case):
    module, x = make(case), tokens(1)
    step = jax.jit(lambda x, state: module(x, state), donate_argnums=1)
    state = module.init_state(2)
    for _ in range(2):
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
        assert len(set(places)) == len(places)
        _, state = step(x, state)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("parameters", "inputs", "x64"),
    [
        (jnp.float32, jnp.float32, False),
        (jnp.bfloat16, jnp.bfloat16, False),
        (jnp.bfloat16, jnp.float32, False),
        (jnp.float32, jnp.bfloat16, True),
        (jnp.float32, jnp.float32, True),
    ],
)
@every_mixer
def test_no_call_changes_the_types_of_a_state(case, parameters, inputs, x64):
    with jax.enable_x64(True) if x64 else contextlib.nullcontext():
        module, x = jax.eval_shape(lambda: (make(case, parameters), tokens(6, dtype=inputs)))
        state = jax.eval_shape(lambda module: module.init_state(2), module)

        def thrice(module, x, state):
            def scanned(state, x):
                y, state = module(x, state)
                return state, y

            return jax.lax.scan(scanned, state, jnp.stack([x, x, x]))

        expected = types(lambda module: module.init_state(2), module)
        y, fresh = types(lambda module, x: module(x), module, x)
        last, ys = types(thrice, module, x, state)
        assert expected == fresh == last
        assert y == (x.shape, jnp.promote_types(parameters, inputs), False)
        assert ys[:2] == ((3, *x.shape), y[1])
        parts = state if isinstance(state, HybridState) else (state,)
        for part in parts:  # attention keeps what it was given, anything else is wide
            kept = {leaf.dtype for leaf in jax.tree.leaves(part) if leaf.shape}
            assert kept == {jnp.dtype(parameters if isinstance(part, AttentionState) else jnp.float32)}


@every_mixer
def test_a_state_made_in_other_types_keeps_them(case):
    """Such as by a model in float32 of which a copy in bfloat16 reads."""
    module, state, x = jax.eval_shape(lambda: (make(case, jnp.bfloat16), make(case).init_state(2), tokens(6)))
    assert types(lambda *a: a[0](a[1], a[2])[1], module, x, state) == types(lambda: make(case).init_state(2))


@every_mixer
def test_parameters_are_float32_whatever_the_default_is(case):
    name, options = CASES[case]
    with jax.enable_x64(True):
        module = jax.eval_shape(lambda: mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **options))
    assert {leaf.dtype for leaf in jax.tree.leaves(module)} == {jnp.dtype(jnp.float32)}


@some_mixers
def test_float64_as_the_default_changes_no_output(case):
    expected = jax.jit(make(case))(tokens(3))
    with jax.enable_x64(True):
        actual = jax.jit(make(case))(tokens(3))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@every_mixer
def test_no_tokens_change_nothing(case):
    module = make(case)
    state = jax.tree.map(lambda u: u + 1, module.init_state(2))
    for before, expected in ((state, state), (None, module.init_state(2))):
        y, after = module(tokens(0), before)
        assert y.shape == (2, 0, WIDTH)
        assert y.dtype == jnp.float32
        jax.tree.map(np.testing.assert_array_equal, after, expected)


@every_mixer
def test_a_batch_of_no_sequences(case):
    module = make(case)
    state = module.init_state(0)
    for before in (None, state):
        y, after = types(lambda module, x, state: module(x, state), module, tokens(6, batch=0), before)
        assert y[0] == (0, 6, WIDTH)
        assert after == types(lambda: state)


@some_mixers
def test_a_batch_of_no_sequences_runs(case):
    module = make(case)
    y, _ = jax.jit(module)(tokens(3, batch=0), module.init_state(0))
    assert y.shape == (0, 3, WIDTH)


def loss(module, x):
    return jnp.sum(jnp.sin(module(x)[0]))


@pytest.mark.parametrize(
    "case",  # "titans" is compiled by the next test
    [
        pytest.param(c, marks=pytest.mark.slow) if c in FIRST_ORDER else c
        for c in CASES
        if c not in (*DERIVED, "titans")
    ],
)
def test_derivatives_of_second_order_can_be_traced(case):
    module, x = jax.eval_shape(lambda: (make(case), tokens(6)))

    def pulled(x):
        return jnp.sum(jnp.square(jax.checkpoint(jax.grad(loss, 1))(module, x)))

    assert types(lambda x: jax.jvp(jax.grad(loss, 1), (module, x), (module, x))[1], x)[0] == x.shape
    assert types(jax.grad(pulled), x)[0] == x.shape


@pytest.mark.parametrize(
    "case", [c if c in COMPILED else pytest.param(c, marks=pytest.mark.slow) for c in CASES if c not in DERIVED]
)
def test_forward_mode_equals_reverse_mode_and_finite_differences(case):
    with jax.enable_x64(True):
        module, x, rng = make(case, jnp.float64), tokens(6, batch=1, dtype=jnp.float64), np.random.default_rng(0)
        along = jax.tree.map(lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape)), (module, x))

        def at(step):
            return loss(*jax.tree.map(lambda p, d: p + step * d, (module, x), along))

        @jax.jit
        def derivatives(step):
            reverse = jax.grad(at)
            first = at(step), jax.jvp(at, (step,), (1.0,))[1], reverse(step)
            if case in FIRST_ORDER:
                return first
            return *first, jax.jvp(reverse, (step,), (1.0,))[1], jax.grad(reverse)(step)

        here, ahead, behind = (derivatives(jnp.asarray(step)) for step in (0.0, 1e-5, -1e-5))
        np.testing.assert_allclose(here[1], here[2], rtol=1e-9)
        np.testing.assert_allclose(here[1], (ahead[0] - behind[0]) / 2e-5, rtol=1e-5)
        if case in FIRST_ORDER:
            return
        np.testing.assert_allclose(here[3], (ahead[2] - behind[2]) / 2e-5, rtol=1e-4)
        np.testing.assert_allclose(here[4], here[3], rtol=1e-9)
