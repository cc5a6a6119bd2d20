"""Loss and gradients of a batch, at once or as a sum over microbatches, which needs less memory."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.models.losses import STATE_NORM, Batch, loss_and_state, state_norms, where_diverged
from nl_jax.parallel.microbatches import split_batch
from nl_jax.trees import PyTree


def loss_and_gradients(
    model: PyTree, batch: Batch, accumulate: int = 1
) -> tuple[Float[Array, ""], PyTree, dict[str, Array]]:
    """The `mean_loss` of a batch, its gradients, and `where_diverged` and `state_norms` of the states after it.

    Args:
        model: the parameters.
        batch: as for `mean_loss`.
        accumulate: number of microbatches into which the batch is split. They run one after the other. Each counts by
            its targets with mask 1, and gradients are summed in float32 (or wider), so that the result does not depend
            on this number but for rounding.

    Raises:
        ValueError: if the batch cannot be split so (`split_batch`).
    """
    if accumulate == 1:
        (loss, state), gradients = jax.value_and_grad(loss_and_state, has_aux=True)(model, batch)
        return loss, gradients, _about(model, state)
    mask = batch.get("mask")
    targets = jnp.asarray(batch["targets"].size, jnp.float32) if mask is None else jnp.sum(mask)

    def add(sums: PyTree, part: Batch) -> tuple[PyTree, Any]:
        (loss, state), gradients = jax.value_and_grad(loss_and_state, has_aux=True)(model, part, targets)
        sums = jax.tree.map(lambda total, g: total + g.astype(total.dtype), sums, (loss, gradients))
        return sums, _about(model, state)

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), model)
    (loss, gradients), found = jax.lax.scan(add, (jnp.zeros(()), zeros), split_batch(batch, accumulate))
    return loss, jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, model), _of_all(found)


def _about(model: PyTree, state: PyTree) -> dict[str, Array]:
    return {**where_diverged(model, state), **state_norms(model, state)}


def _of_all(found: dict[str, Array]) -> dict[str, Array]:
    """What `where_diverged` and `state_norms` say of all microbatches together."""
    layers = found["diverged_layer"]
    first = jnp.min(jnp.where(layers < 0, jnp.iinfo(layers.dtype).max, layers))
    joined = {"diverged_layer": jnp.where(jnp.all(layers < 0), -1, first)}
    if "diverged_levels" in found:
        bits = found["diverged_levels"]
        joined["diverged_levels"] = jax.lax.reduce(bits, jnp.zeros((), bits.dtype), jax.lax.bitwise_or, (0,))
    if STATE_NORM in found:
        joined[STATE_NORM] = jnp.sqrt(jnp.mean(jnp.square(found[STATE_NORM])))
    return joined
