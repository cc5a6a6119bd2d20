"""The state of matrix memories through all chunks of a text, as one kernel that keeps it in fast memory.

A memory whose state is one matrix W, and whose writes are linear in it, does the following in a chunk of C tokens:

    U = write - erase W,    Y = read W + scores U,    W ← diag(keep) W + keysᵀ U

The six arrays do not depend on W, so XLA makes them for all chunks at once (``memory/linear_chunks.py``; the
representation by erase and write is that of Bischof and Van Loan, 1987, as in Yang et al., 2024). What is left is this
scan, by Pallas: on a TPU (Mosaic) the chunks are the last axis of the grid, and W stays in VMEM; on a GPU (Triton) a
program has 64 outputs of a head, and W stays in registers while it loops over the chunks.

A chunk of a head with keys of size i and values of size o costs 2 C (3 i o + C o) operations forward, of which removal
is a third, and 2 C (7 i o + 2 C o) backward. It moves C (3 i + 2 o + C) elements forward, and about twice as many
backward; in training also the i o elements of the state at the chunk's start, once out and once in. XLA's scan moves
the state at every product, and on a GPU it launches 90 programs for a chunk, forward and backward.

The derivative is taken in reverse mode, once: there is no forward mode, and none of second order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

BACKENDS = ("tpu", "gpu", "interpret", "interpret_gpu")  # the last two run on any device, for tests
OUTPUTS_OF_PROGRAM = 64  # on a GPU: a state of 128 x 64 takes 32 registers of each of 256 threads
VMEM_FOR_BLOCKS = 8 * 2**20  # bytes, on a TPU, which gives a kernel 16 MiB; the rest is for what it computes
STARTS = "matrix_scan_starts"  # the name by which ``jax.checkpoint`` can keep the states at all chunks' starts
_GPU_SIZES = (16, 32, 64, 128)  # Triton's products want powers of two from 16; larger ones exceed shared memory


class ChunkMaps(NamedTuple):
    """What each chunk does to the state, and reads of it: linear maps that do not depend on the state.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, linear_chunks
      >>> keys, one = jnp.ones((1, 1, 3, 4, 2)), jnp.ones((1, 1, 3, 4))  # 3 chunks of 4 tokens
      >>> maps = linear_chunks(keys, keys, None, chunk_decay(one, None), queries=keys)
      >>> maps.erase is None, maps.scores.shape, maps.keep.shape
      (True, (1, 1, 3, 4, 4), (1, 1, 3, 1, 2))
    """

    erase: Float[Array, "batch heads chunks C in"] | None  # None where writes do not depend on the state
    write: Float[Array, "batch heads chunks C out"]
    read: Float[Array, "batch heads chunks C in"]
    scores: Float[Array, "batch heads chunks C C"]
    keys: Float[Array, "batch heads chunks C in"]
    keep: Float[Array, "batch heads chunks 1 in"]


def fits(backend: str, size_in: int, size_out: int, chunk: int, dtype: Any) -> bool:
    """Whether a backend has a kernel for these sizes, and for a state of type ``dtype``."""
    if backend.startswith("interpret"):
        return True
    if jnp.dtype(dtype) != jnp.float32:
        return False
    if backend == "gpu":
        return all(size in _GPU_SIZES for size in (size_in, size_out, chunk))
    # three matrices like the state and those of a chunk, each twice: the next is fetched meanwhile
    blocks = 3 * size_in * size_out + 2 * chunk * (3 * size_in + 2 * size_out + chunk)
    return 2 * 4 * blocks <= VMEM_FOR_BLOCKS


def matrix_scan(
    state: Float[Array, "batch heads in out"], maps: ChunkMaps, backend: str
) -> tuple[Float[Array, "batch heads chunks C out"], Float[Array, "batch heads in out"]]:
    """The answers of all chunks, and the state after the last one.

    Products run in the type of the keys, with sums in that of the state, which is float32 or wider.

    Args:
      state: W before the first chunk.
      maps: of the chunks. All but ``keep``, which has the state's type, have one type.
      backend: one of ``BACKENDS``, which `fits` the sizes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, linear_chunks
      >>> from nl_jax.ops import matrix_scan
      >>> keys, one = jnp.ones((1, 1, 3, 1, 1)), jnp.ones((1, 1, 3, 1))  # 3 chunks of one token each
      >>> maps = linear_chunks(keys, keys, None, chunk_decay(one, None), queries=keys)
      >>> answers, state = matrix_scan(jnp.zeros((1, 1, 1, 1)), maps, "interpret")
      >>> print(answers.ravel(), state.ravel())  # each token adds 1
      [1. 2. 3.] [3.]
    """
    answers, end = _scan(backend, jnp.swapaxes(state, -1, -2), maps)
    return answers, jnp.swapaxes(end, -1, -2)


# Below V is the transpose of the state, [out, in], so that ``keep`` multiplies along lanes.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(backend: str, state: Array, maps: ChunkMaps) -> tuple[Array, Array]:
    answers, end, _ = _forward(backend, state, maps, keep_starts=False)
    return answers, end


def _scan_forward(backend, state, maps):
    answers, end, starts = _forward(backend, state, maps, keep_starts=True)
    return (answers, end), (checkpoint_name(starts, STARTS), maps)


def _scan_backward(backend, saved, cotangents):
    starts, maps = saved
    return _backward(backend, starts, maps, *cotangents)


_scan.defvjp(_scan_forward, _scan_backward)


def _dot(x: Array, y: Array, axes: tuple[int, int], wide: Any) -> Array:
    """Product over axis ``axes[0]`` of x and ``axes[1]`` of y, both matrices."""
    return jax.lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=wide)


def _writes(v: Array, maps: ChunkMaps) -> Array:
    """U of one chunk."""
    if maps.erase is None:
        return maps.write
    taken = _dot(maps.erase, v.astype(maps.keys.dtype), (1, 1), v.dtype)
    return (maps.write.astype(v.dtype) - taken).astype(maps.keys.dtype)


def _read_and_advance(v: Array, maps: ChunkMaps) -> tuple[Array, Array]:
    """Y of one chunk, and V after it."""
    u = _writes(v, maps)
    answers = _dot(maps.read, v.astype(maps.keys.dtype), (1, 1), v.dtype) + _dot(maps.scores, u, (1, 0), v.dtype)
    return answers, maps.keep * v + _dot(u, maps.keys, (0, 0), v.dtype)


def _pull_back(v: Array, maps: ChunkMaps, d_answers: Array, d_v: Array) -> tuple[Array, ChunkMaps]:
    """Cotangents of one chunk's V and maps, from those of its answers and of V after it."""
    wide, narrow = v.dtype, maps.keys.dtype
    u, v_narrow, d_after = _writes(v, maps), v.astype(narrow), d_v.astype(narrow)
    d_u = _dot(maps.scores, d_answers, (0, 0), wide) + _dot(maps.keys, d_after, (1, 1), wide)
    d_narrow = d_u.astype(narrow)
    before = maps.keep * d_v + _dot(d_answers, maps.read, (0, 0), wide)
    d_erase = None
    if maps.erase is not None:
        before = before - _dot(d_narrow, maps.erase, (0, 0), wide)
        d_erase = -_dot(d_narrow, v_narrow, (1, 0), wide)
    d_maps = ChunkMaps(
        d_erase,
        d_u,
        _dot(d_answers, v_narrow, (1, 0), wide),
        _dot(d_answers, u, (1, 1), wide),
        _dot(u, d_after, (1, 0), wide),
        jax.lax.reduce_sum(d_v * v, axes=(0,))[None],
    )
    return before, d_maps


class _Grid(NamedTuple):
    """How rows and chunks become programs, and which block of an array each of them gets."""

    backend: str
    sizes: tuple[int, int, int, int, int, int]  # batch, heads, chunks, C, in, out

    @property
    def is_gpu(self) -> bool:
        return self.backend.endswith("gpu")

    @property
    def outputs(self) -> int:
        """Outputs of a program: a state's rows."""
        return min(OUTPUTS_OF_PROGRAM, self.sizes[-1]) if self.is_gpu else self.sizes[-1]

    @property
    def parts(self) -> int:
        """Programs that share a head's outputs."""
        return self.sizes[-1] // self.outputs

    @property
    def grid(self) -> tuple[int, ...]:
        batch, heads, chunks = self.sizes[:3]
        return (batch, heads, self.parts if self.is_gpu else chunks)

    def state(self) -> pl.BlockSpec:
        """V of a row."""
        index = (lambda b, h, p: (b, h, p, 0)) if self.is_gpu else (lambda b, h, c: (b, h, 0, 0))
        return pl.BlockSpec((None, None, self.outputs, self.sizes[4]), index)

    def chunk(self, rows: int, columns: int, *, outputs: int | None = None, reverse: bool = False) -> pl.BlockSpec:
        """A chunk's matrix; ``outputs`` says which of its axes, if any, is that of the outputs."""
        chunks, shape = self.sizes[2], [rows, columns]
        if self.is_gpu:
            if outputs is not None:
                shape[outputs] = self.outputs
            return pl.BlockSpec(
                (None, None, chunks, *shape),
                lambda b, h, p: (b, h, 0, *(p if axis == outputs else 0 for axis in range(2))),
            )
        return pl.BlockSpec((None, None, None, *shape), lambda b, h, c: (b, h, chunks - 1 - c if reverse else c, 0, 0))

    def partial(self, rows: int, columns: int) -> pl.BlockSpec:
        """A chunk's matrix that the programs of a head's outputs each make a part of; for a backward pass."""
        chunks = self.sizes[2]
        if self.is_gpu:
            return pl.BlockSpec((None, None, None, chunks, rows, columns), lambda b, h, p: (p, b, h, 0, 0, 0))
        return pl.BlockSpec((None, None, None, None, rows, columns), lambda b, h, c: (0, b, h, chunks - 1 - c, 0, 0))

    def maps(self, maps: ChunkMaps, *, reverse: bool = False) -> Any:
        """Blocks of all maps, as `ChunkMaps`."""
        size, keys, values = self.sizes[3:]
        chunk: Any = functools.partial(self.chunk, reverse=reverse)
        of_keys = chunk(size, keys)
        erase = None if maps.erase is None else of_keys
        return ChunkMaps(erase, chunk(size, values, outputs=1), of_keys, chunk(size, size), of_keys, chunk(1, keys))

    def call(self, body: Callable[..., None], out: Any, inputs: Any, *arguments: Any, flops: int) -> Any:
        """Runs ``body`` on the blocks of ``arguments``; ``out`` is pairs of shape and block."""
        leaves = jax.tree.leaves(arguments)
        shapes, specs = zip(*out, strict=True)
        moved = sum(math.prod(u.shape) * jnp.dtype(u.dtype).itemsize for u in (*leaves, *shapes))
        params: Any = None
        if self.backend == "tpu":
            params = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))
        elif self.backend == "gpu":
            # chunks above 64 tokens leave no shared memory for those that come next
            warps, stages = 8 if self.outputs * self.sizes[4] > 4096 else 4, 2 if self.sizes[3] <= 64 else 1
            params = triton.CompilerParams(num_warps=warps, num_stages=stages)
        return pl.pallas_call(
            body,
            out_shape=list(shapes),
            grid=self.grid,
            in_specs=jax.tree.leaves(inputs, is_leaf=lambda u: isinstance(u, pl.BlockSpec)),
            out_specs=list(specs),
            compiler_params=params,
            cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0),
            interpret=self.backend.startswith("interpret"),
            name=body.__name__.strip("_"),
        )(*leaves)


def _grid(backend: str, maps: ChunkMaps) -> _Grid:
    *leading, size, keys = maps.keys.shape
    batch, heads, chunks = leading
    return _Grid(backend, (batch, heads, chunks, size, keys, maps.write.shape[-1]))


def _flops(grid: _Grid, products: int, scores: int) -> int:
    batch, heads, chunks, size, keys, values = grid.sizes
    return 2 * batch * heads * chunks * size * values * (products * keys + scores * size)


def _forward(backend: str, state: Array, maps: ChunkMaps, *, keep_starts: bool) -> tuple[Array, Array, Array | None]:
    """Answers, V after the last chunk, and V at the start of each chunk, if wanted."""
    grid, wide, has_erase = _grid(backend, maps), state.dtype, maps.erase is not None
    batch, heads, chunks, size, keys, values = grid.sizes

    def matrix_scan_forward(*refs):
        state_ref, *others = refs
        map_refs, (answers_ref, end_ref, *starts_ref) = _refs(others, has_erase)

        def chunk(v, at):
            answers, after = _read_and_advance(v, _load(map_refs, at))
            answers_ref[at] = answers.astype(answers_ref.dtype)
            for ref in starts_ref:
                ref[at] = v
            return after

        _over_chunks(grid, state_ref, end_ref, chunk)

    out = [
        (jax.ShapeDtypeStruct(maps.write.shape, maps.write.dtype), grid.chunk(size, values, outputs=1)),
        (jax.ShapeDtypeStruct(state.shape, wide), grid.state()),
    ]
    if keep_starts:
        shape = jax.ShapeDtypeStruct((batch, heads, chunks, values, keys), wide)
        out.append((shape, grid.chunk(values, keys, outputs=0)))
    flops = _flops(grid, 3 if has_erase else 2, 1)
    answers, end, *starts = grid.call(
        matrix_scan_forward, out, (grid.state(), grid.maps(maps)), state, maps, flops=flops
    )
    return answers, end, starts[0] if starts else None


def _backward(backend: str, starts: Array, maps: ChunkMaps, d_answers: Array, d_end: Array) -> tuple[Array, ChunkMaps]:
    """Cotangents of V before the first chunk, and of the maps."""
    grid, wide, has_erase = _grid(backend, maps), d_end.dtype, maps.erase is not None
    size, keys, values = grid.sizes[3:]

    def matrix_scan_backward(*refs):
        end_ref, starts_ref, answers_ref, *others = refs
        map_refs, (start_ref, *d_refs) = _refs(others, has_erase)
        d_map_refs, _ = _refs(d_refs, has_erase)

        def chunk(d_v, at):
            before, d_maps = _pull_back(starts_ref[at], _load(map_refs, at), answers_ref[at], d_v)
            for ref, d in zip(d_map_refs, d_maps, strict=True):
                if ref is not None and d is not None:
                    ref[at] = d.astype(ref.dtype)
            return before

        _over_chunks(grid, end_ref, start_ref, chunk, reverse=True)

    def shaped(like, spec, parts=()):
        return None if like is None else (jax.ShapeDtypeStruct((*parts, *like.shape), like.dtype), spec)

    part = (grid.parts,)
    of_keys = grid.partial(size, keys)
    write = grid.chunk(size, values, outputs=1, reverse=True)
    d_maps = ChunkMaps(
        shaped(maps.erase, of_keys, part),
        shaped(maps.write, write),
        shaped(maps.read, of_keys, part),
        shaped(maps.scores, grid.partial(size, size), part),
        shaped(maps.keys, of_keys, part),
        shaped(maps.keep, grid.partial(1, keys), part),
    )
    out = [(jax.ShapeDtypeStruct(d_end.shape, wide), grid.state()), *(u for u in d_maps if u is not None)]
    inputs = grid.state(), grid.chunk(values, keys, outputs=0, reverse=True), write, grid.maps(maps, reverse=True)
    flops = _flops(grid, 7 if has_erase else 4, 2)
    d_start, *found = grid.call(matrix_scan_backward, out, inputs, d_end, starts, d_answers, maps, flops=flops)
    partial, _ = _refs(found, has_erase)
    whole: dict[str, Any] = {name: None if u is None else _sum(u) for name, u in partial._asdict().items()}
    return d_start, ChunkMaps(**{**whole, "write": partial.write})


def _refs(refs: Any, has_erase: bool) -> tuple[ChunkMaps, list[Any]]:
    """The first references as those of maps, and the others."""
    count = len(ChunkMaps._fields)
    own: list[Any] = list(refs[:count]) if has_erase else [None, *refs[: count - 1]]
    return ChunkMaps(*own), list(refs[count if has_erase else count - 1 :])


def _load(refs: Any, at: Any) -> ChunkMaps:
    """The blocks of one chunk."""
    loaded: list[Any] = [None if ref is None else ref[at] for ref in refs]
    return ChunkMaps(*loaded)


def _sum(parts: Array) -> Array:
    """The sum over a first axis of parts, in float32 at least."""
    if len(parts) == 1:
        return parts[0]
    return jnp.sum(parts, axis=0, dtype=jnp.promote_types(parts.dtype, jnp.float32)).astype(parts.dtype)


def _over_chunks(
    grid: _Grid, first_ref: Any, last_ref: Any, chunk: Callable[[Array, Any], Array], *, reverse: bool = False
) -> None:
    """``v = chunk(v, at)`` for all chunks, where its blocks are ``ref[at]``, from ``first_ref`` to ``last_ref``."""
    chunks = grid.sizes[2]
    if grid.is_gpu:

        def body(i, v):
            return chunk(v, chunks - 1 - i if reverse else i)

        last_ref[...] = jax.lax.fori_loop(0, chunks, body, first_ref[...])
        return

    @pl.when(pl.program_id(2) == 0)
    def _():
        last_ref[...] = first_ref[...]

    last_ref[...] = chunk(last_ref[...], ...)  # its block is the same for all chunks of a row, so it stays in VMEM
