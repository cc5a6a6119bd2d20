"""The device mesh, and the shardings of parameters, states and batches on it."""

from nl_jax.parallel.batches import local_rows, place_batch, place_local_rows, rows_of_part
from nl_jax.parallel.mesh import parse_mesh, use_cpu_cores
from nl_jax.parallel.sharding import batch_parts, batch_sharding, parameter_shardings, state_shardings
from nl_jax.parallel.topology import chip_of, topology_devices

__all__ = [
    "batch_parts",
    "batch_sharding",
    "chip_of",
    "local_rows",
    "parameter_shardings",
    "parse_mesh",
    "place_batch",
    "place_local_rows",
    "rows_of_part",
    "state_shardings",
    "topology_devices",
    "use_cpu_cores",
]
