"""Atlas' polynomial features, and its updates that are made orthogonal when a chunk ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.modules import mixer
from nl_jax.modules.mixers.atlas_parts import initial_powers, orthogonal_update, polynomial_features

WIDTH, HEADS, CHUNK = 8, 2, 4
apply = jax.jit(lambda module, x, state=None: module(x, state))


def make(**options):
    module = mixer("atlas", width=WIDTH, num_heads=HEADS, chunk_size=CHUNK, rngs=nnx.Rngs(0), **options)
    return jax.tree.map(lambda p: p.astype(jnp.float64), module)


def test_features_are_powers_of_each_channel():
    rng = np.random.default_rng(0)
    x, powers = rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((1, 2, 3))
    x[0, 0, 0] = 0.0
    with jax.enable_x64(True):
        found = np.asarray(polynomial_features(jnp.asarray(x), jnp.asarray(powers)))
    for head in range(2):
        for t in range(5):
            expected = np.concatenate([powers[0, head, n] * (2 * x[0, head, t]) ** (n + 1) for n in range(3)])
            expected /= np.sqrt(np.sum(expected**2) + 1e-6)
            np.testing.assert_allclose(found[0, head, t], expected, rtol=1e-12)
    np.testing.assert_allclose(initial_powers(2, 3), [[1, 1 / 2, 1 / 6]] * 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 3, 8, 5)])
def test_an_orthogonal_update_keeps_length_and_directions(shape):
    update = np.random.default_rng(0).standard_normal(shape)
    found = np.asarray(orthogonal_update(jnp.asarray(update, jnp.float32), 5))
    lengths = (np.linalg.norm(u, axis=(-2, -1)) for u in (found, update))
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    singular = np.linalg.svd(found, compute_uv=False)
    assert np.all(singular[..., 0] < 2.2 * singular[..., -1])
    u, _, v = np.linalg.svd(update, full_matrices=False)
    inside = np.swapaxes(u, -1, -2) @ found @ np.swapaxes(v, -1, -2)
    off = inside - inside * np.eye(inside.shape[-1])
    assert np.max(np.abs(off)) < 1e-3 * np.max(np.abs(inside))


def test_a_zero_update_stays_zero_with_a_zero_gradient():
    zero = jnp.zeros((2, 4, 4))
    np.testing.assert_array_equal(orthogonal_update(zero, 5), zero)
    np.testing.assert_array_equal(jax.grad(lambda u: jnp.sum(orthogonal_update(u, 5)))(zero), zero)


def test_the_sum_of_a_chunks_updates_is_orthogonal_when_it_ends():
    """Against the same mixer without the step, from the same state: it reads and learns alike inside of a chunk."""
    with jax.enable_x64(True):
        plain, atlas = make(newton_schulz_steps=0, alpha=0.75), make(alpha=0.75)
        x = jax.random.normal(jax.random.key(1), (1, 2 * CHUNK, WIDTH), jnp.float64)
        state = atlas.init_state(1)
        for part in jnp.split(x, 2, axis=1):
            begun = state._replace(delta_w_at_boundary=state.delta_w_at_boundary[:1])
            expected, raw = apply(plain, part, begun)
            y, after = apply(atlas, part, state)
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)
            for new, unchanged, before in zip(after.delta_w[0], raw.delta_w[0], state.delta_w[0], strict=True):
                left = 0.75**CHUNK * before
                expected = left + orthogonal_update(unchanged - left, 5)
                np.testing.assert_allclose(new, expected, rtol=1e-6, atol=1e-8)
            for kept in after.delta_w_at_boundary:
                jax.tree.map(np.testing.assert_array_equal, kept, after.delta_w[0])
            state = after
