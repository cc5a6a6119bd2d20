"""The meta-learned initial weights of memories."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Architecture


class InitialMemories(nnx.Module):
    """The meta-learned initial weights: ``layers[i]`` [heads, ...] has layer i of all memories of all heads.

    Inner layers start orthogonal, so that different keys have different features, and so large that features have about
    the key's length: SiLU halves small numbers. Last layers start small, so that a memory does not answer with noise.
    """

    def __init__(self, num_heads: int, architecture: Architecture, *, rngs: nnx.Rngs):
        def initial(layer, shape):
            key, shape = rngs.params(), (num_heads, *shape)
            if layer == architecture.depth - 1:
                return 0.1 * jax.random.normal(key, shape, jnp.float32) / shape[-2] ** 0.5
            # the square of each of a gated memory's two factors is 1 / size_in on average
            length = (4.0 * architecture.size_in**2 / architecture.hidden) ** 0.25 if architecture.gated else 2.0
            return length * orthogonal_blocks(key, shape)

        self.layers = nnx.List([nnx.Param(initial(i, shape)) for i, shape in enumerate(architecture.shapes())])


def orthogonal_blocks(key: Array, shape: tuple[int, ...]) -> Float[Array, "... in out"]:
    """Matrices [..., in, out] made of square orthogonal blocks side by side, of which the last one is cut.

    Each block is the polar factor of a normal matrix, by Newton-Schulz. ``jax.random.orthogonal`` would take a QR
    decomposition, which hangs in a program that is split over several CPU devices (jaxlib 0.10.2).
    """
    *leading, size, outputs = shape
    blocks = jax.random.normal(key, (*leading, -(-outputs // size), size, size), jnp.float32)
    blocks /= jnp.linalg.norm(blocks, axis=(-2, -1), keepdims=True)  # singular values below 1: it converges

    def improve(_, q):
        return 1.5 * q - 0.5 * q @ (jnp.swapaxes(q, -1, -2) @ q)

    blocks = jax.lax.fori_loop(0, 40, improve, blocks)  # 1.5^40 lifts singular values from 1e-7
    return jnp.swapaxes(blocks.reshape(*leading, -1, size)[..., :outputs, :], -1, -2)
