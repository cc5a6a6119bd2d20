"""Top-1 accuracy of a model, per target and per sequence."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from nl_jax.models.losses import Batch, read_batch
from nl_jax.parallel import place_batch
from nl_jax.trees import PyTree


class Accuracies(NamedTuple):
    """Shares of correct predictions, from 0 to 1."""

    positions: float  # of the targets
    sequences: float  # of the sequences, which count as correct if all of their targets are


@jax.jit
def _count_correct(model: PyTree, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits, _ = read_batch(model, batch)
    correct = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["mask"]
    whole = jnp.all(correct == batch["mask"], axis=-1) & jnp.any(batch["mask"], axis=-1)
    # the largest of logits that are not finite is not a prediction
    finite = jnp.all(jnp.isfinite(logits) | (batch["mask"] == 0)[..., None])
    return jnp.where(finite, jnp.sum(correct), jnp.nan), jnp.where(finite, jnp.sum(whole), jnp.nan)


def accuracies(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> Accuracies:
    """Top-1 accuracy over all batches: of targets with mask 1, and of sequences with all of these targets correct.

    Both are NaN if logits at a target are not finite.

    Args:
        model: as for `token_losses`.
        batches: batches of ``inputs``, ``targets`` and ``mask``, each ``[B, T]``; sequences without a target with mask
            1 do not count.
        mesh: the mesh over which the batches are split, by `batch_sharding`.
    """
    with jax.set_mesh(mesh):
        counts = [_count_correct(model, place_batch(mesh, batch)) for batch in batches]
    positions, sequences = zip(*counts, strict=True)
    targets = math.fsum(float(batch["mask"].sum()) for batch in batches)
    rows = math.fsum(float(batch["mask"].any(axis=-1).sum()) for batch in batches)
    return Accuracies(math.fsum(map(float, positions)) / targets, math.fsum(map(float, sequences)) / rows)


def accuracy(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> float:
    """Top-1 accuracy over the targets with mask 1 of all batches of ``inputs``, ``targets`` and ``mask``."""
    return accuracies(model, batches, mesh).positions
