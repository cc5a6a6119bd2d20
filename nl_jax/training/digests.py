"""Digests of what a checkpoint holds, by which a byte that changed on the disk is noticed when it is read.

Orbax checks the index of a checkpoint and not the arrays: one changed bit there gives other parameters, without an
error. The digest of an array is a sum of hashes of its elements' bits and places. It is computed where the array lies,
so nothing is copied, and does not depend on the mesh that splits it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from nl_jax.trees import PyTree, named_leaves

Digests = dict[str, Any]


def digests_of(items: Mapping[str, PyTree], jsons: Mapping[str, Any]) -> Digests:
    """Digests of pytrees of arrays, by name and path, and of contents that JSON can hold, by name.

    A change of one element of an array always changes its digest; other changes do so but for one in 2^32. The result
    can be written as JSON.
    """
    leaves = {name: named_leaves(tree) for name, tree in items.items()}
    # one after the other: many programs under way that exchange sums can wait for each other's threads for ever (CPU)
    arrays = {
        name: {path: f"{leaf.dtype}:{int(_bit_sum(leaf)):08x}" for path, leaf in own.items()}
        for name, own in leaves.items()
    }
    return {**arrays, **{name: _digest_of_json(content) for name, content in jsons.items()}}


def check_digests(saved: Digests, items: Mapping[str, PyTree], jsons: Mapping[str, Any]) -> None:
    """Raises `ValueError` if what was restored has other digests than what was saved. All items must have been saved.

    Arrays that were restored with another dtype are not compared.
    """
    for name, found in digests_of(items, jsons).items():
        if isinstance(found, str):
            if found != saved[name]:
                raise ValueError(f"corrupted: {name} is not what was saved")
            continue
        for path, digest in found.items():
            known = saved[name][path]
            if digest != known and digest.partition(":")[0] == known.partition(":")[0]:
                raise ValueError(f"corrupted: array {path} of {name} is not what was saved")


def _digest_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@jax.jit  # for each array by itself: one of a shape that was seen before compiles nothing
def _bit_sum(x: Array) -> UInt32[Array, ""]:
    """Sum modulo 2^32 of a hash of each element's bits and place, which differs for different bits at one place."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # one more axis for types of 8 bytes
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_hash(bits ^ _hash(place)), dtype=jnp.uint32)


def _hash(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3: one to one, and every bit of the result depends on every bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
