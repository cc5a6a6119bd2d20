"""All chunks of a text in one kernel, for memories that are not linear in their state, as MLPs."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory import limit_cotangent
from nl_jax.modules.mixers.parameters import Projected
from nl_jax.ops import chunk_scan, narrow_like
from nl_jax.ops.chunk_scan import STARTS, VMEM
from nl_jax.parallel.kernels import choose_backend, over_heads

COPIES = 24  # room for so many arrays as large as the state, in the backward pass of a chunk
LANES, ROWS = 128, 8  # of a TPU's register; the kernel was compiled for multiples of them only


class ChunkMemory(NamedTuple):
    """How a mixer with such memories reads chunks that all start at a boundary.

    Attributes:
      kernel: which program carries the state, as for ``choose_backend``.
      learn: as ``Learn``, with what it only reads as first argument. The kernel calls it for one sequence and head.
      read_only: what it only reads, arrays [batch, heads, ...].
    """

    kernel: str
    learn: Callable[..., Any]
    read_only: Any

    def backend(self, memories: Any, head_dim: int, size: int) -> str | None:
        """The kernel's backend for chunks of a size; None for XLA's scan over chunks."""
        leaves = jax.tree.leaves((memories.delta_w, memories.momentum))
        held = sum(math.prod(u.shape[2:]) * u.dtype.itemsize for u in leaves)

        def fits(backend: str) -> bool:
            narrow = all(u.dtype == jnp.float32 for u in leaves)
            return backend == "tpu" and narrow and not (head_dim % LANES or size % ROWS) and COPIES * held <= VMEM

        found = choose_backend(self.kernel, fits)
        return None if found == "interpret_gpu" else found  # there is no form for GPUs

    def read(
        self, tokens: Projected, size: int, memories: Any, end_chunk: Callable[[Any], Any], backend: str
    ) -> tuple[Float[Array, "batch heads time head_dim"], Any]:
        """Answers to all tokens, cut in chunks of ``size``, and the memories after them.

        The backward pass keeps the tokens and the memories at each chunk's start. ``end_chunk`` is ``Chunking``'s.
        """
        wide, make = tokens.valid.dtype, type(memories)
        keeps_boundary = bool(memories.delta_w_at_boundary)

        def at_boundary(state, batch, heads):
            nothing = (jnp.zeros((batch, heads, *u.shape[2:]), u.dtype) for u in memories.excess)
            return make(*state, state[0] if keeps_boundary else (), tuple(nothing))

        def step(read_only, state, parts):
            tokens = Projected(**parts, valid=jnp.ones((1, 1, size), wide))  # whole chunks have no padding
            y, after = self.learn(read_only, at_boundary(state, 1, 1), tokens, tokens.valid, True)
            after = end_chunk(after)
            return narrow_like(y, tokens.key), (after.delta_w, after.momentum)

        def limit(state):
            return state if not keeps_boundary else jax.vjp(limit_cotangent, state)[1](state)[0]

        def cut(u):
            return u.reshape(*u.shape[:2], u.shape[2] // size, size, *u.shape[3:])

        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(STARTS))
        def read(read_only, state, tokens):
            return over_heads(functools.partial(chunk_scan, step, limit, backend), read_only, state, tokens)

        chunks = {name: jax.tree.map(cut, u) for name, u in tokens._asdict().items() if name != "valid"}
        y, (delta_w, momentum) = read(self.read_only, (memories.delta_w, memories.momentum), chunks)
        y = y.reshape(*y.shape[:2], y.shape[2] * size, *y.shape[4:])
        return y, at_boundary((delta_w, momentum), *tokens.key.shape[:2])
