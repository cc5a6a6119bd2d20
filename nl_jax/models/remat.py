"""Rematerialisation: what the backward pass of a block recomputes instead of keeping it since the forward pass."""

from collections.abc import Callable
from typing import Any

import jax

# By name, what ``jax.checkpoint`` keeps: everything, nothing, or the results of products with parameters.
POLICIES: dict[str, Any] = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat(body: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """A block whose backward pass recomputes what the policy does not keep.

    Args:
      body: the block, as a pure function.
      policy: "none" keeps all that the backward pass needs, and recomputes nothing. "block" keeps the block's inputs
        only, so that a block is computed twice. "dots" keeps also the results of products without a batch's axis: those
        of activations with parameters, but not those inside a memory or attention.
    """
    return body if policy == "none" else jax.checkpoint(body, policy=POLICIES[policy])
