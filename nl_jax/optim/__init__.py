"""Optax transformations: optimizers as memories of gradients.

All factories except `multi_frequency` and `clip_by_norm` return a `bounded` transformation. With
``optax.inject_hyperparams``, name arguments that are functions or integers in ``static_args``, as in optax.
"""

from nl_jax.optim.bounded import bounded
from nl_jax.optim.classical_memories import (
    adagrad_memories,
    adam_memories,
    momentum_memories,
    muon_memories,
    rmsprop_memories,
)
from nl_jax.optim.clip import clip_by_norm, smooth_norm
from nl_jax.optim.deep_momentum import deep_momentum, scale_by_deep_momentum
from nl_jax.optim.delta_momentum import delta_momentum, scale_by_delta_momentum
from nl_jax.optim.dgd import DeltaDense, delta_matmul, dgd, half_l2
from nl_jax.optim.feature_momentum import feature_momentum, polynomial_features
from nl_jax.optim.generalized_gradient_descent import generalized_gradient_descent
from nl_jax.optim.generalized_momentum import GradientContext, Memory, generalized_momentum
from nl_jax.optim.m3 import m3, scale_by_m3
from nl_jax.optim.matrices import Role, describe_matrices, hidden_matrices, matrix_dimensions, parameter_roles
from nl_jax.optim.multi_frequency import multi_frequency, schedule_of_updates
from nl_jax.optim.newton_schulz import newton_schulz
from nl_jax.optim.preconditioned_momentum import (
    identity_preconditioner,
    orthogonality_preconditioner,
    preconditioned_momentum,
)
from nl_jax.optim.solvers import conjugate_gradient, gradient_descent, newton

__all__ = [
    "DeltaDense",
    "GradientContext",
    "Memory",
    "Role",
    "adagrad_memories",
    "adam_memories",
    "bounded",
    "clip_by_norm",
    "conjugate_gradient",
    "deep_momentum",
    "delta_matmul",
    "delta_momentum",
    "describe_matrices",
    "dgd",
    "feature_momentum",
    "generalized_gradient_descent",
    "generalized_momentum",
    "gradient_descent",
    "half_l2",
    "hidden_matrices",
    "identity_preconditioner",
    "m3",
    "matrix_dimensions",
    "momentum_memories",
    "multi_frequency",
    "muon_memories",
    "newton",
    "newton_schulz",
    "orthogonality_preconditioner",
    "parameter_roles",
    "polynomial_features",
    "preconditioned_momentum",
    "rmsprop_memories",
    "scale_by_deep_momentum",
    "scale_by_delta_momentum",
    "scale_by_m3",
    "schedule_of_updates",
    "smooth_norm",
]
