"""Where every array lies on the mesh: two tables, from path to logical axis names and from these to mesh axes.

The names are kept here, keyed by path, and not on the parameters: a module then needs no mesh to be created, and
optimizer state, whose paths end in the path of the parameter it belongs to, is split the same way by the same row.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any
Names = tuple[str | None, ...]

# Logical axis -> mesh axes. An axis that is not named here is never split.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
}

# Path of a parameter (a regular expression for its end) -> the names of its axes. The first row that matches counts.
PARAMETER_AXES: tuple[tuple[str, Names], ...] = (
    (r"embed\.embedding", ("vocab", "embed")),
    (r"final_norm\.scale", ("embed",)),
    (r"blocks\.mixer_norm\.scale", ("layers", "embed")),
    (r"blocks\.mixer\.output\.kernel", ("layers", "heads", "embed")),
    (r"blocks\.mixer\.output_norm\.scale", ("layers", "head_dim")),
    (r"blocks\.mixer\.conv\.kernel", ("layers", "taps", "embed")),
    (r"blocks\.mixer\.(query|key|value|(eta|alpha|mu)\.linear)\.kernel", ("layers", "embed", "heads")),
    (r"blocks\.mixer\.\w+_read", ("layers", "heads", "head_dim")),
    (r"blocks\.mixer\.(\w+_bias|\w+\.linear\.bias)", ("layers", "heads")),
    (r"blocks\.mixer\.memory_gates", ("layers", "heads", "memories")),
    (r"blocks\.mixer\.memories\.\d+\.layers\.0", ("layers", "heads", "embed", "memory_hidden")),
    (r"blocks\.mixer\.memories\.\d+\.layers\.\d+", ("layers", "heads", "memories", "memory_hidden", "embed")),
    (r"blocks\.cms\.levels\.\d+\.norm\.scale", ("layers", "embed")),
    (r"blocks\.cms\.levels\.\d+\.(gate|up)\.kernel", ("layers", "embed", "hidden")),
    (r"blocks\.cms\.levels\.\d+\.down\.kernel", ("layers", "hidden", "embed")),
    (r"blocks\.cms\.mixture", ("layers", "levels")),
    (r"cms_log_rate", ("levels",)),
)

# The same for the state that a model carries from call to call.
STATE_AXES: tuple[tuple[str, Names], ...] = (
    (r"keys|values", ("layers", "batch", "context", "heads", "head_dim")),
    (r"conv", ("layers", "batch", "taps", "channels")),
    (r"(change|momentum|boundary)\.\d+\.0", ("layers", "batch", "heads", "head_dim", "memory_hidden")),
    (r"(change|momentum|boundary)\.\d+\.\d+", ("layers", "batch", "heads", "memories", "memory_hidden", "head_dim")),
    (r"past(\.key|\.query)?", ("layers", "batch", "heads", "time", "head_dim")),  # `path_name` cuts past.value
    (r"past\.(eta|alpha|mu)", ("layers", "batch", "heads", "time")),
    (r"past\.valid", ("layers", "time")),
    (r"position", ("layers",)),
)


def path_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf of a pytree, keys joined by dots: ``blocks.mixer.query.kernel``."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")  # the array inside an nnx.Variable


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """All leaves of a pytree by `path_name`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def logical_axes(path: str, table: tuple[tuple[str, Names], ...] = PARAMETER_AXES) -> Names | None:
    """Names of the axes of the array at `path` (a `path_name`), or None where no row of the table matches."""
    return next((names for pattern, names in table if re.search(rf"(^|\.)({pattern})$", path)), None)


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
