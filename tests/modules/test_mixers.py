"""Every mixer by name: splits of a text, causality, published recurrences, and what the parts of a memory do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.modules import MIXERS, mixer
from nl_jax.modules.mixers import Memories
from nl_jax.modules.mixers.subchunk import ChunkInputs, ReadOnly, learn_subchunk

WIDTH, HEADS, D = 8, 2, 4
SLOW = pytest.mark.slow
apply = jax.jit(lambda module, x, state=None: module(x, state))


def make(name, **options):
    return mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **{"chunk_size": 4, **options})


def tokens(time, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, time, WIDTH))


def in_parts(module, x, split):
    state, parts = module.init_state(len(x)), []
    for part in jnp.split(x, np.cumsum(split)[:-1], axis=1):
        y, state = apply(module, part, state)
        parts.append(y)
    return jnp.concatenate(parts, axis=1), state


COMPOSED = ("mamba2", "gla", "dla")  # of what others run
QUICK_OPTIONS = ("gated_delta_net", "sliding_window_attention")  # whose rows with options are tested fast, too
CASES = [(name, {}) for name in MIXERS] + [
    ("self_modifying_titans", {"rule": "paper", "retention": "zero", "eta_bias": -4.0}),  # grows with larger steps
    ("titans", {"depth": 3}),
    ("titans", {"gated": True, "objective": "huber"}),
    ("titans", {"objective": "lp"}),
    ("titans", {"shrinkage": True, "window": 3, "delta": False, "rule": "normalized"}),
    ("titans", {"window": 3, "objective": "dot_product"}),
    ("self_modifying_titans", {"adaptive": ("query", "value"), "momentum": True, "objective": "dot_product"}),
    ("gated_delta_net", {"allow_neg_eigval": True}),
    ("linear_attention", {"alpha": ("hard_tanh", 0.0), "mu": 0.5}),
    ("sliding_window_attention", {"window": 3}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, marks=SLOW)
        if name in COMPOSED or (options and name not in QUICK_OPTIONS)
        else (name, options)
        for name, options in CASES
    ],
)
def test_causal_and_the_same_one_by_one_and_in_parts(name, options):
    module, x = make(name, **options), tokens(11)
    whole = apply(module, x)
    for t in (0, 3, 4, 10):
        changed, _ = apply(module, x.at[:, t].add(1.0))
        np.testing.assert_array_equal(changed[:, :t], whole[0][:, :t])
        assert float(jnp.max(jnp.abs(changed[:, t] - whole[0][:, t]))) > 1e-4
    for split in ((1,) * 11, (1, 5, 5)):
        for a, b in zip(jax.tree.leaves(in_parts(module, x, split)), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("ttt_linear", {"chunk_size": 6}), pytest.param("atlas", {}, marks=pytest.mark.slow)]
)
def test_the_count_of_tokens_does_not_overflow(name, options):
    """Chunks keep their places when the count starts again."""
    module, x = make(name, **options), tokens(14)
    size = module.chunking.subchunk
    _, state = apply(module, x[:, :9])
    late = state._replace(position=jnp.asarray(2**30 - 2**30 % size - size + 9 % size, jnp.int32))
    for part in (x[:, 9:11], x[:, 11:]):
        (expected, state), (y, late) = apply(module, part, state), apply(module, part, late)
        np.testing.assert_array_equal(y, expected)
    assert int(late.position) < size
    for a, b in zip(*(jax.tree.leaves(s._replace(position=0)) for s in (late, state)), strict=True):
        np.testing.assert_array_equal(a, b)


def projected(module, x):
    """Keys, values, queries and coefficients of one sequence in NumPy: [time, heads, ...]."""
    inputs, _ = module.project(x, module.conv.init_state(1))
    return {name: np.moveaxis(np.asarray(u[0]), 0, 1) for name, u in inputs._asdict().items() if np.ndim(u) > 1}


def outer(a, b):
    return np.einsum("hi,hj->hij", a, b)


SIGNED = {"signed linear attention": ("linear_attention", {"alpha": ("hard_tanh", 0.0)})}  # a retention from -1 to 1
# W_t from W_{t-1}, key, value and coefficients [heads, ...], as their papers print them
PUBLISHED = {
    "linear_attention": lambda W, k, v, eta, alpha: W + outer(v, k),
    "signed linear attention": lambda W, k, v, eta, alpha: alpha[:, None, None] * W + outer(v, k),
    "linear_attention_pp": lambda W, k, v, eta, alpha: W + outer(v, k),
    "mamba2": lambda W, k, v, eta, alpha: alpha[:, None, None] * W + eta[:, None, None] * outer(v, k),
    "retnet": lambda W, k, v, eta, alpha: np.array([1 - 2**-5, 1 - 2**-6])[:, None, None] * W + outer(v, k),
    "delta_net": lambda W, k, v, eta, alpha: (
        W @ (np.eye(D) - eta[:, None, None] * outer(k, k)) + eta[:, None, None] * outer(v, k)
    ),
    "gated_delta_net": lambda W, k, v, eta, alpha: (
        alpha[:, None, None] * W @ (np.eye(D) - eta[:, None, None] * outer(k, k)) + eta[:, None, None] * outer(v, k)
    ),
    "oja": lambda W, k, v, eta, alpha: (
        (alpha[:, None, None] * np.eye(D) - eta[:, None, None] * outer(v, v)) @ W + eta[:, None, None] * outer(v, k)
    ),
}


@pytest.mark.parametrize("chunk", [1, 4, 16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recurrences(name, chunk):
    with jax.enable_x64(True):
        mixer_name, options = SIGNED.get(name, (name, {}))
        module = jax.tree.map(lambda p: p.astype(jnp.float64), make(mixer_name, chunk_size=chunk, **options))
        x = tokens(13, batch=1).astype(jnp.float64)
        p = projected(module, x)
        W = np.swapaxes(module.init_state(1).delta_w[0][0][0], -1, -2)
        expected = []
        for t in range(13):
            W = PUBLISHED[name](W, p["key"][t], p["value"][t], p["eta"][t], p["alpha"][t])
            y = np.einsum("hij,hj->hi", W, p["query"][t])
            expected.append(y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6))
        expected = np.stack(expected).reshape(13, WIDTH) @ np.asarray(module.output.kernel[...])
        y, _ = apply(module, x)
        np.testing.assert_allclose(y[0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_mixer_starts_as_an_induction_head():
    """Three tokens that came before are answered with what followed them then, before any training."""
    module = mixer("delta_net", width=64, num_heads=1, rngs=nnx.Rngs(0))
    text = jax.random.normal(jax.random.key(1), (1, 20, 64))
    _, state = module(text)
    p = {name: u[:, 0] for name, u in projected(module, jnp.concatenate([text, text[:, 5:8]], axis=1)).items()}
    answer = p["query"][22] @ np.asarray(state.delta_w[0][0][0, 0])
    likeness = p["value"][:20] @ answer
    assert np.argmax(likeness) == 8
    assert likeness[8] > 2 * np.sort(likeness)[-2]
    np.testing.assert_allclose(np.sum(p["key"][1:] * p["query"][:-1], axis=-1), 1, atol=0.05)


def test_allow_neg_eigval_reach_minus_one():
    """β = 2 mirrors the memory at a key; a value of zero then flips its answer's sign: parity."""
    module = make("delta_net", allow_neg_eigval=True, eta=1.0)
    key = jnp.zeros((1, HEADS, 1, D)).at[..., 0].set(1.0)
    W = jnp.broadcast_to(jnp.eye(D), (1, HEADS, D, D))
    projected = module.project(tokens(1, batch=1), module.conv.init_state(1))[0]._replace(key=key, value=0.0 * key)
    memories = Memories(((W,),), (), ())
    inputs = ChunkInputs(key, (0.0 * key,), projected.eta, projected.alpha, (None,))
    _, memories = learn_subchunk(
        module.groups,
        ReadOnly(None),
        memories,
        memories.delta_w,
        projected,
        projected.valid,
        inputs,
        window=1,
        starts_at_boundary=True,
    )
    np.testing.assert_allclose(memories.delta_w[0][0][0, 0], np.diag([-1.0, 1.0, 1.0, 1.0]), atol=1e-6)


def test_signed_retention_keeps_a_parity_and_a_count_exactly():
    """Each token turns what was learned to its opposite, or leaves it as it is, over any number of chunks."""
    for sign in (-1.0, 1.0):
        module = make("linear_attention", alpha=("hard_tanh", sign))
        module.alpha.linear.kernel[...] *= 0.0
        _, state = apply(module, tokens(300))
        state = state._replace(conv=0.0 * state.conv)
        _, after = apply(module, jnp.zeros((2, 101, WIDTH)), state)
        np.testing.assert_array_equal(after.delta_w[0][0][0, 0], sign * state.delta_w[0][0][0, 0])


STREAMS = {
    "random": lambda rng, time: rng.standard_normal((1, time, WIDTH)),
    "one token repeated": lambda rng, time: np.repeat(rng.standard_normal((1, 1, WIDTH)), time, axis=1),
    "two nearly equal tokens": lambda rng, time: (
        rng.standard_normal((1, 1, WIDTH)) + 1e-3 * (np.arange(time) % 2)[None, :, None]
    ),
    "huge": lambda rng, time: 1e15 * rng.standard_normal((1, time, WIDTH)),
    "zero": lambda rng, time: np.zeros((1, time, WIDTH)),
}


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    stream=st.sampled_from(sorted(STREAMS)),
    eta=st.sampled_from([0.0, 0.1, 10.0, 1e4]),
    alpha=st.sampled_from([0.0, 0.5, 0.98, 1.0]),
    chunk=st.sampled_from([1, 16, 512]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    momentum=st.booleans(),
    delta=st.booleans(),
    gated=st.booleans(),
)
def test_default_rule_is_bounded(stream, eta, alpha, chunk, dtype, momentum, delta, gated):
    """By the bound in memory/rules.py, for any coefficients and any stream."""
    time = {1: 64, 16: 256, 512: 600}[chunk]
    rule = {"momentum": momentum, "delta": delta, "gated": gated}
    module = make("self_modifying_titans", chunk_size=chunk, eta=eta, alpha=alpha, **rule)
    module = jax.tree.map(lambda p: p.astype(dtype), module)
    x = jnp.asarray(STREAMS[stream](np.random.default_rng(0), time), dtype)
    y, state = apply(module, x)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((y, state)))

    def norm(w):
        return np.linalg.norm(np.asarray(w, np.float64), ord=2, axis=(-2, -1))

    root = (2 * eta) ** 0.5
    for start, (first, last), memory in zip(module.initial_weights(), state.delta_w, module.groups, strict=True):
        initial = norm(start[1].astype(jnp.float32))
        bound = 1.01 * time * (initial + root)
        assert np.all(norm(last[0]) <= bound)
        memories = np.swapaxes(first[0].reshape(HEADS, D, memory.architecture.stack, -1), 1, 2)
        assert np.all(norm(memories) <= 1.01 * time * max(1, root) * (1 + 0.5 * (initial + bound)))


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "alpha", "time"), [(64, 0.98, 65_536), (512, 1.0, 16_384)])
def test_default_rule_is_bounded_over_long_texts(chunk, alpha, time):
    module = make("self_modifying_titans", chunk_size=chunk, eta=1e4, alpha=alpha)
    for stream in STREAMS.values():
        out = apply(module, jnp.asarray(stream(np.random.default_rng(0), time), jnp.float32))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("other", {}, "unknown mixer 'other'"),
        ("titans", {"num_heads": 3}, "num_heads=3: expected a divisor of width=8"),
        ("titans", {"chunk_size": 0}, "chunk_size=0: expected an integer of at least 1"),
        ("titans", {"chunk_size": True}, "chunk_size=True: expected an integer of at least 1"),
        ("titans", {"rule": "other"}, "rule='other': expected one of 'implicit', 'normalized', 'paper'"),
        ("titans", {"objective": "other"}, "objective='other': expected one of"),
        ("titans", {"read": "other"}, "read='other': expected one of 'token', 'boundary'"),
        ("titans", {"initial": "zero"}, "initial='zero' with depth=2"),
        ("titans", {"eta": -1.0}, "eta=-1.0: expected"),
        ("titans", {"alpha": float("nan")}, "alpha=nan: expected"),
        ("titans", {"alpha": (0.5, 0.5, 0.5)}, "alpha=(0.5, 0.5, 0.5): expected"),
        ("titans", {"mu": ("tanh", 0.0)}, "mu=('tanh', 0.0): expected the activation"),
        ("linear_attention", {"eta": ("hard_tanh", 0.0)}, "eta=('hard_tanh', 0.0): expected the activation"),
        (
            "delta_net",
            {"alpha": ("hard_tanh", 0.0)},
            "alpha=('hard_tanh', 0.0): expected memories without a delta term",
        ),
        ("titans", {"alpha": ("hard_tanh", 0.0)}, "alpha=('hard_tanh', 0.0): expected memories without a delta term"),
        ("mesa", {"alpha": ("hard_tanh", 0.0)}, "alpha=('hard_tanh', 0.0): expected a retention from 0 to 1"),
        ("titans", {"eta": "fast"}, "eta='fast': expected one finite number, or one per head, at least 0"),
        ("titans", {"eta": np.ones(999)}, "eta=array"),
        ("titans", {"mu": 1.5}, "mu=1.5: expected one finite number, or one per head, from 0 to 1"),
        ("titans", {"eta": ("softplus", float("nan"))}, "eta=('softplus', nan): expected an activation followed by"),
        ("gated_delta_net", {"alpha": ("sigmoid",)}, "alpha=('sigmoid',): expected an activation followed by"),
        ("titans", {"depth": 0}, "depth=0"),
        ("titans", {"depth": 3, "gated": True}, "depth=3: expected 2 for a gated memory"),
        ("delta_net", {"window": 2}, "window=2: expected at least 1, and 1 with a delta term"),
        ("titans", {"window": 3}, "window=3: expected at least 1, and 1 with a delta term"),
        ("delta_net", {"unknown": 1}, "unknown"),
        ("atlas", {"degree": 0}, "degree=0: expected an integer of at least 1"),
        ("atlas", {"newton_schulz_steps": -1}, "newton_schulz_steps=-1: expected an integer of at least 0"),
        ("titans", {"degree": True}, "degree=True: expected an integer of at least 1"),
        ("delta_net", {"degree": 2}, "size_in=4: expected degree=2 times the head's size"),
        ("mesa", {"iterations": 0}, "iterations=0: expected an integer of at least 1"),
        ("mesa", {"chunk_size": 0}, "chunk_size=0: expected an integer of at least 1"),
        ("oja", {"mu": 0.5}, "unexpected keyword argument 'mu'"),
        ("oja", {"chunk_size": 0}, "chunk_size=0: expected an integer of at least 1"),
        ("attention", {"num_heads": 0}, "num_heads=0"),
        ("self_modifying_titans", {"adaptive": ("memory",)}, "adaptive=('memory',)"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mixer(name, **{"width": WIDTH, "num_heads": HEADS, "chunk_size": 4, "rngs": nnx.Rngs(0), **options})
