"""Sharding constraints for activations, by the names of their axes and the table that shards parameters.

Without a constraint XLA's partitioner chooses. It then keeps whole on every device what should be split over the batch,
so that the memory of a device grows with the mesh.
"""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from nl_jax.parallel.mesh import own_mesh
from nl_jax.parallel.sharding import gathered_shardings, mesh_axes
from nl_jax.trees import PyTree


def constrain(x: Array, *names: str | None) -> Array:
    """Splits x over the mesh that is set (``jax.set_mesh``) by the names of its axes.

    Returns x unchanged if no mesh is set, or one that `parse_mesh` did not make: other meshes have other axes, and the
    partitioner then decides.

    Args:
        x: an array of any rank.
        names: the logical name of each axis, such as "batch" or "heads", or None for an axis that is not split.
    """
    mesh = own_mesh()
    if mesh is None:
        return x
    axes = (mesh_axes(mesh, name, size) for name, size in zip(names, x.shape, strict=True))
    # where an axis is manual, the array is already one device's share of it
    spec = PartitionSpec(*(None if set(split or ()) & set(mesh.manual_axes) else split for split in axes))
    return jax.lax.with_sharding_constraint(x, spec)


def gather_parameters(model: PyTree) -> PyTree:
    """Parameters that ``fsdp`` no longer splits, under a mesh as for `constrain`; their gradients are split again.

    A program that uses a parameter once gathers it there. One that uses it in every step of a loop, as a text that is
    read chunk by chunk, would gather it in each.
    """
    mesh = own_mesh()
    return model if mesh is None else jax.lax.with_sharding_constraint(model, gathered_shardings(mesh, model))
