"""Functions for pytrees of arrays: names of leaves, selection and replacement of leaves, and copies."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

PyTree = Any


def tree_of(given: PyTree | Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """Returns a tree that is given either as itself or as a function of the parameters.

    ``callable`` alone does not tell the two apart, since a tree may be callable, as modules of Flax and Equinox are.
    """
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(given))
    return given(params) if is_leaf and callable(given) else given


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a parameter: its keys joined by dots, such as ``blocks.mixer.query.kernel``."""
    return _full_path(path).removesuffix(".value")  # the array inside an nnx.Variable


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """All leaves of a pytree, by `path_name`.

    Examples:
      >>> from nl_jax.training import named_leaves
      >>> named_leaves({"blocks": [{"kernel": 1}, {"kernel": 2}]})
      {'blocks.0.kernel': 1, 'blocks.1.kernel': 2}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def content_digest(tree: PyTree) -> str:
    """The SHA-256, in hexadecimal, of the names, shapes and values of all leaves.

    Examples:
      >>> import numpy as np
      >>> from nl_jax.trees import content_digest
      >>> content_digest({"a": np.zeros(2)}) == content_digest({"a": np.zeros(3)})
      False
    """
    digest = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        values = np.asarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()


def check_shapes(what: str, tree: PyTree, expected: PyTree) -> None:
    """Raises ``ValueError`` unless two trees have the same leaves, of the same shapes; it names the first other one."""
    given, wanted = (
        {path_name(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (tree, expected)
    )
    for name in [*wanted, *given]:
        if given.get(name) != wanted.get(name):
            found, right = (f"shape {shapes[name]}" if name in shapes else "nothing" for shapes in (given, wanted))
            at = f" at {name!r}" if name else ""
            raise ValueError(f"{what}{at} has {found}; expected {right}")


def _full_path(path: tuple[Any, ...]) -> str:
    """All keys of a leaf, joined by dots. Levels use it: two leaves of a tree may differ in a last key "value" only."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_under(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of the roots or below one of them; the root "" is the whole tree."""
    return any(root == "" or path == root or path.startswith(root + ".") for root in roots)


def select_leaves(tree: PyTree, paths: tuple[str, ...], level: str = "") -> dict[str, Any]:
    """Returns the leaves of ``tree`` at or below ``paths`` (keys joined by "."), by their full path.

    Raises:
      ValueError: if there is no leaf at or below a path; the message names ``level``.

    Examples:
      >>> select_leaves({"a": {"w": 1, "b": 2}, "c": 3}, ("a.w", "c"))
      {'a.w': 1, 'c': 3}
    """
    leaves = {_full_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for root in paths:
        if not any(is_under(name, (root,)) for name in leaves):
            some = ", ".join([*leaves][:8]) + (f" and {len(leaves) - 8} more" if len(leaves) > 8 else "")
            raise ValueError(f"level {level!r}: no parameter at {root!r}; there are {some}")
    return {name: leaf for name, leaf in leaves.items() if is_under(name, paths)}


def replace_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """Returns ``tree`` with the leaves at the paths in ``leaves`` replaced by those values.

    Examples:
      >>> replace_leaves({"a": {"w": 1, "b": 2}, "c": 3}, {"a.w": 10})
      {'a': {'b': 2, 'w': 10}, 'c': 3}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(_full_path(path), leaf), tree)


def own_buffers(tree: PyTree) -> PyTree:
    """Copies every array to its own buffer. A state can be donated only if no two leaves share a buffer."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def shallow_copy(tree: PyTree) -> PyTree:
    """A copy of the containers of a pytree, such as a module, with the same arrays; changing it leaves the tree."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, leaves)


def strong(x: Any) -> Array:
    """Converts to a strongly typed array, as scans need: the weak dtype of a Python number could change in them."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x
