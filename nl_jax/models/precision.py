"""What a language model computes in ``dtype="bfloat16"``, and what stays float32 (BUILD_NOTES.md, D72).

In bfloat16: the residual stream and all other activations, and the operands of matrix products, those of memories and
the logits included. In float32: parameters and their gradients, the states of memories, norms, decays, coefficients,
triangular systems, softmax and loss. A memory's state is a sum over all tokens of a text, where bfloat16 would lose
every write that is smaller than 1/256 of the weight it changes.
"""

import re

import jax
import jax.numpy as jnp

from nl_jax.trees import PyTree, path_name

DTYPES = ("float32", "bfloat16")
# Parameters that multiply activations. The others are few, or are added to or compared with what is in float32.
_MATRICES = re.compile(
    r"(^|\.)(query|key|value|output|conv|gates?|recurrent|up|down)\.kernel$|mixer\.(query|key|value)\.bias$"
)


def cast_matrices(block: PyTree, name: str) -> PyTree:
    """A block with its matrices converted for computation, and all other parameters as they are.

    Call it inside the layer: then only one layer's copy exists at a time, and gradients of the parameters are float32.

    Args:
      block: one layer's parameters.
      name: a ``dtype`` of ``LanguageModelConfig``; "float32" converts nothing, so that parameters of any type can run.
    """
    if name == "float32":
        return block
    dtype = jnp.dtype(name)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if _MATRICES.search(path_name(path)) else leaf, block
    )
