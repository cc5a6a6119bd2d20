"""Linear layers and embeddings whose weights stay 8-bit: a token is written as fast as its weights can be read.

Weights are quantised in blocks along the input axis, each with a scale and an offset of its own, as in GGUF files: the
levels of a file's 4-bit blocks are among the 256 of a block here. They are kept [out, in], since only then does XLA on
CPU multiply a vector with them without writing them out as floats first (BUILD_NOTES.md, D83).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int8

BLOCK = 32  # weights that share a scale and an offset, as in GGUF files


class Frozen(nnx.Variable):
    """A variable that no optimizer moves."""


class QuantizedMatrix(nnx.Module):
    """A matrix ``[*stack, out, in]`` in 8 bits; ``in`` must be a multiple of 32.

    Args:
      weights: its values.
    """

    def __init__(self, weights: Float[Array, "*stack out in"]):
        blocks = weights.reshape(*weights.shape[:-1], -1, BLOCK)
        low, high = jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)
        scale = (high - low) / 255
        steps = (blocks - low[..., None]) / jnp.where(scale > 0, scale, 1.0)[..., None]
        self.steps = Frozen((jnp.round(steps) - 128).astype(jnp.int8).reshape(weights.shape))
        self.scale, self.middle = Frozen(scale), Frozen(low + 128 * scale)

    def values(self) -> Float[Array, "*stack out in"]:
        """The matrix in the type of its scales."""
        return dequantized(self.steps[...], self.scale[...], self.middle[...])

    def rows(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch in"]:
        """Some rows of it."""
        return dequantized(self.steps[...][index], self.scale[...][index], self.middle[...][index])


def dequantized(
    steps: Int8[Array, "*rows in"], scale: Float[Array, "*rows blocks"], middle: Float[Array, "*rows blocks"]
) -> Float[Array, "*rows in"]:
    """``scale * steps + middle`` for each block."""
    blocks = steps.reshape(*scale.shape, BLOCK).astype(scale.dtype)
    return (blocks * scale[..., None] + middle[..., None]).reshape(steps.shape)


class QuantizedLinear(nnx.Module):
    """A linear map with 8-bit weights.

    Args:
      layer: the layer whose weights and bias it takes over; all leaves may have a leading axis of blocks.
    """

    def __init__(self, layer: Any):
        self.matrix = QuantizedMatrix(jnp.swapaxes(layer.kernel[...], -1, -2))
        self.bias = None if layer.bias is None else Frozen(layer.bias[...])

    @property
    def kernel(self) -> Float[Array, "*stack in out"]:
        """The weights as floats, as other linear layers have them."""
        return jnp.swapaxes(self.matrix.values(), -1, -2)

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """Maps every vector."""
        y = x.reshape(-1, x.shape[-1]) @ self.kernel.astype(x.dtype)
        y = jax.lax.optimization_barrier(y)  # or XLA may compute the product again for each of its uses
        y = y if self.bias is None else y + self.bias[...]
        return y.reshape(*x.shape[:-1], y.shape[-1])


class QuantizedEmbed(nnx.Module):
    """An embedding with 8-bit weights, which also serves as a head.

    Args:
      embedding: the rows of all tokens.
    """

    def __init__(self, embedding: Float[Array, "vocab width"]):
        self.matrix = QuantizedMatrix(embedding)

    @property
    def embedding(self) -> Float[Array, "vocab width"]:
        """The rows of all tokens as floats."""
        return self.matrix.values()

    def rows(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """The rows of some tokens."""
        return self.matrix.rows(tokens)


@jax.jit
def quantize(model: Any) -> Any:
    """A copy of a language model whose linear layers and embedding have 8-bit weights. It can be read, not trained.

    A layer whose input is not a multiple of 32 stays as it is.
    """
    graph = nnx.clone(model)
    for _, node in list(nnx.iter_modules(graph)):
        for name, child in list(vars(node).items()):
            if isinstance(child, nnx.Linear) and child.kernel[...].shape[-2] % BLOCK == 0:
                setattr(node, name, QuantizedLinear(child))
            elif isinstance(child, nnx.Embed) and child.embedding[...].shape[-1] % BLOCK == 0:
                setattr(node, name, QuantizedEmbed(child.embedding[...]))
    return graph
