"""Optax transformations: optimizers as memories of gradients."""

from nl_jax.optim.bounded import bounded
from nl_jax.optim.delta_momentum import delta_momentum, scale_by_delta_momentum
from nl_jax.optim.dgd import DeltaDense, delta_matmul, dgd, half_l2
from nl_jax.optim.m3 import hidden_matrices, m3, scale_by_m3
from nl_jax.optim.multi_frequency import multi_frequency
from nl_jax.optim.newton_schulz import newton_schulz

__all__ = [
    "DeltaDense",
    "bounded",
    "delta_matmul",
    "delta_momentum",
    "dgd",
    "half_l2",
    "hidden_matrices",
    "m3",
    "multi_frequency",
    "newton_schulz",
    "scale_by_delta_momentum",
    "scale_by_m3",
]
