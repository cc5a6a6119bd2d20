"""One text split over devices, each of which keeps the activations of its own tokens only.

A layer with memories reads a text from left to right, so the devices of one text cannot work on the same layer at the
same time. They work as a pipeline, `over_sequence`: while device s reads its tokens with layer l, device s - 1 is a
layer ahead, and hands its memories on. Attention learns nothing from left to right: in `over_sequence_together` all
devices work on the same layer and fetch the keys and values before their own tokens from each other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from nl_jax.parallel.mesh import own_mesh
from nl_jax.parallel.sharding import batch_parts

AXIS = "sequence"
FULL_PIPELINE = 4  # steps of work for each step of waiting, from which smaller batches would not pay

Layers = TypeVar("Layers")


def shards_of(time: int) -> int:
    """Over how many devices a text of this length is split on the mesh that is set; 1 if they do not divide it."""
    mesh = own_mesh()
    if mesh is None or mesh.manual_axes:  # a manual axis: this device has its share of the text already
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

    tokens = PartitionSpec(None, AXIS)
    y, states = _on_shards(shard, shards, layers, x, states, (tokens, PartitionSpec(AXIS)))
    return y, jax.tree.map(lambda u: u[-1], states)


@dataclass(frozen=True)
class Shard:
    """Which tokens of a text a device has; for use inside of `over_sequence_together`."""

    index: Int[Array, ""]
    count: int

    def before(
        self, start: Float[Array, "batch before ..."], own: Float[Array, "batch time ..."]
    ) -> Float[Array, "batch before ..."]:
        """What comes before a device's own tokens, as much as ``start``, which comes before the whole text."""
        length, time = start.shape[1], own.shape[1]
        reach = min(self.count - 1, -(-length // time))
        pieces = [
            jax.lax.ppermute(own, AXIS, [(s, s + far) for s in range(self.count - far)]) for far in range(reach, 0, -1)
        ]
        fetched = jnp.concatenate([jnp.zeros_like(start, own.dtype), *pieces], axis=1)[:, -length:]
        count = jnp.minimum(self.index * time, length)  # of what was fetched, since the first devices have few before
        kept = jnp.concatenate([start.astype(own.dtype), jnp.zeros_like(start, own.dtype)], axis=1)
        kept = jax.lax.dynamic_slice_in_dim(kept, count, length, axis=1)
        is_fetched = jnp.arange(length) >= length - count
        return jnp.where(is_fetched.reshape(-1, *[1] * (own.ndim - 2)), fetched, kept)


def over_sequence_together(
    read: Callable[[Layers, Array, Any, Shard], tuple[Array, Any, Any]],
    layers: Layers,
    x: Float[Array, "batch time width"],
    states: Any,
) -> tuple[Float[Array, "batch time width"], Any, Any]:
    """Reads x as `over_sequence` does, with all devices on the same layer.

    The backward pass keeps the input of each layer, and computes the rest again.

    Args:
      read: ``y, own, last = read(layer, x, state, shard)``; ``own`` has the device's tokens in axis 1 of each leaf.
      layers, x: as for `over_sequence`.
      states: before the first token, stacked over layers, or None.

    Returns:
      The output of the last layer, ``own`` of all devices, [layers, batch, time, ...], and ``last`` of the last device.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    shards = mesh.shape[AXIS]

    def shard(index, layers, x, states):
        index, layers, states = jax.tree.map(lambda u: u[0], (index, layers, states))

        @jax.checkpoint
        def body(x, inputs):
            layer, state, index = inputs
            y, own, last = read(layer, x, state, Shard(index, shards))
            return y, (own, last)

        # an index for each layer: JAX computes what depends on constants of a loop ahead, here the masks of all tiles
        indices = jnp.full(len(jax.tree.leaves(layers)[0]), index)
        x, (own, last) = jax.lax.scan(body, x, (layers, states, indices))
        return x, own, jax.tree.map(lambda u: u[None], last)

    specs = PartitionSpec(None, AXIS), PartitionSpec(None, None, AXIS), PartitionSpec(AXIS)
    y, own, last = _on_shards(shard, shards, layers, x, states, specs)
    return y, own, jax.tree.map(lambda u: u[-1], last)


def _on_shards(shard: Callable[..., Any], shards: int, layers: Any, x: Array, states: Any, out_specs: Any) -> Any:
    """``shard(index, layers, x, states)`` on each device of a text; all but x have a first axis of one device."""
    # With an axis for the devices the gradients of what they share are summed outside, by the partitioner: XLA on CPU
    # cannot compile the sum that shard_map would make of bfloat16.
    layers, states = jax.tree.map(lambda u: jnp.broadcast_to(u, (shards, *u.shape)), (layers, states))
    split = PartitionSpec(AXIS)
    return jax.shard_map(
        shard,
        in_specs=(split, split, PartitionSpec(None, AXIS), split),
        out_specs=out_specs,
        axis_names={AXIS},
        check_vma=False,
    )(jnp.arange(shards), layers, x, states)


def _parts(batch: int, depth: int, shards: int, mesh: Any) -> int:
    """In how many parts the batch of a device is cut: as few as keep its devices at work most of the time."""
    split = batch_parts(mesh)
    local = batch // split if batch % split == 0 else 1
    counts = [n for n in range(1, local + 1) if local % n == 0]
    return next((n for n in counts if n * depth >= FULL_PIPELINE * (shards - 1)), local)


def _cut(u: Array, parts: int) -> Array:
    """[batch / parts, parts, ...]: part i has every ``parts``-th sequence, so that devices keep theirs."""
    return u.reshape(-1, parts, *u.shape[1:])


def _at(u: Array, index: Any, axis: int = 0) -> Array:
    return jax.lax.dynamic_index_in_dim(u, index, axis, keepdims=False)
