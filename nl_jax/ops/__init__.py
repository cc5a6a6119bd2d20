"""What XLA needs, behind mathematical names: products, decay matrices, linear systems, attention in blocks."""

from nl_jax.ops.attention import blockwise_attention
from nl_jax.ops.causal_attention import causal_attention
from nl_jax.ops.chunk_scan import chunk_scan
from nl_jax.ops.conjugate_gradients import solve_positive_definite
from nl_jax.ops.decay import decay_matrix, shift
from nl_jax.ops.definite import solve_definite
from nl_jax.ops.matrix_scan import ChunkMaps, matrix_scan
from nl_jax.ops.products import (
    block_squared_lengths,
    gram,
    inner_products,
    matmul,
    narrow_like,
    outer_products,
    over_leading,
    scale_blocks,
    squared_lengths,
    weighted_outer_products,
    weighted_product,
    widen,
)
from nl_jax.ops.splash_attention import fits_splash, splash_attention
from nl_jax.ops.transposable import apply_linear
from nl_jax.ops.triangular import solve_unit_lower

__all__ = [
    "ChunkMaps",
    "apply_linear",
    "block_squared_lengths",
    "blockwise_attention",
    "causal_attention",
    "chunk_scan",
    "decay_matrix",
    "fits_splash",
    "gram",
    "inner_products",
    "matmul",
    "matrix_scan",
    "narrow_like",
    "outer_products",
    "over_leading",
    "scale_blocks",
    "shift",
    "solve_definite",
    "solve_positive_definite",
    "solve_unit_lower",
    "splash_attention",
    "squared_lengths",
    "weighted_outer_products",
    "weighted_product",
    "widen",
]
