"""What a memory is made of: linear maps whose weights learn, and fixed functions between them.

An architecture computes its answer through a function ``linear(i, x)`` that applies layer i. One definition thus
serves every way of reading a memory: with the weights at a chunk's boundary, with the weights updated up to each token,
or with a probe on every layer's output that catches its gradient.

A stack of memories that read the same input is one architecture. Their first layers lie side by side along the output
axis, so that one Gram matrix and one triangular inverse serve all of them. Later layers, and the answers of an MLP,
have an axis for the memories, [..., stack, C, out]. A matrix memory (depth 1) has no such axis.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.ops import block_squared_lengths, narrow_like, scale_blocks, squared_lengths

Linear = Callable[[int, Float[Array, "... C in"]], Float[Array, "... C out"]]


@dataclass(frozen=True)
class Architecture:
    """A memory of ``depth`` layers: a matrix for depth 1, else an MLP with SiLU (Eq. 89, 91).

    Attributes:
      size_in: size of a key.
      size_out: size of an answer.
      hidden: units of each hidden layer.
      depth: number of layers.
      gated: the hidden layer (depth 2) is ``silu(A x) * (B x)``, a SwiGLU, whose features are of second order.
      residual: the answer is ``x + f(x)``; this needs ``size_in == size_out``.
      stack: number of memories that read the same input.

    Raises:
      ValueError: for sizes below 1, or options that the depth or the sizes exclude.

    Examples:
      >>> from nl_jax.memory import Architecture
      >>> Architecture(8, 8).shapes()  # a matrix
      ((8, 8),)
      >>> Architecture(8, 8, hidden=32, depth=2, residual=True).shapes()  # an MLP
      ((8, 32), (1, 32, 8))
    """

    size_in: int
    size_out: int
    hidden: int = 0
    depth: int = 1
    gated: bool = False
    residual: bool = False
    stack: int = 1

    def __post_init__(self):
        """Checks the sizes."""
        for name in ("size_in", "size_out"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected an integer of at least 1")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: expected at least 1")
        if self.depth > 1 and self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: expected at least 1 for depth={self.depth}")
        if self.gated and self.depth != 2:
            raise ValueError(f"depth={self.depth}: expected 2 for a gated memory")
        if self.residual and self.size_in != self.size_out:
            raise ValueError(f"size_in={self.size_in}: expected size_out={self.size_out} in a residual memory")
        if self.stack < 1 or (self.stack > 1 and self.depth < 2):
            raise ValueError(f"stack={self.stack}: expected at least 1, and 1 for a matrix memory")

    @property
    def first_outputs(self) -> int:
        """Outputs of one memory's first layer: an MLP's hidden units, twice as many where it is gated."""
        return self.size_out if self.depth == 1 else self.hidden * (2 if self.gated else 1)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each layer's weights, [..., in, out]."""
        if self.depth == 1:
            return ((self.size_in, self.size_out),)
        middle = ((self.stack, self.hidden, self.hidden),) * (self.depth - 2)
        return ((self.size_in, self.stack * self.first_outputs), *middle, (self.stack, self.hidden, self.size_out))

    def split(self, outputs: Float[Array, "... C out"]) -> Float[Array, "... stack C hidden"]:
        """Splits the outputs of an MLP's first layer into those of each memory."""
        return jnp.moveaxis(outputs.reshape(*outputs.shape[:-1], self.stack, outputs.shape[-1] // self.stack), -2, -3)

    def is_side_by_side(self, layer: int) -> bool:
        """Whether a layer's outputs [..., C, out] hold those of all memories side by side, without an axis for them."""
        return layer == 0 and self.depth > 1

    def per_memory(self, layer: int, coefficients: Float[Array, "... C"]) -> Float[Array, "*#stack C"]:
        """Gives coefficients of a layer's inputs the axis for the memories, where the inputs have none."""
        return coefficients[..., None, :] if self.is_side_by_side(layer) else coefficients

    def output_squares(self, layer: int, outputs: Float[Array, "... C out"]) -> Float[Array, "*stack C"]:
        """The squared length of a layer's output, of each memory and token."""
        return block_squared_lengths(outputs, self.stack) if self.is_side_by_side(layer) else squared_lengths(outputs)

    def scale_outputs(
        self, layer: int, weights: Float[Array, "*#stack C"], outputs: Float[Array, "... C out"]
    ) -> Float[Array, "... C out"]:
        """A layer's outputs, multiplied by a weight of each memory and token."""
        return (
            scale_blocks(weights, outputs, self.stack) if self.is_side_by_side(layer) else weights[..., None] * outputs
        )

    def add_residual(self, answer: Float[Array, "... C out"], x: Float[Array, "... C in"]) -> Float[Array, "... C out"]:
        """``x + answer`` for a residual memory, else the answer."""
        if not self.residual:
            return answer
        return answer + (x if self.depth == 1 else x[..., None, :, :])

    def __call__(
        self, linear: Linear, x: Float[Array, "... C in"], up_bias: Float[Array, "..."] | None = None
    ) -> Float[Array, "... C out"]:
        """The answer to x, [..., C, out] from a matrix and [..., stack, C, out] from MLPs.

        ``up_bias`` is the bias c of a gated memory's ``silu(A x) * (B x + c)``; None for zero.
        """
        h = x
        for layer in range(self.depth - 1):
            h = linear(layer, h)
            h = self.split(h) if layer == 0 else h
            if self.gated:
                gate, up = jnp.split(h, 2, axis=-1)
                h = jax.nn.silu(gate) * (up if up_bias is None else up + up_bias[..., None, None, None])
            else:
                h = jax.nn.silu(h)
            h = narrow_like(h, x)
        return self.add_residual(linear(self.depth - 1, h), x)
