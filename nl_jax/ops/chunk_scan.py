"""The states of any memories through all chunks of a text, as one TPU kernel that keeps them in fast memory.

What a chunk does is given as a function of one sequence and head,

    answers, state = step(read_only, state, tokens)

and the kernel traces it: the same program as XLA's scan over chunks, and its derivative by JAX. The chunks are the last
axis of the grid, and the state stays in VMEM from one to the next. The backward pass goes through the chunks from the
last to the first; it reads the state at each chunk's start, which the forward pass has kept, and runs the chunk again.

In training a chunk moves its tokens, its answers and the state at its start, once out and once in; XLA's scan moves the
state at every product that does not fit into fast memory beside what else is there.

The derivative is taken in reverse mode, once: there is no forward mode, and none of second order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from nl_jax.ops.in_kernel import in_kernel

BACKENDS = ("tpu", "interpret")  # the second runs on any device, for tests
STARTS = "chunk_scan_starts"  # the name by which ``jax.checkpoint`` can keep the states at all chunks' starts
VMEM = 100 * 2**20  # bytes that a kernel may use
Tree = Any  # a pytree of arrays
Step = Callable[[Tree, Tree, Tree], tuple[Array, Tree]]


def chunk_scan(
    step: Step, limit: Callable[[Tree], Tree], backend: str, read_only: Tree, state: Tree, tokens: Tree
) -> tuple[Array, Tree]:
    """The answers of all chunks, and the state after the last one.

    Args:
      step: what a chunk does, of arrays whose first two axes have size 1. It closes over no arrays.
      limit: what is done to the cotangent of a state before it goes on to the chunk before.
      backend: one of ``BACKENDS``.
      read_only: arrays [batch, heads, ...].
      state: arrays [batch, heads, ...] in float32 or wider, before the first chunk.
      tokens: arrays [batch, heads, chunks, ...].

    Returns:
      Answers [batch, heads, chunks, ...], and the state after the last chunk.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import chunk_scan
      >>> def step(read_only, state, tokens):  # a memory that adds up what it reads
      ...     return tokens + state, state + jnp.sum(tokens, axis=-1, keepdims=True)
      >>> chunks = jnp.ones((1, 1, 3, 2))  # 3 chunks of 2 tokens
      >>> answers, end = chunk_scan(step, lambda state: state, "interpret", (), jnp.zeros((1, 1, 1)), chunks)
      >>> print(answers[0, 0, :, 0], end.ravel())
      [1. 3. 5.] [6.]
    """
    return _scan(step, limit, backend, read_only, state, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(step, limit, backend, read_only, state, tokens):
    answers, end, _ = _forward(step, backend, read_only, state, tokens, keep_starts=False)
    return answers, end


def _scan_forward(step, limit, backend, read_only, state, tokens):
    answers, end, starts = _forward(step, backend, read_only, state, tokens, keep_starts=True)
    starts = jax.tree.map(lambda u: checkpoint_name(u, STARTS), starts)
    return (answers, end), (read_only, starts, tokens)


def _scan_backward(step, limit, backend, saved, cotangents):
    return _backward(step, limit, backend, *saved, *cotangents)


_scan.defvjp(_scan_forward, _scan_backward)


class _Blocks(NamedTuple):
    """How arrays become blocks of programs: those of a row, and those of a chunk of it."""

    backend: str
    batch: int
    heads: int
    chunks: int
    reverse: bool

    def flat(self, u: Array, *, chunked: bool) -> Array:
        """The array with two axes at least behind those of rows and chunks, since blocks are of whole matrices."""
        fixed = 3 if chunked else 2
        return u.reshape(*u.shape[:fixed], *(1,) * (fixed + 2 - u.ndim), *u.shape[fixed:])

    def spec(self, u: Any, *, chunked: bool) -> pl.BlockSpec:
        """The block of a `flat` array."""
        rest = u.shape[3 if chunked else 2 :]
        zeros = (0,) * len(rest)
        if not chunked:
            return pl.BlockSpec((1, 1, *rest), lambda b, h, c: (b, h, *zeros))
        last = self.chunks - 1
        return pl.BlockSpec((1, 1, 1, *rest), lambda b, h, c: (b, h, last - c if self.reverse else c, *zeros))

    def call(self, body: Callable[..., None], arguments: list, out: list, name: str) -> list[Array]:
        """Runs a body on the blocks of ``arguments``, pairs of an array and whether it has chunks; ``out`` likewise."""
        flat = [self.flat(u, chunked=chunked) for u, chunked in arguments]
        shapes = [(jax.eval_shape(functools.partial(self.flat, chunked=chunked), u), chunked) for u, chunked in out]
        params: Any = None
        if self.backend == "tpu":
            params = pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
            )
        found = pl.pallas_call(
            body,
            out_shape=[jax.ShapeDtypeStruct(u.shape, u.dtype) for u, _ in shapes],
            grid=(self.batch, self.heads, self.chunks),
            in_specs=[self.spec(u, chunked=chunked) for u, (_, chunked) in zip(flat, arguments, strict=True)],
            out_specs=[self.spec(u, chunked=chunked) for u, chunked in shapes],
            compiler_params=params,
            interpret=self.backend == "interpret",
            name=name,
        )(*flat)
        return [u.reshape(shape.shape) for u, (shape, _) in zip(found, out, strict=True)]


def _blocks(backend: str, tokens: Tree, *, reverse: bool) -> _Blocks:
    batch, heads, chunks = jax.tree.leaves(tokens)[0].shape[:3]
    return _Blocks(backend, batch, heads, chunks, reverse)


def _split(given: Sequence[Any], *trees: Tree) -> list[Tree]:
    """As many of what is given as each tree has leaves, in that tree's form."""
    found, rest = [], list(given)
    for tree in trees:
        count = len(jax.tree.leaves(tree))
        found.append(jax.tree.unflatten(jax.tree.structure(tree), rest[:count]))
        rest = rest[count:]
    return found


def _load(refs: Tree, like: Tree, *, chunked: bool) -> Tree:
    """What blocks hold, in the shapes of one row: [1, 1, ...]."""
    fixed = 3 if chunked else 2
    return jax.tree.map(lambda u, ref: ref[...].reshape(1, 1, *u.shape[fixed:]), like, refs)


def _store(refs: Tree, tree: Tree) -> None:
    for ref, u in zip(jax.tree.leaves(refs), jax.tree.leaves(tree), strict=True):
        ref[...] = u.reshape(ref.shape).astype(ref.dtype)


def _at_first_chunk(do: Callable[[], None]) -> None:
    pl.when(pl.program_id(2) == 0)(do)


def _forward(step: Step, backend: str, read_only: Tree, state: Tree, tokens: Tree, *, keep_starts: bool) -> tuple:
    """Answers, the state after the last chunk, and the state at the start of each chunk, if wanted."""
    blocks = _blocks(backend, tokens, reverse=False)
    rows = (blocks.batch, blocks.heads, blocks.chunks)

    def one(tree, fixed):
        return jax.tree.map(lambda u: jax.ShapeDtypeStruct((1, 1, *u.shape[fixed:]), u.dtype), tree)

    answer, _ = jax.eval_shape(step, one(read_only, 2), one(state, 2), one(tokens, 3))
    answers = jax.ShapeDtypeStruct((*rows, *answer.shape[2:]), answer.dtype)
    starts = jax.tree.map(lambda u: jax.ShapeDtypeStruct((*rows, *u.shape[2:]), u.dtype), state)
    starts = starts if keep_starts else None

    def body(*refs):
        fixed, first, chunk, answer, now, kept = _split(refs, read_only, state, tokens, answers, state, starts)
        _at_first_chunk(lambda: _store(now, _load(first, state, chunked=False)))
        before = _load(now, state, chunked=False)
        if keep_starts:
            _store(kept, before)
        with in_kernel():
            y, after = step(_load(fixed, read_only, chunked=False), before, _load(chunk, tokens, chunked=True))
        _store(answer, y)
        _store(now, after)

    arguments = [(u, False) for u in jax.tree.leaves((read_only, state))]
    arguments += [(u, True) for u in jax.tree.leaves(tokens)]
    out = [(answers, True), *((u, False) for u in jax.tree.leaves(state))]
    out += [(u, True) for u in jax.tree.leaves(starts)]
    y, end, starts = _split(blocks.call(body, arguments, out, "chunk_scan_forward"), answers, state, starts)
    return y, end, starts


def _backward(
    step: Step,
    limit: Callable[[Tree], Tree],
    backend: str,
    read_only: Tree,
    starts: Tree,
    tokens: Tree,
    d_answers: Array,
    d_end: Tree,
) -> tuple[Tree, Tree, Tree]:
    """Cotangents of what is only read, of the state before the first chunk, and of the tokens."""
    blocks = _blocks(backend, tokens, reverse=True)
    wide = jax.tree.leaves(d_end)[0].dtype
    sums = jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape, jnp.promote_types(u.dtype, wide)), read_only)

    def body(*refs):
        fixed, kept, chunk, d_y, last, d_fixed, d_now, d_chunk = _split(
            refs, read_only, starts, tokens, d_answers, d_end, sums, d_end, tokens
        )

        def start():
            _store(d_now, _load(last, d_end, chunked=False))
            for ref in jax.tree.leaves(d_fixed):
                ref[...] = jnp.zeros_like(ref)

        _at_first_chunk(start)
        given = _load(fixed, read_only, chunked=False), _load(kept, starts, chunked=True)
        with in_kernel():
            (y, _), pull = jax.vjp(step, *given, _load(chunk, tokens, chunked=True))
            d_one, d_before, d_tokens = pull((d_y[...].reshape(y.shape), _load(d_now, d_end, chunked=False)))
        for ref, d in zip(jax.tree.leaves(d_fixed), jax.tree.leaves(d_one), strict=True):
            ref[...] += d.reshape(ref.shape).astype(ref.dtype)
        _store(d_now, limit(d_before))
        _store(d_chunk, d_tokens)

    arguments = [(u, False) for u in jax.tree.leaves(read_only)]
    arguments += [(u, True) for u in jax.tree.leaves((starts, tokens, d_answers))]
    arguments += [(u, False) for u in jax.tree.leaves(d_end)]
    out = [(u, False) for u in jax.tree.leaves((sums, d_end))] + [(u, True) for u in jax.tree.leaves(tokens)]
    found = _split(blocks.call(body, arguments, out, "chunk_scan_backward"), sums, d_end, tokens)
    d_read_only = jax.tree.map(lambda u, like: u.astype(like.dtype), found[0], read_only)
    return d_read_only, found[1], found[2]
