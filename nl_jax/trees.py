"""Trees of arrays: names of their leaves, and small things that JAX does not have."""

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


def tree_of(given: PyTree | Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """A tree that is given itself, or as a function of the parameters.

    A tree may be callable itself, as Flax's and Equinox' modules are, so ``callable`` does not tell the two apart.
    """
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(given))
    return given(params) if is_leaf and callable(given) else given
