"""The cost of a program: operations from its trace and in closed form, what it moves, and the time that this allows."""

from nl_jax.costs.closed_form import forward_flops
from nl_jax.costs.compiled import Collective, Traffic, traffic
from nl_jax.costs.flops import Flops, count_flops
from nl_jax.costs.roofline import CHIPS, Chip, Roofline, roofline

__all__ = [
    "CHIPS",
    "Chip",
    "Collective",
    "Flops",
    "Roofline",
    "Traffic",
    "count_flops",
    "forward_flops",
    "roofline",
    "traffic",
]
