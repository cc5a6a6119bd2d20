"""Comba: a gated delta rule that removes less than it writes, and is read by a corrected query (Hu et al., 2025)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import (
    Decay,
    Rule,
    chunk_decay,
    end_of_chunk,
    limit_strength,
    linear_chunks,
    read_chunk,
    solve_chunk,
)
from nl_jax.modules.mixers.all_chunks import LinearMemory
from nl_jax.modules.mixers.coefficients import RETENTION_BIAS
from nl_jax.modules.mixers.parameters import Projected, over_batch
from nl_jax.modules.mixers.stepping import Memories, MemoryState, read_text
from nl_jax.modules.mixers.zero_matrix import ZeroMatrix
from nl_jax.ops import ChunkMaps, narrow_like

INITIAL_FEEDBACK = 1.0  # sigmoid: 0.73, as in the authors' layer


class Comba(ZeroMatrix):
    """``W ← W (α I - b β k kᵀ) + β v kᵀ``, answered by ``W (q - d k)``: a matrix that starts at zero, as a mixer.

    Each head learns the feedback b in (0, 1), by a sigmoid, and the output correction d (arXiv 2506.02475). The
    transition is a scalar plus a matrix of rank one: retention does not multiply what the feedback removes, which it
    does in ``gated_delta_net``.

    Departures: those of ``delta_net``; α is a sigmoid of the input, without the paper's decay rate of each head; the
    corrected query is not brought to unit length again; the output has no gate.

    Args:
      width: of input and output.
      num_heads: must divide width.
      correction: initial value of d. The authors use 0.02 for small models, and 1 for large ones.
      eta, alpha: β and retention, as for ``MemoryMixer``. The feedback is cut so that b β‖k‖² ≤ 1 + α.
      chunk_size: tokens that are learned at once.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, a correction that is no finite
        number, or coefficients out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import Comba
      >>> mixer = lambda x: Comba(8, 2, chunk_size=4, rngs=nnx.Rngs(0))(x)
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape, state.delta_w[0][0].shape
      ((1, 8, 8), (1, 2, 4, 4))
    """

    has_kernel = True

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        correction: float = 0.02,
        eta: Any = ("sigmoid", 0.0),
        alpha: Any = ("sigmoid", RETENTION_BIAS),
        chunk_size: int = 64,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if not isinstance(correction, int | float) or not math.isfinite(correction):
            raise ValueError(f"correction={correction!r}: expected a finite number")
        super().__init__(
            width,
            num_heads,
            rule=Rule("paper"),
            eta=eta,
            alpha=alpha,
            chunk_size=chunk_size,
            output_scale=output_scale,
            rngs=rngs,
        )
        self.feedback = nnx.Param(jnp.full(num_heads, INITIAL_FEEDBACK, jnp.float32))
        self.correction = nnx.Param(jnp.full(num_heads, correction, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x, as ``MemoryMixer`` does; ``state=None`` starts a text."""
        wide = self.state_dtype
        feedback, correction = over_batch(
            (jax.nn.sigmoid(self.feedback[...].astype(wide)), self.correction[...].astype(wide)), len(x)
        )

        def written(tokens: Projected, advances: Array) -> tuple[Array, Array, Decay, Array]:
            """Forcings, β, decay and queries of one chunk, or of several on an axis of their own."""
            assert tokens.eta is not None
            assert tokens.alpha is not None
            alpha = jnp.where(advances > 0, tokens.alpha, 1.0)
            eta = tokens.eta * tokens.valid
            strength, share = (u.reshape(*u.shape, *(1,) * (eta.ndim - u.ndim)) for u in (feedback, correction))
            beta = limit_strength(strength * eta, alpha, tokens.key)
            query = narrow_like(tokens.query - share[..., None] * tokens.key, tokens.query)
            return eta[..., None] * tokens.value, beta, chunk_decay(alpha, None, advances), query

        def learn(
            memories: Memories, tokens: Projected, advances: Array, starts_at_boundary: bool
        ) -> tuple[Array, Memories]:
            forcings, beta, decay, query = written(tokens, advances)
            chunk = solve_chunk(memories.delta_w[0][0], None, tokens.key, forcings, beta, decay)
            delta_w, _ = end_of_chunk(chunk)
            return read_chunk(chunk, query), memories._replace(delta_w=((delta_w,),))

        def maps(tokens: Projected) -> tuple[ChunkMaps, None]:
            return linear_chunks(tokens.key, *written(tokens, tokens.valid)), None

        linear = LinearMemory(self.kernel, maps)
        return read_text(self, self.chunking, learn, x, state, at_boundary=at_boundary, kernel=linear)
