"""One text split over devices: each reads its share of the tokens, and hands its memories to the next.

A layer of a recurrent model reads a text from left to right, so the devices of one text cannot work on the same layer
at the same time. They work as a pipeline: while device s reads its tokens with layer l, device s - 1 is a layer ahead.
A device keeps the activations of its own tokens only.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from nl_jax.parallel.mesh import AXES
from nl_jax.parallel.sharding import MESH_AXES

AXIS = "sequence"
FULL_PIPELINE = 4  # steps of work for each step of waiting, from which smaller batches would not pay

Layers = TypeVar("Layers")


def shards_of(time: int) -> int:
    """Over how many devices a text of this length is split on the mesh that is set; 1 if they do not divide it."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES or set(mesh.axis_types) != {jax.sharding.AxisType.Auto}:
        return 1
    return mesh.shape[AXIS] if time and time % mesh.shape[AXIS] == 0 else 1


def over_sequence(
    read: Callable[[Layers, Array, Any], tuple[Array, Any]],
    layers: Layers,
    x: Float[Array, "batch time width"],
    states: Any,
) -> tuple[Float[Array, "batch time width"], Any]:
    """Reads x with one layer after the other, its tokens split over the mesh axis ``sequence``.

    Equals a scan over the layers, up to rounding. With L layers, S devices of a text and the batch cut in M parts, the
    pipeline takes L M + S - 1 steps, and each device works in L M of them. The backward pass keeps the input and the
    incoming state of each step, and computes the rest again.

    Args:
      read: ``y, state = read(layer, x, state)``; a layer may see the tokens before its own only through the state.
      layers: a pytree whose leaves are stacked over layers.
      x: the tokens; `shards_of` their number is above 1.
      states: before the first token, stacked over layers. A leaf has the batch's axis after that, or none.

    Returns:
      The output of the last layer, and the states after the last token.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    shards, batch = mesh.shape[AXIS], len(x)
    depth = len(jax.tree.leaves(states)[0])
    parts = _parts(batch, depth, shards, mesh)
    has_batch = [u.ndim > 1 and u.shape[1] == batch for u in jax.tree.leaves(states)]

    def part_of(states, layer, part):
        """The state of one layer for one part of the batch."""
        leaves = [_at(u, layer) for u in jax.tree.leaves(states)]
        leaves = [_at(_cut(u, parts), part, 1) if cut else u for u, cut in zip(leaves, has_batch, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(states), leaves)

    def whole(u, cut):
        """Every layer's state for the whole batch, from one after each step of work."""
        u = u.reshape(depth, parts, *u.shape[1:])
        return jnp.moveaxis(u, 1, 2).reshape(depth, batch, *u.shape[3:]) if cut else u[:, -1]

    def shard(index, layers, x, states):
        index, layers, states = jax.tree.map(lambda u: u[0], (index, layers, states))

        @jax.checkpoint
        def work(layers, states, x, handed, step):
            active = (step >= 0) & (step < depth * parts)
            layer, part = jnp.divmod(jnp.clip(step, 0, depth * parts - 1), parts)
            start = part_of(states, layer, part)
            # without work it reads a text's start, so that whatever is thrown away is finite
            before = jax.tree.map(lambda h, s: jnp.where(active & (index > 0), h, s), handed, start)
            y, after = read(jax.tree.map(lambda w: _at(w, layer), layers), x, before)
            return jnp.where(active, y, x), after

        def step(carry, time):
            x, handed = carry
            part = jnp.clip(time - index, 0, depth * parts - 1) % parts
            y, after = work(layers, states, _at(x, part, 1), handed, time - index)
            x = jax.lax.dynamic_update_index_in_dim(x, y, part, 1)
            neighbours = [(s, s + 1) for s in range(shards - 1)]
            return (x, jax.lax.ppermute(after, AXIS, neighbours)), after

        times = jnp.arange(depth * parts + shards - 1)
        (y, _), after = jax.lax.scan(step, (_cut(x, parts), part_of(states, 0, 0)), times)
        # the last device's work begins after shards - 1 steps
        leaves = [whole(u[shards - 1 :], cut) for u, cut in zip(jax.tree.leaves(after), has_batch, strict=True)]
        after = jax.tree.unflatten(jax.tree.structure(after), [u[None] for u in leaves])
        return y.reshape(x.shape), after

    # What all devices read has an axis for them: its gradients are then summed outside, where the partitioner does it.
    # XLA on CPU cannot compile the sum that shard_map makes of bfloat16.
    own = jax.tree.map(lambda u: jnp.broadcast_to(u, (shards, *u.shape)), (layers, states))
    split, tokens = PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    y, states = jax.shard_map(
        shard,
        in_specs=(split, split, tokens, split),
        out_specs=(tokens, split),
        axis_names={AXIS},
        check_vma=False,
    )(jnp.arange(shards), own[0], x, own[1])
    return y, jax.tree.map(lambda u: u[-1], states)


def _parts(batch: int, depth: int, shards: int, mesh: Any) -> int:
    """In how many parts the batch of a device is cut: as few as keep its devices at work most of the time."""
    split = 1
    for axis in MESH_AXES["batch"]:
        split *= mesh.shape[axis]
    local = batch // split if batch % split == 0 else 1
    counts = [n for n in range(1, local + 1) if local % n == 0]
    return next((n for n in counts if n * depth >= FULL_PIPELINE * (shards - 1)), local)


def _cut(u: Array, parts: int) -> Array:
    """[batch / parts, parts, ...]: part i has every ``parts``-th sequence, so that devices keep theirs."""
    return u.reshape(-1, parts, *u.shape[1:])


def _at(u: Array, index: Any, axis: int = 0) -> Array:
    return jax.lax.dynamic_index_in_dim(u, index, axis, keepdims=False)
