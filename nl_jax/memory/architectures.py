"""What a memory is made of: linear maps whose weights learn, and fixed functions between them.

An architecture computes its answer through a function ``linear(i, x)`` that applies layer i, so one definition serves
every way of reading: from the weights at a chunk's boundary, from the weights updated up to each token, or with a probe
on every layer's output that catches its gradient.

``stack`` memories that read the same input are one architecture: their first layers lie side by side along the output
axis (one Gram matrix and one triangular inverse for all); later layers, and the answers of an MLP, have an axis for
them, [..., stack, C, out]. A matrix memory (depth 1) has no such axis.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Linear = Callable[[int, Float[Array, "... C in"]], Float[Array, "... C out"]]


@dataclass(frozen=True)
class Architecture:
    """A memory of ``depth`` layers: depth 1 is a matrix, more is an MLP with SiLU (Eq. 89, 91).

    Attributes:
      size_in: of a key.
      size_out: of an answer.
      hidden: units of each hidden layer.
      depth: layers; 1 for a matrix memory.
      gated: the hidden layer (depth 2) is ``silu(A x) * (B x)``, SwiGLU: features of second order.
      residual: the answer is ``x + f(x)``; needs ``size_in == size_out``.
      stack: memories that read the same input.
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
        if self.depth < 1 or (self.depth > 1 and self.hidden < 1):
            raise ValueError(f"depth={self.depth}, hidden={self.hidden}: both must be at least 1 (hidden from depth 2)")
        if self.gated and self.depth != 2:
            raise ValueError(f"depth={self.depth}: a gated memory has depth 2")
        if self.residual and self.size_in != self.size_out:
            raise ValueError(f"a residual memory needs size_in={self.size_in} equal to size_out={self.size_out}")
        if self.stack < 1 or (self.stack > 1 and self.depth < 2):
            raise ValueError(f"stack={self.stack} must be at least 1, and 1 for a matrix memory")

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
        """Outputs of an MLP's first layer, memory by memory."""
        return jnp.moveaxis(outputs.reshape(*outputs.shape[:-1], self.stack, outputs.shape[-1] // self.stack), -2, -3)

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
        answer = linear(self.depth - 1, h)
        if self.residual:
            answer = answer + (x if self.depth == 1 else x[..., None, :, :])
        return answer
