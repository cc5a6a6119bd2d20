"""The cost of a program in floating-point operations, counted from its trace and computed in closed form."""

from nl_jax.costs.closed_form import forward_flops
from nl_jax.costs.flops import Flops, count_flops

__all__ = [
    "Flops",
    "count_flops",
    "forward_flops",
]
