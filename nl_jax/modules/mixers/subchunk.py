"""One subchunk of a text: what the memories learn from, how every group learns it, and how the last group answers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory import (
    Chunk,
    Memory,
    Tokens,
    Weights,
    apply_layer,
    chunk_decay,
    end_of_memory,
    learn_chunk,
    read_memory,
)
from nl_jax.modules.mixers.parameters import Groups, Projected
from nl_jax.modules.mixers.stepping import Memories


class ReadOnly(NamedTuple):
    """What stays as it is while a text is read, with the batch's axis (``over_batch``)."""

    w0: Groups | None  # W₀, which retention pulls toward; None for zero
    parameters: Any = ()  # what makes coefficients of memories' answers
    up_bias: Float[Array, "batch heads"] | None = None  # of the memory that answers; None for zero


class ChunkInputs(NamedTuple):
    """What the memories learn from at each token of a subchunk."""

    key: Float[Array, "batch heads C head_dim"]
    targets: tuple[Float[Array, "batch heads *stack C head_dim"], ...]  # of each group
    eta: Float[Array, "batch heads C"]
    alpha: Float[Array, "batch heads C"]
    gates: tuple[Float[Array, "batch heads stack"] | None, ...]  # of each group: of each memory's forcing


def weights_at_boundary(w0: Groups | None, memories: Memories) -> Groups:
    """W at the last boundary; the current W where nothing depends on the boundary and it is not kept."""
    delta_w = memories.delta_w_at_boundary[: len(memories.delta_w)] or memories.delta_w
    return delta_w if w0 is None else jax.tree.map(jnp.add, w0, delta_w)


def learn_subchunk(
    groups: tuple[Memory, ...],
    read_only: ReadOnly,
    memories: Memories,
    weights: Groups,
    tokens: Projected,
    advances: Float[Array, "1 1 C"],
    inputs: ChunkInputs,
    *,
    window: int,
    starts_at_boundary: bool,
) -> tuple[tuple[Chunk, ...], Memories]:
    """Every group of memories learns one subchunk.

    Args:
      groups: description of each group.
      read_only: what does not change.
      memories: before the subchunk.
      weights: of each group, at its last chunk boundary.
      tokens: of the subchunk and of the window before it.
      advances: 1 for the tokens that advance the memories, 0 for padding and the window before.
      inputs: keys, targets and coefficients of the tokens.
      window: as for ``Chunking``.
      starts_at_boundary: whether the subchunk starts at a chunk boundary of every group.

    Returns:
      The chunks of the last group, which answers, and the memories after the subchunk.
    """
    alpha = jnp.where(advances > 0, inputs.alpha, 1.0)
    mu = None if tokens.mu is None else jnp.where(advances > 0, tokens.mu, 1.0)
    decay = chunk_decay(alpha, mu, advances, window)
    eta = inputs.eta * tokens.valid
    one_minus_mu = None if tokens.mu is None else 1.0 - tokens.mu
    chunks: tuple[Chunk, ...] = ()
    ends: list[Any] = []
    excess: list[Array] = []
    for group, memory in enumerate(groups):
        chunks = learn_chunk(
            memory,
            Weights(
                None if read_only.w0 is None else read_only.w0[group],
                memories.delta_w[group],
                memories.momentum[group] if memories.momentum else None,
                weights[group],
            ),
            Tokens(inputs.key, inputs.targets[group], eta, alpha, one_minus_mu, decay),
            starts_at_boundary=starts_at_boundary,
            gates=inputs.gates[group],
            up_bias=read_only.up_bias if group == len(groups) - 1 else None,
        )
        ends.append(end_of_memory(memory, chunks))
        if memories.excess and chunks[-1].excess is not None:
            counted = advances if memory.last == 0 else advances[..., None, :]
            excess.append(memories.excess[group] + jnp.sum(counted * chunks[-1].excess, axis=-1))
    delta_w, momentum = zip(*ends, strict=True)
    memories = memories._replace(delta_w=delta_w, momentum=momentum if memories.momentum else (), excess=tuple(excess))
    boundary, left = (memories.delta_w_at_boundary[part] for part in (slice(len(groups)), slice(len(groups), None)))
    left = jax.tree.map(lambda w: jnp.expand_dims(decay.state_start[..., -1], range(2, w.ndim)) * w, left)
    return chunks, memories._replace(delta_w_at_boundary=boundary + left)


def answer_by_token(
    memory: Memory, read_only: ReadOnly, chunks: tuple[Chunk, ...], queries: Float[Array, "batch heads C head_dim"]
) -> Float[Array, "batch heads C head_dim"]:
    """Answers of the last group by its weights updated up to each query's own token."""
    w0 = None if read_only.w0 is None else read_only.w0[-1]
    return _only_memory(memory, read_memory(memory, chunks, w0, queries, read_only.up_bias))


def answer_at_boundary(
    memory: Memory, read_only: ReadOnly, weights: Groups, queries: Float[Array, "batch heads C head_dim"]
) -> Float[Array, "batch heads C head_dim"]:
    """Answers of the last group by its weights at the last chunk boundary (Eq. 90)."""
    return _only_memory(memory, memory.architecture(apply_layer(weights[-1]), queries, read_only.up_bias))


def _only_memory(memory: Memory, answer: Array) -> Float[Array, "batch heads C head_dim"]:
    """The answer without the axis for the stack, which holds one memory."""
    return answer if memory.architecture.depth == 1 else answer[:, :, 0]
