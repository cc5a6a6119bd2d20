"""The loss of a model on a batch, and the place at which a state is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from nl_jax.models.chunk import all_finite
from nl_jax.models.in_context import learned
from nl_jax.models.reading import learns_in_context, read
from nl_jax.trees import PyTree, named_leaves

Batch = dict[str, Any]
STATE_NORM = "state_norm/mixers"


def token_losses(model: PyTree, batch: Batch) -> Float[Array, "B T"]:
    """The loss of each target of a batch with ``inputs`` and ``targets``, both int32 ``[B, T]``.

    It is the cross-entropy in nats, unless the model has a method ``target_losses(outputs, targets)`` of its own.
    """
    return _losses_and_state(model, batch)[0]


def read_batch(model: PyTree, batch: Batch) -> tuple[Float[Array, "B T vocab"], PyTree]:
    """Logits and final state of `read` on a batch.

    A model that learns in context learns from the targets with mask 1. If the batch has a ``read_mask``, float32
    ``[B, T]``, it learns from the next inputs where that is 1: of a task whose targets nobody tells it in a test.
    """
    if "read_mask" in batch:
        return read(model, batch["inputs"], mask=batch["read_mask"])
    return read(model, batch["inputs"], targets=batch["targets"], mask=batch.get("mask"))


def _losses_and_state(model: PyTree, batch: Batch) -> tuple[Float[Array, "B T"], PyTree]:
    logits, state = read_batch(model, batch)
    target_losses = getattr(model, "target_losses", optax.softmax_cross_entropy_with_integer_labels)
    return target_losses(logits.astype(jnp.float32), batch["targets"]), state


def mean_loss(model: PyTree, batch: Batch) -> Float[Array, ""]:
    """Mean of `token_losses`. If the batch has a ``mask``, float32 ``[B, T]``, only targets with mask 1 count."""
    return loss_and_state(model, batch)[0]


def loss_and_state(
    model: PyTree, batch: Batch, targets: Float[Array, ""] | None = None
) -> tuple[Float[Array, ""], PyTree]:
    """Returns `mean_loss` and the state after the batch.

    ``targets``, if given, is the number by which the sum of the losses is divided, in the place of the batch's own: the
    losses of the parts of a batch then add up to that of the batch, and a part may have no targets.
    """
    losses, state = _losses_and_state(model, batch)
    if targets is None:
        return jnp.average(losses, weights=batch.get("mask")), state
    return jnp.sum(losses * batch.get("mask", 1.0)) / targets, state


def first_diverged_layer(state: PyTree) -> Int[Array, ""]:
    """Index of the first layer whose memories are not finite, or -1 if all are, or if the layers are attention.

    Args:
        state: the state of a model; its floating-point leaves are ``[layers, ...]``.
    """
    # keys and values are no memory, and a check would keep those of all layers and all tokens
    leaves = [
        leaf
        for path, leaf in named_leaves(state).items()
        if path.rsplit(".", 1)[-1] not in ("keys", "values") and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    if not leaves:
        return jnp.asarray(-1)
    bad = jnp.stack([jnp.any(~jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves]).any(axis=0)
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1)


def where_diverged(model: PyTree, state: PyTree) -> dict[str, Int[Array, ""]]:
    """Says which parts of a state of `read` are not finite, in arrays, so that it works inside ``jit``.

    The results are the index of the first layer of the mixers (-1: none) and, for a CMS that learns in context, the sum
    of 2^i over its levels i.
    """
    if not learns_in_context(model):
        return {"diverged_layer": first_diverged_layer(state)}
    levels = [state.levels[f"cms_{i}"] for i in range(len(model.config.cms_periods))]
    bits = jnp.stack([~all_finite(level) for level in levels]) * 2 ** jnp.arange(len(levels))
    return {"diverged_layer": first_diverged_layer(state.levels["mixers"]), "diverged_levels": jnp.sum(bits)}


def state_norms(model: PyTree, state: PyTree) -> dict[str, Float[Array, ""]]:
    """How far the memories have moved from their initial weights in a text, as ``state_norm/mixers``.

    The norm is over all layers and heads, and the root of its mean square over sequences. Attention learns nothing, and
    has none.
    """
    mixers = state.levels["mixers"] if learns_in_context(model) else state
    moved = jax.tree.leaves(learned(mixers))
    if not moved:
        return {}
    return {STATE_NORM: optax.tree.norm(jax.lax.stop_gradient(moved)) / moved[0].shape[1] ** 0.5}
