"""Where activations lie: constraints by the names of their axes, from the table that parameters are split by.

Without them XLA's partitioner chooses, and holds on each device what should be split over the batch: the larger the
mesh, the more of it.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from nl_jax.parallel.sharding import mesh_axes


def constrain(x: Array, *names: str | None) -> Array:
    """x, split over the mesh by the names of its axes; unchanged where no mesh is set (``jax.set_mesh``).

    Args:
        x: an array of any rank.
        names: a logical name for each axis, such as "batch" or "heads"; None for one that is not split.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = PartitionSpec(*(mesh_axes(mesh, name, size) for name, size in zip(names, x.shape, strict=True)))
    return jax.lax.with_sharding_constraint(x, spec)
