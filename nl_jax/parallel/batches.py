"""Which rows of a batch a process holds, and batches in host memory as arrays that are split over the mesh."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from nl_jax.errors import InputError
from nl_jax.parallel.sharding import batch_parts, batch_sharding


def rows_of_part(mesh: Mesh, batch_size: int) -> int:
    """The number of rows in each of the parts into which the mesh splits a batch.

    Raises:
        InputError: if the mesh does not split ``batch_size`` evenly.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import parse_mesh, rows_of_part
        >>> rows_of_part(parse_mesh("data:1", jax.devices()[:1]), batch_size=8)
        8
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise InputError(f"batch_size={batch_size}: expected a multiple of {parts}, among which the mesh splits it")
    return batch_size // parts


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " b"]:
    """The rows of a global batch that this process' devices hold, in ascending order.

    They follow from the mesh and not from the index of the process: processes that split heads hold the same rows.

    Raises:
        InputError: if the mesh does not split ``batch_size`` evenly.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import local_rows, parse_mesh
        >>> local_rows(parse_mesh("data:1", jax.devices()[:1]), 4).tolist()  # the only process has all
        [0, 1, 2, 3]
    """
    size = rows_of_part(mesh, batch_size)
    return (_local_parts(mesh)[:, None] * size + np.arange(size)).ravel()


def place_local_rows(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, of which each process gives its own rows.

    Args:
        mesh: a mesh from `parse_mesh`.
        batch: arrays ``[b, ...]`` of the rows that `local_rows` names, in that order.

    Returns:
        Arrays ``[B, ...]``, split by `batch_sharding`.

    Examples:
        >>> import jax, numpy as np
        >>> from nl_jax.parallel import local_rows, parse_mesh, place_local_rows
        >>> mesh, batch = parse_mesh("data:1", jax.devices()[:1]), np.arange(8).reshape(4, 2)
        >>> mine = batch[local_rows(mesh, 4)]
        >>> bool((place_local_rows(mesh, {"inputs": mine})["inputs"] == batch).all())
        True
    """
    parts, sharding = _local_parts(mesh), batch_sharding(mesh)

    def place(local: np.ndarray) -> jax.Array:
        size = len(local) // len(parts)  # rows of a part

        def read(index: Any) -> np.ndarray:
            first = int(np.searchsorted(parts, (index[0].start or 0) // size)) * size
            return local[(slice(first, first + size), *index[1:])]

        return jax.make_array_from_callback((size * batch_parts(mesh), *local.shape[1:]), sharding, read)

    return {name: place(array) for name, array in batch.items()}


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch that every process has as a whole, split by `batch_sharding`, without communication.

    Examples:
        >>> import jax, numpy as np
        >>> from nl_jax.parallel import batch_sharding, parse_mesh, place_batch
        >>> mesh = parse_mesh("data:1", jax.devices()[:1])
        >>> inputs = place_batch(mesh, {"inputs": np.zeros((2, 3), np.int32)})["inputs"]
        >>> inputs.shape, inputs.sharding == batch_sharding(mesh)
        ((2, 3), True)
    """
    sharding = batch_sharding(mesh)

    def place(array: np.ndarray) -> jax.Array:
        def read(index: Any) -> np.ndarray:
            return array[index]

        return jax.make_array_from_callback(array.shape, sharding, read)

    return {name: place(np.asarray(array)) for name, array in batch.items()}


def _local_parts(mesh: Mesh) -> Int[np.ndarray, " k"]:
    """The parts that this process' devices hold, in ascending order."""
    by_row = NamedSharding(mesh, PartitionSpec(batch_sharding(mesh).spec[0]))
    places: Any = by_row.addressable_devices_indices_map((batch_parts(mesh),))
    return np.unique([(index[0].start or 0) for index in places.values()])
