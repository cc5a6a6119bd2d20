"""Top-1 accuracy of a model, over targets and over whole sequences."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from nl_jax.models.losses import Batch, read_batch
from nl_jax.parallel import batch_sharding
from nl_jax.trees import PyTree


class Accuracies(NamedTuple):
    """Shares, from 0 to 1, of what a model gets right."""

    positions: float
    sequences: float


@jax.jit
def _count_correct(model: PyTree, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits, _ = read_batch(model, batch)
    correct = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["mask"]
    whole = jnp.all(correct == batch["mask"], axis=-1) & jnp.any(batch["mask"], axis=-1)
    # where logits are not finite the first of them is no answer
    finite = jnp.all(jnp.isfinite(logits) | (batch["mask"] == 0)[..., None])
    return jnp.where(finite, jnp.sum(correct), jnp.nan), jnp.where(finite, jnp.sum(whole), jnp.nan)


def accuracies(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> Accuracies:
    """Shares, over all batches, of the targets with mask 1 that come first, and of the sequences where all of them do.

    They are NaN where the logits that they are of are not finite.

    Args:
        model: as for `token_losses`.
        batches: of ``inputs``, ``targets`` and ``mask``, each ``[B, T]``; sequences with no target do not count.
        mesh: where the batches are put, as `batch_sharding` says.
    """
    put = functools.partial(jax.device_put, device=batch_sharding(mesh))
    positions, sequences = zip(*(_count_correct(model, put(batch)) for batch in batches), strict=True)
    targets = math.fsum(float(batch["mask"].sum()) for batch in batches)
    rows = math.fsum(float(batch["mask"].any(axis=-1).sum()) for batch in batches)
    return Accuracies(math.fsum(map(float, positions)) / targets, math.fsum(map(float, sequences)) / rows)


def accuracy(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> float:
    """Share of the targets with mask 1, over all batches of ``inputs``, ``targets`` and ``mask``, that come first."""
    return accuracies(model, batches, mesh).positions
