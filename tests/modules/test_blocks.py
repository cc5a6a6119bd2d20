"""Every block: causality, attention against NumPy, splits of a text, and the continuum memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.modules import Attention, Block, ContinuumMemory, mixer
from nl_jax.modules.mixers.rotary import rotary

WIDTH, HEADS = 8, 2
apply = jax.jit(lambda module, x, state=None: module(x, state))


def block_of(periods, name, **options):
    rngs = nnx.Rngs(0)
    sequence_mixer = mixer(name, width=WIDTH, num_heads=HEADS, rngs=rngs, **options)
    return Block(WIDTH, sequence_mixer, ContinuumMemory(WIDTH, 12, periods, rngs=rngs), rngs=rngs)


BLOCKS = {
    "hope": ((1, 2), "self_modifying_titans", {"chunk_size": 4}),
    "hope, boundary read": ((1,), "self_modifying_titans", {"chunk_size": 4, "read": "boundary"}),
    "hope, two chunk sizes": ((1,), "self_modifying_titans", {"chunk_size": 2, "projection_chunk_size": 6}),
    "hope_attention": ((1, 4), "attention", {"context_length": 32}),
    "transformer": ((1,), "attention", {"context_length": 32}),
    "transformer, window": ((1,), "attention", {"context_length": 4}),
    "transformer, convolution": ((1,), "attention", {"context_length": 32, "convolution": True}),
}


def make(name):
    periods, mixer_name, options = BLOCKS[name]
    return block_of(periods, mixer_name, **options)


@pytest.mark.parametrize("name", BLOCKS)
def test_causality(name):
    block = make(name)
    x = jax.random.normal(jax.random.key(0), (1, 15, WIDTH))
    y, _ = apply(block, x)
    for t in (0, 3, 4, 7, 14):
        changed, _ = apply(block, x.at[:, t].add(1.0))
        np.testing.assert_array_equal(changed[:, :t], y[:, :t])
        assert float(jnp.max(jnp.abs(changed[:, t] - y[:, t]))) > 1e-3


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("hope, ") else name for name in BLOCKS]
)
def test_a_text_in_parts(name):
    block = make(name)
    x = jax.random.normal(jax.random.key(0), (2, 11, WIDTH))
    y, last = apply(block, x)
    state, parts = block.init_state(2), []
    for part in (x[:, :1], x[:, 1:7], x[:, 7:]):
        out, state = apply(block, part, state)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), y, atol=1e-5)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("context_length", "convolution", "use_rope"),
    [(16, False, True), (3, False, True), (3, True, True), (3, False, False)],
)
def test_attention_equals_numpy(context_length, convolution, use_rope):
    options = {"context_length": context_length, "convolution": convolution, "use_rope": use_rope}
    module = Attention(WIDTH, HEADS, **options, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (6, WIDTH)))
    p = jax.tree.map(np.asarray, module)
    d = WIDTH // HEADS

    def turn(u, t):
        if not use_rope:
            return u
        angle = t * 10_000.0 ** (-np.arange(d // 2) / (d // 2))
        a, b = u[: d // 2], u[d // 2 :]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    projected = np.concatenate([x @ w.kernel[...] for w in (p.query, p.key, p.value)], axis=1)
    if convolution:
        padded = np.concatenate([np.zeros((3, 3 * WIDTH)), projected])
        projected = np.array([np.sum(p.conv.kernel[...] * padded[t : t + 4], axis=0) for t in range(6)])
    q, k, v = (u.reshape(6, HEADS, d) for u in np.split(projected, 3, axis=1))
    y = np.zeros((6, HEADS, d))
    for h in range(HEADS):
        for t in range(6):
            seen = range(max(0, t + 1 - context_length), t + 1)
            scores = np.array([turn(q[t, h], t) @ turn(k[s, h], s) for s in seen]) / d**0.5
            weights = np.exp(scores - scores.max())
            y[t, h] = weights @ v[seen, h] / weights.sum()
    out, _ = apply(module, jnp.asarray(x)[None])
    np.testing.assert_allclose(out[0], y.reshape(6, -1) @ p.output.kernel[...], atol=1e-5)


def test_attention_forgets_beyond_its_context():
    module = Attention(WIDTH, HEADS, context_length=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 9, WIDTH))

    def last(x):
        state = module.init_state(1)
        for t in range(9):
            y, state = apply(module, x[:, t : t + 1], state)
        return y

    np.testing.assert_array_equal(last(x), last(x.at[:, :5].add(1.0)))
    assert float(jnp.max(jnp.abs(last(x) - last(x.at[:, 5].add(1.0))))) > 1e-4


def test_continuum_memory_is_the_chain_of_its_levels():
    cms = ContinuumMemory(WIDTH, 12, (1, 3, 9), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, WIDTH))
    expected = np.asarray(x)
    for level in cms.levels:
        n = expected / np.sqrt(np.mean(expected**2, axis=-1, keepdims=True) + level.norm.epsilon)
        gate = n @ np.asarray(level.gate.kernel[...])
        hidden = gate / (1 + np.exp(-gate)) * (n @ np.asarray(level.up.kernel[...]))
        expected = expected + hidden @ np.asarray(level.down.kernel[...])
    np.testing.assert_allclose(cms(x), expected, atol=1e-5)


@pytest.mark.parametrize("periods", [(), (0,), (1, -2), (1.5,), (True,)])
def test_bad_periods(periods):
    with pytest.raises(ValueError, match="periods="):
        ContinuumMemory(WIDTH, 12, periods, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (6, 2)])
def test_bad_heads(width, heads):
    with pytest.raises(ValueError, match=f"num_heads={heads}: expected a divisor of width={width}"):
        Attention(width, heads, context_length=4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("context_length", [1, 5, 64])
def test_attention_is_the_same_at_any_split(context_length, convolution):
    module = Attention(WIDTH, HEADS, context_length=context_length, convolution=convolution, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 23, WIDTH))
    y, last = apply(module, x)
    for lengths in ([23], [1] * 23, [7, 1, 12, 3], [4, 5, 6, 8]):
        state, parts = module.init_state(2), []
        for part in jnp.split(x, np.cumsum(lengths)[:-1], axis=1):
            out, state = apply(module, part, state)
            parts.append(out)
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1), y, atol=1e-5)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("convolution", [False, True])
def test_attention_does_not_tire_of_a_long_text(convolution):
    """A state that has read any number of tokens is that of its window: only what the window holds counts."""
    context = 5
    module = Attention(WIDTH, HEADS, context_length=context, convolution=convolution, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 44, WIDTH))
    _, long = apply(module, x[:, :40])
    _, short = apply(module, x[:, 40 - context - 3 : 40])  # three more for the convolution
    assert int(long.position) == int(short.position) == context
    expected, _ = apply(module, x[:, 40:], short)
    np.testing.assert_allclose(apply(module, x[:, 40:], long)[0], expected, atol=1e-6)
    for position in (10**5, 2**24 + 1, 2**31 - 2):
        state = long._replace(position=jnp.asarray(position, jnp.int32))
        y, after = apply(module, x[:, 40:], state)
        np.testing.assert_allclose(y, expected, atol=1e-6)
        assert int(after.position) == context


@pytest.mark.parametrize("length", [1, 2, 37, 1_000_003])
def test_angles_are_exact_however_many_tokens_there_are(length):
    x = jnp.ones((1, length, 1, 4)).at[..., 2:].set(0.0)
    last = np.asarray(rotary(x)[0, -5:, 0], np.float64)
    angle = np.arange(length)[-5:, None] * 10_000.0 ** (-np.arange(2) / 2)
    np.testing.assert_allclose(last, np.concatenate([np.cos(angle), np.sin(angle)], axis=1), atol=1e-6)


def test_rotary_positions_start_anywhere():
    x = jax.random.normal(jax.random.key(0), (1, 10, 2, 4))
    np.testing.assert_allclose(rotary(x[:, 7:], start=7), rotary(x)[:, 7:], atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: mixer("titans", width=8, num_heads=1, chunk_size=4, rngs=nnx.Rngs(0)),
        lambda: ContinuumMemory(8, 8, rngs=nnx.Rngs(0)),
    ],
)
def test_inputs_of_another_width_are_refused(build):
    with pytest.raises(ValueError, match=r"has shape .* expected a last axis of (8|the width, 8)"):
        build()(jnp.ones((2, 5, 6)))
