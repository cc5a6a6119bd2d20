"""The sharding of every array, by two tables: from paths to logical axis names, and from these to mesh axes.

The names are stored by path (`nl_jax.parameter_axes`), not on the parameters. So a module needs no mesh, and the row of
a parameter also applies to its optimizer state, whose paths end in the path of the parameter.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nl_jax.errors import InputError
from nl_jax.parameter_axes import PARAMETER_AXES, Names, logical_axes
from nl_jax.trees import named_leaves, path_name

PyTree = Any

__all__ = [
    "PARAMETER_AXES",
    "batch_parts",
    "batch_sharding",
    "logical_axes",
    "named_leaves",
    "parameter_shardings",
    "path_name",
    "state_shardings",
]

REPLICATED_AT_MOST = 2**20  # bytes of a leaf without a row in its table

# Logical axis -> mesh axes. An axis without an entry is never split.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
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
    (r"past(\.key|\.query)?", ("layers", "batch", "heads", "window", "head_dim")),  # "past" is past.value
    (r"past\.(eta|alpha|mu)", ("layers", "batch", "heads", "window")),
    (r"past\.valid", ("layers", None, None, "window")),
    (r"position", ("layers",)),
    (r"excess\.\d+", ("layers", "batch", "heads", "memories")),
    (r"hidden|cell", ("layers", "batch", "channels")),
)


def parameter_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings of a model's parameters, of optimizer state, or of a whole `TrainState`.

    Args:
        mesh: a mesh from `parse_mesh`.
        tree: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A pytree of `NamedSharding` with the same structure. An axis is not split if the size of its mesh axes does not
        divide its size; ``fsdp`` then splits the largest other axis that it divides, if any, but not that of layers. A
        small leaf without a row in the table, such as a step counter, is replicated on every device.

    Raises:
        InputError: a leaf of more than 1 MiB has no row, or another number of axes, and the mesh splits parameters.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import parameter_shardings
        >>> mesh = jax.sharding.AbstractMesh((1, 2, 1, 1), ("data", "fsdp", "tensor", "sequence"))
        >>> table = jax.ShapeDtypeStruct((256, 64), "float32")
        >>> tuple(parameter_shardings(mesh, {"embed": {"embedding": table}})["embed"]["embedding"].spec)
        (None, 'fsdp')
    """
    return _shardings(mesh, tree, PARAMETER_AXES)


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """Shardings of the state that a model passes from call to call, as `parameter_shardings` of its parameters.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> from nl_jax.models import LanguageModel, named_config
        >>> from nl_jax.parallel import state_shardings
        >>> mesh = jax.sharding.AbstractMesh((2, 1, 1, 1), ("data", "fsdp", "tensor", "sequence"))
        >>> config = named_config("transformer", "tiny", num_layers=1)
        >>> state = jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)).init_state(4))
        >>> tuple(jax.tree.leaves(state_shardings(mesh, state))[0].spec)  # layers, batch, ...
        (None, ('data', 'fsdp'), None, None, None)
    """
    return _shardings(mesh, state, STATE_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its sequences are split over ``data`` and ``fsdp``, their tokens over ``sequence``.

    A batch is ``[B, ...]``, or ``[B, T, ...]`` on a mesh that splits sequences.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import batch_sharding, parse_mesh
        >>> tuple(batch_sharding(parse_mesh("data:1", jax.devices()[:1])).spec)  # of the first axis
        (('data', 'fsdp'),)
    """
    time = (MESH_AXES["time"],) if mesh.shape.get("sequence", 1) > 1 else ()
    return NamedSharding(mesh, PartitionSpec(MESH_AXES["batch"], *time))


def gathered_shardings(mesh: Any, tree: PyTree) -> PyTree:
    """`parameter_shardings` as ``PartitionSpec``, without the axis ``fsdp``."""

    def gathered(sharding: NamedSharding) -> PartitionSpec:
        return PartitionSpec(*(None if "fsdp" in (axes or ()) else axes for axes in sharding.spec))

    return jax.tree.map(gathered, parameter_shardings(mesh, tree))


def batch_parts(mesh: Mesh) -> int:
    """The number of parts into which `batch_sharding` splits a batch.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import batch_parts
        >>> mesh = jax.sharding.AbstractMesh((2, 4, 2, 1), ("data", "fsdp", "tensor", "sequence"))
        >>> batch_parts(mesh)  # "tensor" splits no batch
        8
    """
    return math.prod(mesh.shape[axis] for axis in MESH_AXES["batch"])


def mesh_axes(mesh: Any, name: str | None, size: int) -> tuple[str, ...] | None:
    """The mesh axes that split an axis with this logical name and size; None where they do not divide it."""
    axes = MESH_AXES.get(name or "")
    split = math.prod(mesh.shape[axis] for axis in axes or ())
    return axes if split > 1 and size % split == 0 else None


def _shardings(mesh: Mesh, tree: PyTree, table: tuple[tuple[str, Names], ...]) -> PyTree:
    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = logical_axes(path_name(path), table)
        if names is None or len(names) != len(leaf.shape):  # an unknown leaf, or a reduced moment
            _check_small(mesh, path, leaf, names)
            return NamedSharding(mesh, PartitionSpec())
        axes = [mesh_axes(mesh, name, size) for name, size in zip(names, leaf.shape, strict=True)]
        if table is PARAMETER_AXES:
            _split_another(mesh, names, leaf.shape, axes)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _split_another(mesh: Mesh, names: Names, shape: tuple[int, ...], axes: list[tuple[str, ...] | None]) -> None:
    """Splits the largest axis that is whole over ``fsdp``, if that did not divide the axis which it should split."""
    size = mesh.shape["fsdp"]
    if size == 1 or ("fsdp",) in axes or not any("fsdp" in MESH_AXES.get(name or "", ()) for name in names):
        return
    # a scan takes one layer at a time, so that a stack which is split over layers would be gathered whole
    fit = [i for i, name in enumerate(names) if axes[i] is None and name != "layers" and shape[i] % size == 0]
    if fit:
        axes[max(fit, key=lambda i: shape[i])] = ("fsdp",)


def _check_small(mesh: Mesh, path: tuple[Any, ...], leaf: Any, names: Names | None) -> None:
    """Raises `InputError` for a large leaf that every device of the mesh would hold whole."""
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    if size > REPLICATED_AT_MOST and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        found = "no row" if names is None else f"a row of {len(names)} axes for an array of {len(leaf.shape)}"
        raise InputError(
            f"{path_name(path)}: {size / 2**20:,.1f} MiB would be whole on every device; found {found} in the table of "
            "sharding, expected one that names its axes (nl_jax.parameter_axes)"
        )
