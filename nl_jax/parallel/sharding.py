"""The sharding of every array, by two tables: from paths to logical axis names, and from these to mesh axes.

The names are stored by path (`nl_jax.parameter_axes`), not on the parameters. So a module needs no mesh, and the row of
a parameter also applies to its optimizer state, whose paths end in the path of the parameter.
"""

import math
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

# Logical axis -> mesh axes. An axis without an entry is never split.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
}

# The counterpart of `PARAMETER_AXES` for the state that a model passes from call to call.
STATE_AXES: tuple[tuple[str, Names], ...] = (
    (r"keys|values", ("layers", "batch", "context", "heads", "head_dim")),
    (r"conv", ("layers", "batch", "taps", "channels")),
    (r"(delta_w|momentum|delta_w_at_boundary)\.\d+\.0", ("layers", "batch", "heads", "head_dim", "memory_hidden")),
    (
        r"(delta_w|momentum|delta_w_at_boundary)\.\d+\.\d+",
        ("layers", "batch", "heads", "memories", "memory_hidden", "head_dim"),
    ),
    (r"past(\.key|\.query)?", ("layers", "batch", "heads", "time", "head_dim")),  # "past" is past.value
    (r"past\.(eta|alpha|mu)", ("layers", "batch", "heads", "time")),
    (r"past\.valid", ("layers", None, None, "time")),
    (r"position", ("layers",)),
)


def parameter_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings of a model's parameters, of optimizer state, or of a whole `TrainState`.

    Args:
        mesh: a mesh from `parse_mesh`.
        tree: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A pytree of `NamedSharding` with the same structure. An axis is not split if the size of its mesh axes does not
        divide its size. A leaf without a row in the table, such as a step counter, is replicated on every device.
    """
    return _shardings(mesh, tree, PARAMETER_AXES)


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """Shardings of the state that a model passes from call to call, as `parameter_shardings` of its parameters."""
    return _shardings(mesh, state, STATE_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch ``[B, ...]``: its sequences are split over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES["batch"]))


def mesh_axes(mesh: Any, name: str | None, size: int) -> tuple[str, ...] | None:
    """The mesh axes that split an axis with this logical name and size; None where they do not divide it."""
    axes = MESH_AXES.get(name or "")
    split = math.prod(mesh.shape[axis] for axis in axes or ())
    return axes if split > 1 and size % split == 0 else None


def _shardings(mesh: Mesh, tree: PyTree, table: tuple[tuple[str, Names], ...]) -> PyTree:
    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = logical_axes(path_name(path), table) or ()
        if len(names) != len(leaf.shape):  # a reduced moment, or an unknown leaf
            names = ()
        axes = (mesh_axes(mesh, name, size) for name, size in zip(names, leaf.shape, strict=False))
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(sharding, tree)
