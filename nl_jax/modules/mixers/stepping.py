"""How a mixer with memories steps through a text: state, subchunks, padding, windows and chunk boundaries.

A subchunk is what is learned at once in closed form. It has as many tokens as the smallest chunk, so that chunks of
every group end where subchunks end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nl_jax.memory import limit_cotangent, shrink
from nl_jax.modules.layers import remat_except_dots
from nl_jax.modules.mixers.all_chunks import LinearMemory
from nl_jax.modules.mixers.atlas_parts import orthogonal_update
from nl_jax.modules.mixers.chunk_kernel import ChunkMemory
from nl_jax.modules.mixers.parameters import Groups, MixerParameters, Projected
from nl_jax.ops import narrow_like


class MemoryState(NamedTuple):
    """What the memories have learned since the text began.

    All fields but ``position`` are in float32 (float64 with parameters in float64), whatever the parameters' type is.
    Sizes do not depend on the text's length.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> state = mixer("delta_net", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0)).init_state(1)
      >>> state.conv.shape, state.delta_w[0][0].shape, state.momentum, int(state.position)
      ((1, 3, 24), (1, 2, 4, 4), (), 0)
    """

    conv: Float[Array, "batch 3 channels"]  # last inputs of the convolution
    delta_w: Groups  # ΔW = W - W₀ after the last token, where W₀ is what retention pulls toward
    momentum: Groups  # S; empty without momentum
    # ΔW at each group's last chunk boundary; empty where nothing depends on it. Where updates are made orthogonal, it
    # is followed by what retention has left of it since.
    delta_w_at_boundary: Groups
    past: Projected | None  # the last window - 1 tokens; None without a window
    position: Int[Array, ""]  # tokens since the text began, modulo a large multiple of the chunk sizes
    # how much too large each group's answers were since its last boundary (``excess``); empty where none shrink by it
    excess: tuple[Float[Array, "batch heads *stack"], ...] = ()

    @property
    def memories(self) -> "Memories":
        """The part that goes from subchunk to subchunk."""
        return Memories(self.delta_w, self.momentum, self.delta_w_at_boundary, self.excess)


class Memories(NamedTuple):
    """The part of a ``MemoryState`` that goes from subchunk to subchunk.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> state = mixer("delta_net", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0)).init_state(1)
      >>> memories = state.memories
      >>> [layer.shape for group in memories.delta_w for layer in group]  # one group of one layer
      [(1, 2, 4, 4)]
    """

    delta_w: Groups
    momentum: Groups
    delta_w_at_boundary: Groups
    excess: tuple[Float[Array, "batch heads *stack"], ...] = ()


# (memories, tokens of a subchunk, 1 for those that advance the memories, whether every group's chunk starts with it)
# -> answers to all of the tokens, memories. The tokens include the ``window - 1`` before the subchunk, which were
# learned before: only their gradients count.
Learn = Callable[
    [Memories, Projected, Float[Array, "1 1 C"], bool], tuple[Float[Array, "batch heads C head_dim"], Memories]
]


@dataclass(frozen=True)
class Chunking:
    """When memories take gradients.

    Attributes:
      sizes: tokens from one boundary to the next, for each group of memories; the smallest must divide the others.
      window: number of tokens whose gradients make one update, the last one and those before it (Omega rule, Eq. 68).
      keeps_boundary: whether learning or reading depends on the weights at the last boundary.
      orthogonal_steps: Newton-Schulz iterations on the sum of a chunk's updates when the chunk ends; 0 leaves the sum
        as it is. Others need one group of memories, and ``keeps_boundary``.

    Raises:
      ValueError: for sizes that are not integers from 1, or of which the smallest does not divide the others, or a
        window below 1.
    """

    sizes: tuple[int, ...]
    window: int
    keeps_boundary: bool
    orthogonal_steps: int = 0

    def __post_init__(self):
        """Checks the sizes."""
        shown = self.sizes[0] if len(set(self.sizes)) == 1 else self.sizes
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in self.sizes)
        if not whole or min(self.sizes) < 1 or any(size % min(self.sizes) for size in self.sizes):
            raise ValueError(
                f"chunk_size={shown}: expected an integer of at least 1, or several that the smallest divides"
            )
        if self.window < 1:
            raise ValueError(f"window={self.window}: expected at least 1")

    @property
    def subchunk(self) -> int:
        """Tokens of a subchunk."""
        return min(self.sizes)

    @property
    def is_uniform(self) -> bool:
        """Whether every subchunk is a chunk of all groups."""
        return len(set(self.sizes)) == 1

    def at_boundary(self, position: Array, memories: Memories, *, due: Array | bool = True) -> Memories:
        """Ends the chunk of those groups whose chunk ends at ``position``, if ``due``: ΔW becomes the boundary's."""
        if not self.keeps_boundary:
            return memories
        if self.orthogonal_steps:
            return self._orthogonal(due & (position % self.subchunk == 0), memories)
        ends = [due & (position % size == 0) for size in self.sizes]
        memories = _shrunk(ends, memories)

        def of_group(end, delta_w, before):
            return jax.tree.map(lambda d, b: jnp.where(end, d, b), delta_w, before)

        delta_w_at_boundary = tuple(map(of_group, ends, memories.delta_w, memories.delta_w_at_boundary))
        return memories._replace(delta_w_at_boundary=delta_w_at_boundary)

    def end_chunk(self, memories: Memories) -> Memories:
        """Ends the chunk of every group, as ``at_boundary`` does, for chunks whose updates are not made orthogonal."""
        memories = _shrunk([True] * len(memories.delta_w), memories)
        return memories._replace(delta_w_at_boundary=memories.delta_w if self.keeps_boundary else ())

    def _orthogonal(self, ends: Array, memories: Memories) -> Memories:
        """Makes the sum of a chunk's updates orthogonal if the chunk ends."""
        (delta_w,), (before, left) = memories.delta_w, memories.delta_w_at_boundary

        def update(now, left):
            return left + orthogonal_update(now - left, self.orthogonal_steps)

        def at_end(delta_w, before, left):
            new = jax.tree.map(update, delta_w, left)
            return new, new, new

        new, *boundary = jax.lax.cond(ends, at_end, lambda *same: same, delta_w, before, left)
        return memories._replace(delta_w=(new,), delta_w_at_boundary=tuple(boundary))

    def wrap(self, position: Array) -> Array:
        """The position modulo a large multiple of the sizes; without that it would overflow in a text without end."""
        period = math.lcm(*self.sizes)
        return position % (period * max(1, 2**30 // period))


def _shrunk(ends: Sequence[Array | bool], memories: Memories) -> Memories:
    """Shrinks those groups whose chunk ends, by what was too large in it (``shrinkage.py``)."""
    if not memories.excess:
        return memories

    def of_group(end, delta_w, mean):
        return shrink(delta_w, end * mean)

    delta_w = tuple(map(of_group, ends, memories.delta_w, memories.excess))
    excess = tuple(mean - end * mean for end, mean in zip(ends, memories.excess, strict=True))
    return memories._replace(delta_w=delta_w, excess=excess)


def start_of_text(parameters: MixerParameters, chunking: Chunking, batch_size: int) -> MemoryState:
    """The state before the first token: every memory at its initial weights. No two arrays share a buffer."""
    weights, dtype, past = parameters.initial_weights(), parameters.state_dtype, chunking.window - 1

    def zeros():
        return jax.tree.map(lambda w: jnp.zeros((batch_size, *w.shape), dtype), weights)

    def delta_w():
        if parameters.pulls_to_initial or parameters.memories is None:
            return zeros()
        return jax.tree.map(lambda w: jnp.broadcast_to(w.astype(dtype), (batch_size, *w.shape)), weights)

    def no_past():
        heads = (batch_size, parameters.num_heads, past)
        key, value, query = (jnp.zeros((*heads, parameters.head_dim), dtype) for _ in range(3))
        eta, alpha, mu = (jnp.zeros(heads, dtype) for _ in range(3))
        return Projected(
            key, value, query, eta, alpha, None if parameters.mu is None else mu, jnp.zeros((1, 1, past), dtype)
        )

    return MemoryState(
        parameters.conv.init_state(batch_size).astype(dtype),
        delta_w(),
        () if parameters.mu is None else zeros(),
        (delta_w() if chunking.keeps_boundary else ()) + (delta_w() if chunking.orthogonal_steps else ()),
        no_past() if past else None,
        jnp.zeros((), jnp.int32),
        tuple(
            jnp.zeros((batch_size, *layers[-1].shape[:-2]), dtype)
            for memory, layers in zip(parameters.groups, weights, strict=True)
            if memory.rule.shrinkage
        ),
    )


def read_text(
    parameters: MixerParameters,
    chunking: Chunking,
    learn: Learn,
    x: Float[Array, "batch time width"],
    state: MemoryState | None,
    *,
    at_boundary: bool,
    kernel: LinearMemory | ChunkMemory | None = None,
) -> tuple[Float[Array, "batch time width"], MemoryState]:
    """Output of a mixer, and its state after the last token: projects, learns subchunk by subchunk, projects back.

    Any number of tokens in any number of calls gives the same outputs and state as one call, up to rounding. The state
    keeps its types; no tokens give no outputs, and the state as it was.

    Args:
      parameters: of the mixer.
      chunking: when its memories take gradients.
      learn: learns and answers one subchunk.
      x: the tokens.
      state: before them; None starts a text.
      at_boundary: the caller's promise that the state is at a boundary of all chunk sizes.
      kernel: the same as ``learn``, for all chunks at once; None where there is only XLA's scan over chunks.
    """
    at_boundary = at_boundary or state is None
    state = start_of_text(parameters, chunking, len(x)) if state is None else state
    if x.shape[1] == 0:
        return parameters.output(x), state
    projected, conv = remat_except_dots(parameters.project)(x, state.conv)
    y, new = step_through(chunking, learn, projected, state, at_boundary=at_boundary, kernel=kernel)
    new = jax.tree.map(lambda u, before: u.astype(before.dtype), new._replace(conv=conv), state)
    return parameters.project_back(y, x.dtype), new


def step_through(
    chunking: Chunking,
    learn: Learn,
    projected: Projected,
    state: MemoryState,
    *,
    at_boundary: bool,
    kernel: LinearMemory | ChunkMemory | None = None,
) -> tuple[Float[Array, "batch heads time head_dim"], MemoryState]:
    """Answers to the tokens, and the state after them but for its convolution. Arguments as for ``read_text``."""
    batch, heads, time, head_dim = projected.key.shape
    past, origin, wide = chunking.window - 1, state.position, projected.valid.dtype
    if isinstance(kernel, ChunkMemory) and at_boundary:
        found = _whole_chunks(chunking, learn, projected, state, kernel)
        if found is not None:
            return found
    if past:
        projected = jax.tree.map(lambda a, b: jnp.concatenate([a.astype(b.dtype), b], 2), state.past, projected)
    if at_boundary or time == 1:
        size, offset = min(chunking.subchunk, time), jnp.zeros((), jnp.int32)
        count = -(-time // size)
        padded = jax.tree.map(lambda u: _pad(u, count * size - time), projected)
    else:  # a first token inside a subchunk is put at its place there, so that subchunks end where chunks end
        size, offset = chunking.subchunk, origin % chunking.subchunk
        count = -(-(time + size - 1) // size)
        padded = jax.tree.map(lambda u: _place(u, past + count * size, offset), projected)
    backend = kernel.backend(state.delta_w[0][0], size) if isinstance(kernel, LinearMemory) and count > 1 else None
    if isinstance(kernel, LinearMemory) and backend is not None:
        y, after = kernel.read(padded, count, state.delta_w[0][0].astype(wide), backend)
        y = jax.lax.dynamic_slice_in_dim(y, offset, time, axis=2)
        return y, state._replace(delta_w=((after,),), position=chunking.wrap(origin + time))
    starts = origin - offset + size * jnp.arange(count)
    starts_at_boundary = at_boundary and chunking.is_uniform

    def body(memories, subchunk):
        tokens, start = subchunk
        if chunking.keeps_boundary:
            memories = limit_cotangent(memories)  # others are linear in their state and do not expand it
            if chunking.orthogonal_steps:
                pass  # the chunk before has left the weights at the boundary
            elif starts_at_boundary:  # of the first chunk, too, which has nothing to shrink by
                memories = chunking.end_chunk(memories)
            else:
                memories = chunking.at_boundary(start, memories, due=(start > origin) & (start <= origin + time))
        position = start + jnp.arange(size + past) - past
        advances = jnp.where(position >= jnp.maximum(start, origin), tokens.valid, 0.0) if past else tokens.valid
        y, memories = learn(memories, tokens, advances, starts_at_boundary)
        if chunking.orthogonal_steps:  # its updates change when the chunk ends, once for each subchunk
            memories = chunking.at_boundary(start + size, memories, due=start + size <= origin + time)
        return memories, narrow_like(y[:, :, past:], projected.key)

    memories = jax.tree.map(lambda w: w.astype(wide), state.memories)
    cut = jax.tree.map(lambda u: _cut(u, count, size, past), padded)
    if count == 1:
        memories, y = body(memories, (jax.tree.map(lambda u: u[0], cut), starts[0]))
    else:
        memories, y = jax.lax.scan(jax.checkpoint(body), memories, (cut, starts))
        y = jnp.moveaxis(y, 0, 2).reshape(batch, heads, count * size, head_dim)
    y = jax.lax.dynamic_slice_in_dim(y, offset, time, axis=2)
    if not chunking.orthogonal_steps:
        memories = chunking.at_boundary(origin + time, memories)
    last = jax.tree.map(lambda u: u[:, :, time:], projected) if past else None
    position = chunking.wrap(origin + time)
    return y, state._replace(**memories._asdict(), past=last, position=position)


def _whole_chunks(
    chunking: Chunking, learn: Learn, projected: Projected, state: MemoryState, kernel: ChunkMemory
) -> tuple[Float[Array, "batch heads time head_dim"], MemoryState] | None:
    """As `step_through` from a boundary on, whole chunks by a kernel; None where there are not two, or none fits."""
    size, time = chunking.subchunk, projected.key.shape[2]
    whole = time // size * size
    memories = jax.tree.map(lambda w: w.astype(projected.valid.dtype), state.memories)
    backend = kernel.backend(memories, projected.key.shape[-1], size) if whole > size else None
    if backend is None:
        return None
    y, memories = kernel.read(
        jax.tree.map(lambda u: u[:, :, :whole], projected), size, memories, chunking.end_chunk, backend
    )
    state = state._replace(**memories._asdict(), position=chunking.wrap(state.position + whole))
    if whole < time:
        rest = jax.tree.map(lambda u: u[:, :, whole:], projected)
        last, state = step_through(chunking, learn, rest, state, at_boundary=True)
        y = jnp.concatenate([y, last], axis=2)
    return y, state


def _pad(u: Float[Array, "batch heads time ..."], count: int) -> Float[Array, "batch heads padded ..."]:
    """``count`` zeros after the last token."""
    return jnp.pad(u, [(0, 0), (0, 0), (0, count)] + [(0, 0)] * (u.ndim - 3))


def _place(
    u: Float[Array, "batch heads time ..."], length: int, offset: Int[Array, ""]
) -> Float[Array, "batch heads length ..."]:
    """u at ``offset`` in ``length`` zeros."""
    room = jnp.zeros((*u.shape[:2], length, *u.shape[3:]), u.dtype)
    return jax.lax.dynamic_update_slice_in_dim(room, u, offset, axis=2)


def _cut(
    u: Float[Array, "batch heads time ..."], count: int, size: int, past: int
) -> Float[Array, "count batch heads size ..."]:
    """Subchunks of ``size`` tokens, each with the ``past`` tokens before it."""
    if past:
        return jnp.stack([u[:, :, i * size : (i + 1) * size + past] for i in range(count)])
    return jnp.moveaxis(u.reshape(*u.shape[:2], count, size, *u.shape[3:]), 2, 0)
