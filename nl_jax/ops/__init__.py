"""What XLA needs, behind mathematical names: products, decay matrices, triangular systems, attention in blocks."""

from nl_jax.ops.attention import blockwise_attention
from nl_jax.ops.decay import decay_matrix, pad_first
from nl_jax.ops.products import inner_products, outer_products, over_leading
from nl_jax.ops.transposable import apply_linear
from nl_jax.ops.triangular import solve_unit_lower

__all__ = [
    "apply_linear",
    "blockwise_attention",
    "decay_matrix",
    "inner_products",
    "outer_products",
    "over_leading",
    "pad_first",
    "solve_unit_lower",
]
