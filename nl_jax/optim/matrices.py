"""Decides which parameters are matrices of hidden layers, for M3, for Muon in the experiments, and for weight decay.

A parameter has one of three kinds:

``matrix``  a map between hidden layers. M3 orthogonalises it, and each matrix of a stack separately.
``end``     a matrix at the beginning or the end of the model: an embedding or an output head. AdamW updates it, with
            weight decay.
``vector``  any other parameter: biases, scales, gates, per-channel convolutions, a vector for each head. AdamW updates
            it, without weight decay.

Models of this project are looked up in the table ``nl_jax.parameter_axes``. For all other models the structure decides
if it can; otherwise the kind is guessed. `describe_matrices` shows every choice with its reason. The guesses are:

- A leaf called ``b``, ``bias``, ``offset`` or ``scale`` is a vector, and so is a leaf with two axes below a module
  called a norm: a stack of vectors has two axes, too.
- A leaf is an end if it or its module is named as an embedding (``embed...``, ``wte``, ``wpe``) or as a head (its last
  word is ``head``, ``logits``, ``classifier`` or ``unembed``). Whole words count: ``lora_b`` and ``head_proj`` are
  neither.
- A leaf with two axes, the longer over 4 times the shorter, is an end whatever its name if two conditions hold. At most
  two matrices of the model have the longer size, as for a vocabulary; and another matrix that is nearer to square has
  the shorter size, as for the width of a model, unlike the rank of an adapter. A leaf with the word ``lora`` is an
  adapter, and a matrix.
- Four or more axes with a leading window of equal odd sizes, [3, 3, in, out], are a convolution: one matrix
  [3 · 3 · in, out]. Other leading axes are stacks, so the caller has to declare attention's [embed, heads, head_dim].
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from nl_jax.parameter_axes import logical_axes
from nl_jax.trees import path_name, tree_of

PyTree = Any

# Axes that do not make a parameter a matrix: stacks of parameters, and the entries of per-channel or per-head vectors.
_COPIES = {None, "layers", "memories", "taps", "head_dim"}
_MODULES = re.compile(r"(?:^|\.)((?:mixer|mixer_norm|cms)\..*)$")  # paths in a block outside of a model's stack
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_VECTORS = {"b", "bias", "offset", "scale"}
_EMBEDDINGS = {"wte", "wpe"}
_HEADS = {"head", "lmhead", "logits", "classifier", "unembed"}


@dataclass(frozen=True)
class Role:
    """The kind of one parameter.

    Attributes:
      kind: "matrix", "end" or "vector".
      dimensions: the input and output axes of a matrix, counted from 0; None for other kinds.
      reason: the reason for the choice in words; a guess is marked as one.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import parameter_roles
      >>> role = parameter_roles({"kernel": jnp.ones((8, 8))})["kernel"]
      >>> role.kind, role.dimensions.reduction_axis, role.dimensions.output_axis
      ('matrix', (0,), (1,))
    """

    kind: str
    dimensions: MuonDimensionNumbers | None
    reason: str


def parameter_roles(params: optax.Params) -> PyTree:
    """The `Role` of every parameter, as a tree with the structure of ``params``. Only paths and shapes matter.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.optim import parameter_roles
      >>> params = {"wte": jnp.ones((64, 8)), "kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
      >>> {name: role.kind for name, role in parameter_roles(params).items()}
      {'bias': 'vector', 'kernel': 'matrix', 'wte': 'end'}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = [np.shape(leaf) for _, leaf in leaves if np.ndim(leaf) > 1]
    counts = Counter(size for shape in shapes for size in set(shape))
    rare = {size for size, count in counts.items() if count <= 2}
    widths = {size for shape in shapes if max(shape[-2:]) <= 4 * min(shape[-2:]) for size in shape[-2:]}
    roles = [_role(path_name(path), np.shape(leaf), rare, widths) for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), roles)


def _role(path: str, shape: tuple[int, ...], rare: set[int], widths: set[int]) -> Role:
    axes = _table_axes(path, len(shape))
    if axes is not None:
        reason = f"table: {', '.join(map(str, axes))}"
        if sum(axis not in _COPIES for axis in axes) < 2:
            return Role("vector", None, reason)
        return Role("end", None, reason) if "vocab" in axes else Role("matrix", _last_two(len(shape)), reason)
    if len(shape) < 2:
        return Role("vector", None, "fewer than two axes")
    guess = _vector_by_name(path, len(shape))
    if guess:
        return Role("vector", None, f"guess: {guess}")
    guess = _end_by_name(path) or (None if _is_adapter(path) else _end_by_size(shape, rare, widths))
    if guess:
        return Role("end", None, f"guess: {guess}")
    window = shape[:-2]
    if len(window) >= 2 and len(set(window)) == 1 and window[0] >= 3 and window[0] % 2:
        axes_in = tuple(range(len(shape) - 1))
        return Role(
            "matrix", MuonDimensionNumbers(axes_in, (len(shape) - 1,)), f"guess: a convolution with window {window}"
        )
    return Role("matrix", _last_two(len(shape)), "guess: leading axes are a stack" if window else "two axes")


def _table_axes(path: str, ndim: int) -> tuple[str | None, ...] | None:
    """Names of the axes by the table, which also applies to a single block without the axis of layers."""
    names = logical_axes(path)
    if names is None and (inside := _MODULES.search(path)):
        names = logical_axes(f"blocks.{inside[1]}")
        if names is not None and len(names) == ndim + 1:
            names = names[1:]
    return names if names is not None and len(names) == ndim else None


def _last_words(path: str) -> list[tuple[str, list[str]]]:
    """The names of the leaf and of its module, each with its words in lower case; numbers are left out."""
    parts = [part for part in path.split(".") if _WORDS.search(part)][-2:]
    return [(part, [word.lower() for word in _WORDS.findall(part)]) for part in reversed(parts)]


def _vector_by_name(path: str, ndim: int) -> str | None:
    found = _last_words(path)
    if found and found[0][0] in _VECTORS:
        return f"a stack of vectors, called {found[0][0]!r}"
    for part, words in found:
        if ndim == 2 and any(word == "ln" or word.endswith("norm") for word in words):
            return f"a stack of scales, in {part!r}"
    return None


def _end_by_name(path: str) -> str | None:
    for part, words in _last_words(path):
        if any(word.startswith("embed") or word in _EMBEDDINGS for word in words):
            return f"{part!r} names an embedding"
        if words[-1] in _HEADS:
            return f"{part!r} names a head"
    return None


def _is_adapter(path: str) -> bool:
    return any("lora" in words for _, words in _last_words(path))


def _end_by_size(shape: tuple[int, ...], rare: set[int], widths: set[int]) -> str | None:
    shorter, longer = min(shape), max(shape)
    if len(shape) == 2 and longer > 4 * shorter and longer in rare and shorter in widths:
        return f"the size {longer} is found at the ends of the model only"
    return None


def _last_two(ndim: int) -> MuonDimensionNumbers:
    """The dimension numbers of matrices [..., in, out]."""
    return MuonDimensionNumbers((ndim - 2,), (ndim - 1,))


def hidden_matrices(params: optax.Params) -> PyTree:
    """Whether each parameter is a matrix of a hidden layer, as a tree of bools with the structure of ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import hidden_matrices
      >>> params = {"wte": jnp.ones((64, 8)), "layers": {"kernel": jnp.ones((2, 8, 8)), "bias": jnp.ones((2, 8))}}
      >>> hidden_matrices(params)
      {'layers': {'bias': False, 'kernel': True}, 'wte': False}
    """
    return jax.tree.map(lambda role: role.kind == "matrix", parameter_roles(params))


def matrix_dimensions(
    params: optax.Params, matrices: PyTree | Callable[[optax.Params], PyTree] | None = None
) -> PyTree:
    """The axes of each parameter that form a matrix, in the form that ``optax.contrib.muon`` takes.

    Args:
      params: parameters; only their paths and shapes matter.
      matrices: the caller's choice: a tree with the structure of ``params``, a prefix of such a tree, or a function
        that makes it from ``params``. Its leaves are ``optax.contrib.MuonDimensionNumbers`` (axes that they do not name
        are stacks), True for matrices [..., in, out], and False or None for parameters that are not matrices. The
        default is the choice of `parameter_roles`.

    Returns:
      A tree with the structure of ``params``. Its leaves are ``optax.contrib.MuonDimensionNumbers`` with tuples of axes
      counted from 0, or None for parameters that are not matrices.

    Raises:
      ValueError: if an axis does not exist or is named twice, or there is no input or no output axis.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> params = {"conv": jnp.ones((3, 3, 8, 16)), "query": jnp.ones((16, 4, 4)), "bias": jnp.ones(4)}
      >>> matrix_dimensions(params)["conv"]
      MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))
      >>> mine = {"conv": True, "query": optax.contrib.MuonDimensionNumbers(0, (1, 2)), "bias": None}
      >>> matrix_dimensions(params, mine)["query"]
      MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1, 2))
    """
    if matrices is None:
        return jax.tree.map(lambda role: role.dimensions, parameter_roles(params))
    chosen = tree_of(matrices, params)
    spread = jax.tree.broadcast(chosen, params, is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    structure: Any = jax.tree.structure(params)
    return structure.unflatten(
        _normalised(path_name(path), np.ndim(leaf), one)
        for (path, leaf), one in zip(leaves, structure.flatten_up_to(spread), strict=True)
    )


def _normalised(path: str, ndim: int, chosen: Any) -> MuonDimensionNumbers | None:
    if not isinstance(chosen, MuonDimensionNumbers):
        if not chosen:
            return None
        chosen = MuonDimensionNumbers(-2, -1)
    groups = [(axes,) if isinstance(axes, int) else tuple(axes) for axes in chosen]
    flat = [axis % ndim for group in groups for axis in group if -ndim <= axis < ndim]
    if not all(groups) or len(flat) < sum(map(len, groups)) or len(set(flat)) < len(flat):
        raise ValueError(
            f"{path or 'the parameter'!r} with {ndim} axes: {chosen} must name axes that it has, at least one for "
            "input and one for output, each once"
        )
    return MuonDimensionNumbers(*(tuple(axis % ndim for axis in group) for group in groups))


def describe_matrices(params: optax.Params, matrices: PyTree | Callable[[optax.Params], PyTree] | None = None) -> str:
    """Describes in a line of text for each parameter what M3 does with it and why; arguments as `matrix_dimensions`.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"wte": jnp.ones((64, 8)), "layers": {"kernel": jnp.ones((2, 8, 8)), "bias": jnp.ones((2, 8))}}
      >>> print(describe_matrices(params))
      layers.bias    [2, 8]     AdamW                 guess: a stack of vectors, called 'bias'
      layers.kernel  [2, 8, 8]  M3, 2 matrices 8 × 8  guess: leading axes are a stack
      wte            [64, 8]    AdamW                 guess: 'wte' names an embedding
    """
    structure: Any = jax.tree.structure(params)
    dimensions = structure.flatten_up_to(matrix_dimensions(params, matrices))
    roles = jax.tree.leaves(parameter_roles(params))
    rows = []
    for (path, leaf), one, role in zip(jax.tree_util.tree_leaves_with_path(params), dimensions, roles, strict=True):
        shape = np.shape(leaf)
        treatment = "AdamW"
        if one is not None:
            size_in, size_out = (prod(shape[axis] for axis in group) for group in one)
            count = prod(shape) // max(1, size_in * size_out)
            treatment = f"M3, {count} {'matrix' if count == 1 else 'matrices'} {size_in} × {size_out}"
        reason = role.reason if matrices is None else "the caller's choice"
        rows.append((path_name(path), str(list(shape)), treatment, reason))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return "\n".join("  ".join([*(f"{x:{w}}" for x, w in zip(row, widths, strict=False)), row[3]]) for row in rows)
