"""The device mesh, and the shardings of parameters, states and batches on it."""

from nl_jax.parallel.mesh import parse_mesh, use_cpu_cores
from nl_jax.parallel.sharding import batch_sharding, parameter_shardings, state_shardings

__all__ = [
    "batch_sharding",
    "parameter_shardings",
    "parse_mesh",
    "state_shardings",
    "use_cpu_cores",
]
