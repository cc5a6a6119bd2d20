"""MesaNet: each answer is that of the ridge regression of all pairs so far (von Oswald et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import (
    Chunk,
    Rule,
    chunk_decay,
    end_of_chunk,
    read_chunk,
    solve_chunk,
)
from nl_jax.memory.guards import LARGEST_RATE
from nl_jax.modules.mixers.coefficients import RETENTION_BIAS, is_signed
from nl_jax.modules.mixers.parameters import Projected, over_batch
from nl_jax.modules.mixers.stepping import Memories, MemoryState, read_text
from nl_jax.modules.mixers.zero_matrix import ZeroMatrix
from nl_jax.ops import solve_positive_definite

LEAST_RIDGE = 0.25  # of every channel, as in the paper: it bounds what a solution can amplify
INITIAL_RIDGE = 1.0


class Mesa(ZeroMatrix):
    """``y_t = G_t (H_t + Λ)⁻¹ q_t`` with ``H ← α H + η k kᵀ`` and ``G ← α G + η v kᵀ``, as a sequence mixer.

    It is the least-squares memory (``nl_jax.memory.LeastSquares``) in which every token reads the state updated up to
    itself. Both sums are one matrix memory that learns [k, v] by the Hebbian rule, in the engine's closed form. The
    systems of all tokens of a chunk are solved at once by conjugate gradients, whose products with H_t read that
    memory: no matrix per token is formed. Gradients are those of the exact solution (implicit differentiation). State,
    solution and answers are computed in float32 or wider, since rounding errors of H count as much as Λ does.

    The ridge Λ is a learned diagonal of each head, at least 0.25, and at first 1.

    Args:
      width: of input and output.
      num_heads: must divide width.
      iterations: of conjugate gradients, for each chunk; the paper trains with 30.
      eta: weight of a pair in the regression, in the place of the learning rate; as for ``MemoryMixer``.
      alpha: retention, as for ``MemoryMixer``.
      chunk_size: tokens that are learned and answered at once.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size or a number of iterations below 1, or
        coefficients out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import Mesa
      >>> mixer = lambda x: Mesa(8, 2, iterations=4, chunk_size=4, rngs=nnx.Rngs(0))(x)
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape, state.delta_w[0][0].shape  # of each head H and Gᵀ, side by side
      ((1, 8, 8), (1, 2, 4, 8))
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        iterations: int = 30,
        eta: Any = ("sigmoid", 0.0),
        alpha: Any = ("sigmoid", RETENTION_BIAS),
        chunk_size: int = 64,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations={iterations}: expected an integer of at least 1")
        if is_signed(alpha):  # H would not be positive definite
            raise ValueError(f"alpha={alpha!r}: expected a retention from 0 to 1")
        self.iterations = iterations
        super().__init__(
            width,
            num_heads,
            rule=Rule("paper", delta=False),
            outputs=2,
            eta=eta,
            alpha=alpha,
            chunk_size=chunk_size,
            output_scale=output_scale,
            rngs=rngs,
        )
        above = jnp.log(jnp.expm1(INITIAL_RIDGE - LEAST_RIDGE))  # the inverse of softplus
        self.ridge = nnx.Param(jnp.full((num_heads, self.head_dim), above, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x, as ``MemoryMixer`` does; ``state=None`` starts a text."""
        wide = self.state_dtype
        ridge = over_batch(LEAST_RIDGE + jax.nn.softplus(self.ridge[...].astype(wide)), len(x))[:, :, None]

        def learn(
            memories: Memories, tokens: Projected, advances: Array, starts_at_boundary: bool
        ) -> tuple[Array, Memories]:
            assert tokens.eta is not None
            assert tokens.alpha is not None
            key, value, query = (u.astype(wide) for u in (tokens.key, tokens.value, tokens.query))
            eta = jnp.minimum(tokens.eta, LARGEST_RATE) * tokens.valid
            with jax.default_matmul_precision("float32"):
                chunk = solve_chunk(
                    memories.delta_w[0][0],
                    None,
                    keys=key,
                    forcings=eta[..., None] * jnp.concatenate([key, value], axis=-1),
                    beta=None,
                    decay=chunk_decay(jnp.where(advances > 0, tokens.alpha, 1.0), None, advances),
                )
                seen, said = _halves(chunk)
                query = solve_positive_definite(
                    lambda p: read_chunk(seen, p) + ridge * p, query, least=LEAST_RIDGE, iterations=self.iterations
                )
                delta_w, _ = end_of_chunk(chunk)
                return read_chunk(said, query), memories._replace(delta_w=((delta_w,),))

        return read_text(self, self.chunking, learn, x, state, at_boundary=at_boundary)


def _halves(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """The memory of the keys alone, which answers H q, and that of the values, which answers G q."""
    (h, g), (keys, values) = (jnp.split(u, 2, axis=-1) for u in (chunk.delta_w, chunk.forcings))
    return chunk._replace(delta_w=h, forcings=keys), chunk._replace(delta_w=g, forcings=values)
