"""All chunks of a text at once: of a memory that is linear in its state, which a kernel carries from chunk to chunk."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from nl_jax.modules.mixers.parameters import Projected
from nl_jax.ops import ChunkMaps, matrix_scan, narrow_like
from nl_jax.ops.matrix_scan import STARTS, fits
from nl_jax.parallel.kernels import choose_backend, over_heads


class LinearMemory(NamedTuple):
    """How a mixer with such a memory reads chunks.

    Attributes:
      kernel: which program carries the state, as for ``choose_backend``.
      maps: from the tokens of chunks, [batch, heads, chunks, C, ...], what they do to the state, and the answers of W₀,
        None for zero.
    """

    kernel: str
    maps: Callable[[Projected], tuple[ChunkMaps, Array | None]]

    def backend(self, weights: Float[Array, "batch heads in out"], size: int) -> str | None:
        """The kernel's backend for chunks of a size; None for XLA's scan over chunks."""
        size_in, size_out = weights.shape[-2:]
        return choose_backend(self.kernel, lambda backend: fits(backend, size_in, size_out, size, weights.dtype))

    def read(
        self, tokens: Projected, count: int, weights: Float[Array, "batch heads in out"], backend: str
    ) -> tuple[Float[Array, "batch heads time out"], Float[Array, "batch heads in out"]]:
        """Answers to all tokens, cut in ``count`` chunks, and the state after them.

        The backward pass keeps the tokens and the state at each chunk's start, and computes the maps again.
        """

        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(STARTS))
        def read(tokens, weights):
            maps, w0_answers = self.maps(tokens)
            y, after = over_heads(functools.partial(matrix_scan, backend=backend), weights, maps)
            y = y if w0_answers is None else y + w0_answers
            return narrow_like(y, tokens.key), after

        def cut(u):
            return u.reshape(*u.shape[:2], count, u.shape[2] // count, *u.shape[3:])

        y, after = read(jax.tree.map(cut, tokens), weights)
        return y.reshape(*y.shape[:2], y.shape[2] * y.shape[3], y.shape[4]), after
