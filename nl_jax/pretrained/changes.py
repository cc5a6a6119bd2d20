"""A model with changes added to some of its weights, in a form that gives the gradients that levels need."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nl_jax.models.language_model import LanguageModel
from nl_jax.pretrained.low_rank import LowRank
from nl_jax.pretrained.observed import Observed
from nl_jax.trees import shallow_copy

MATRICES = {  # paths in a block
    **{name: ("cms", "levels", 0, name) for name in ("gate", "up", "down")},
    **{name: ("mixer", name) for name in ("query", "key", "value", "output")},
}


class Seen(NamedTuple):
    """What the inputs of a matrix were so far."""

    products: Float[Array, "blocks in in"]  # sum of x xᵀ
    inputs: Float[Array, " blocks"]  # their number
    inverse: Float[Array, " blocks"]  # sum of 1 / ‖x‖²


def no_inputs(blocks: int, size: int) -> Seen:
    """Of matrices with ``size`` inputs, before any was seen."""
    return Seen(jnp.zeros((blocks, size, size)), jnp.zeros(blocks), jnp.zeros(blocks))


class Part(NamedTuple):
    """A change of the same part of a matrix of some blocks."""

    name: str  # of the matrix, in ``MATRICES``
    blocks: Int[np.ndarray, " blocks"]  # indices
    rows: tuple[int, int]
    columns: tuple[int, int]
    change: Any  # [blocks, rows, columns], or the two factors of one of low rank
    seen: Seen | None = None  # zeros, whose gradient is to be what the inputs were


def changed_blocks(model: LanguageModel, parts: Sequence[Part], *, merge: bool = False) -> LanguageModel:
    """The model with changes of its blocks.

    Args:
      model: a language model with linear layers.
      parts: the changes; no two of the same weights.
      merge: whether changes of low rank are added to the weights, so that the model has the layers that it had. If not,
        they are computed beside them, and their gradient is small.
    """
    model = shallow_copy(model)
    blocks, seen = model.blocks, dict[str, Seen]()
    for part in parts:
        layer, low_rank = matrix_of(blocks, part.name), isinstance(part.change, tuple)
        kernel = layer.kernel[...]
        if not low_rank or merge:
            change = jnp.matmul(*part.change) if low_rank else part.change
            where = part.blocks, slice(*part.rows), slice(*part.columns)
            layer.kernel[...] = kernel.at[where].add(change.astype(kernel.dtype))
        if part.seen is not None:
            rows, (count, size) = slice(*part.rows), kernel.shape[:2]
            whole = seen.get(part.name, no_inputs(count, size))
            seen[part.name] = Seen(
                whole.products.at[part.blocks, rows, rows].add(part.seen.products),
                whole.inputs.at[part.blocks].add(part.seen.inputs),
                whole.inverse.at[part.blocks].add(part.seen.inverse),
            )
    beside = [part for part in parts if isinstance(part.change, tuple) and not merge]
    shapes = {part.name: matrix_of(blocks, part.name).kernel[...].shape for part in beside}
    for name, zeros in seen.items():
        _put(blocks, name, Observed(matrix_of(blocks, name), *zeros))
    for part in beside:
        count, size_in, size_out = shapes[part.name]
        first, second = part.change
        rank = first.shape[-1]
        first = jnp.zeros((count, size_in, rank)).at[part.blocks, slice(*part.rows)].set(first)
        second = jnp.zeros((count, rank, size_out)).at[part.blocks, :, slice(*part.columns)].set(second)
        _put(blocks, part.name, LowRank(matrix_of(blocks, part.name), first, second))
    return model


def matrix_of(block: Any, name: str) -> Any:
    """The linear layer of a block, or of stacked blocks."""
    return functools.reduce(_child, MATRICES[name], block)


def _put(block: Any, name: str, layer: Any) -> None:
    """Replaces the linear layer of a block."""
    *path, last = MATRICES[name]
    setattr(functools.reduce(_child, path, block), str(last), layer)


def _child(node: Any, key: str | int) -> Any:
    return node[key] if isinstance(key, int) else getattr(node, key)
