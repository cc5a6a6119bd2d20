"""Trees of arrays: names of their leaves, and small things that JAX does not have."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

PyTree = Any


def tree_of(given: PyTree | Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """A tree that is given itself, or as a function of the parameters.

    A tree may be callable itself, as Flax's and Equinox' modules are, so ``callable`` does not tell the two apart.
    """
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(given))
    return given(params) if is_leaf and callable(given) else given


def path_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf of a pytree, keys joined by dots: ``blocks.mixer.query.kernel``."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")  # the array inside an nnx.Variable


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """All leaves of a pytree by `path_name`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_under(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of the roots or lies below one; "" is the whole tree."""
    return any(root == "" or path == root or path.startswith(root + ".") for root in roots)


def select_leaves(tree: PyTree, paths: tuple[str, ...], level: str = "") -> dict[str, Any]:
    """The leaves of ``tree`` at or below ``paths`` (keys joined by "."), by their full path.

    Raises:
      ValueError: for a path with nothing below it; it names ``level``.

    Examples:
      >>> select_leaves({"a": {"w": 1, "b": 2}, "c": 3}, ("a.w", "c"))
      {'a.w': 1, 'c': 3}
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for root in paths:
        if not any(is_under(name, (root,)) for name in leaves):
            raise ValueError(f"level {level!r}: no parameter at {root!r}; there are {', '.join(leaves)}")
    return {name: leaf for name, leaf in leaves.items() if is_under(name, paths)}


def replace_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """``tree`` with the leaves that ``leaves`` names by path.

    Examples:
      >>> replace_leaves({"a": {"w": 1, "b": 2}, "c": 3}, {"a.w": 10})
      {'a': {'b': 2, 'w': 10}, 'c': 3}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(path_name(path), leaf), tree)


def own_buffers(tree: PyTree) -> PyTree:
    """The same arrays, each in a buffer of its own: a state whose leaves share one cannot be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def strong(x: Any) -> Array:
    """An array whose dtype does not give way to another's, as a Python number's does: scans need that."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x
