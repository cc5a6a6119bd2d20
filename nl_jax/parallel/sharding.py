"""Where every array lies on the mesh: two tables, from path to logical axis names and from these to mesh axes.

The names are kept by path (`nl_jax.parameter_axes`), not on the parameters: a module then needs no mesh, and optimizer
state, whose paths end in the path of the parameter it belongs to, is split the same way by the same row.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nl_jax.parameter_axes import PARAMETER_AXES, Names, logical_axes
from nl_jax.trees import named_leaves, path_name

PyTree = Any

__all__ = [
    "PARAMETER_AXES",
    "batch_sharding",
    "logical_axes",
    "named_leaves",
    "parameter_shardings",
    "path_name",
    "state_shardings",
]

# Logical axis -> mesh axes. An axis that is not named here is never split.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
}

# As `PARAMETER_AXES`, for the state that a model carries from call to call.
STATE_AXES: tuple[tuple[str, Names], ...] = (
    (r"keys|values", ("layers", "batch", "context", "heads", "head_dim")),
    (r"conv", ("layers", "batch", "taps", "channels")),
    (r"(delta_w|momentum|delta_w_at_boundary)\.\d+\.0", ("layers", "batch", "heads", "head_dim", "memory_hidden")),
    (
        r"(delta_w|momentum|delta_w_at_boundary)\.\d+\.\d+",
        ("layers", "batch", "heads", "memories", "memory_hidden", "head_dim"),
    ),
    (r"past(\.key|\.query)?", ("layers", "batch", "heads", "time", "head_dim")),  # `path_name` cuts past.value
    (r"past\.(eta|alpha|mu)", ("layers", "batch", "heads", "time")),
    (r"past\.valid", ("layers", None, None, "time")),
    (r"position", ("layers",)),
)


def parameter_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings for a model's parameters, for optimizer state, or for a whole `TrainState`.

    Args:
        mesh: a mesh from `parse_mesh`.
        tree: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A pytree of `NamedSharding` of the same structure. An axis whose size its mesh axes do not divide is not split;
        a leaf without a row in the table (step counters, say) is held whole by every device.
    """
    return _shardings(mesh, tree, PARAMETER_AXES)


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """Shardings for the state that a model carries, as `parameter_shardings` for its parameters."""
    return _shardings(mesh, state, STATE_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch ``[B, ...]``: sequences split over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES["batch"]))


def _shardings(mesh: Mesh, tree: PyTree, table: tuple[tuple[str, Names], ...]) -> PyTree:
    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = logical_axes(path_name(path), table) or ()
        if len(names) != len(leaf.shape):  # a reduced moment, or nothing known about it
            names = ()
        return NamedSharding(mesh, PartitionSpec(*map(mesh_axes, names, leaf.shape)))

    def mesh_axes(name: str | None, size: int) -> tuple[str, ...] | None:
        axes = MESH_AXES.get(name or "")
        split = 1
        for axis in axes or ():
            split *= mesh.shape[axis]
        return axes if split > 1 and size % split == 0 else None

    return jax.tree_util.tree_map_with_path(sharding, tree)
