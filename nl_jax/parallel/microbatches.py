"""Splits a batch into microbatches within each device's share, so that no sequence moves to another device."""

from typing import Any

import jax
from jaxtyping import Array

from nl_jax.parallel.activations import constrain
from nl_jax.parallel.mesh import own_mesh
from nl_jax.parallel.sharding import batch_parts

PyTree = Any


def split_batch(batch: PyTree, count: int) -> PyTree:
    """The microbatches of a batch: arrays ``[B, ...]`` become ``[count, B / count, ...]``.

    On the mesh that is set (``jax.set_mesh``) each microbatch has equally many sequences of every device's share, and
    lies where they lie. A mesh that `parse_mesh` did not make is not considered.

    Raises:
        ValueError: if the microbatches cannot be equal on all devices.
    """
    mesh = own_mesh()
    shares = 1 if mesh is None else batch_parts(mesh)

    def split(x: Array) -> Array:
        if len(x) % (shares * count):
            raise ValueError(f"batch of {len(x)}: expected a multiple of {shares * count}, {count} on each of {shares}")
        parts = x.reshape(shares, count, len(x) // (shares * count), *x.shape[1:]).swapaxes(0, 1)
        names = (None,) * (x.ndim - 1)
        return constrain(parts.reshape(count, len(x) // count, *x.shape[1:]), None, "batch", *names)

    return jax.tree.map(split, batch)
