"""Oja's rule: a matrix memory whose delta term acts on the side of the values (Eq. 66-67)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import (
    Rule,
    chunk_decay,
    end_of_chunk,
    limit_strength,
    read_chunk_transposed,
    solve_chunk,
)
from nl_jax.modules.mixers.coefficients import RETENTION_BIAS
from nl_jax.modules.mixers.parameters import Projected
from nl_jax.modules.mixers.stepping import Memories, MemoryState, read_text
from nl_jax.modules.mixers.zero_matrix import ZeroMatrix


class Oja(ZeroMatrix):
    """``W ← (α I - β v vᵀ) W + η v kᵀ``, a matrix that starts at zero, as a sequence mixer.

    Its transpose follows the recurrence of every memory, with values in the place of keys and keys as what is written.
    So a head's state is [value, key].

    Args:
      width: of input and output.
      num_heads: must divide width.
      allow_neg_eigval: doubles η. With and without it β is η, cut so that β‖v‖² ≤ 1 + α.
      eta, alpha: learning rate and retention, as for ``MemoryMixer``.
      chunk_size: tokens that are learned at once.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, or coefficients out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import Oja
      >>> mixer = lambda x: Oja(8, 2, chunk_size=4, rngs=nnx.Rngs(0))(x)
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape, state.delta_w[0][0].shape
      ((1, 8, 8), (1, 2, 4, 4))
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        allow_neg_eigval: bool = False,
        eta: Any = ("sigmoid", 0.0),
        alpha: Any = ("sigmoid", RETENTION_BIAS),
        chunk_size: int = 64,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            width,
            num_heads,
            rule=Rule("paper", allow_neg_eigval=allow_neg_eigval),
            eta=eta,
            alpha=alpha,
            chunk_size=chunk_size,
            output_scale=output_scale,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x, as ``MemoryMixer`` does; ``state=None`` starts a text."""
        reach = 2.0 if self.groups[0].rule.allow_neg_eigval else 1.0

        def learn(
            memories: Memories, tokens: Projected, advances: Array, starts_at_boundary: bool
        ) -> tuple[Array, Memories]:
            assert tokens.eta is not None
            assert tokens.alpha is not None
            alpha = jnp.where(advances > 0, tokens.alpha, 1.0)
            eta = reach * tokens.eta * tokens.valid
            chunk = solve_chunk(
                memories.delta_w[0][0],
                None,
                keys=tokens.value,
                forcings=eta[..., None] * tokens.key,
                beta=limit_strength(eta, alpha, tokens.value),
                decay=chunk_decay(alpha, None, advances),
            )
            delta_w, _ = end_of_chunk(chunk)
            return read_chunk_transposed(chunk, tokens.query), memories._replace(delta_w=((delta_w,),))

        return read_text(self, self.chunking, learn, x, state, at_boundary=at_boundary)
