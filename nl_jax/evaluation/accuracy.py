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
    """Shares of correct predictions, from 0 to 1.

    Examples:
        >>> from nl_jax.evaluation import Accuracies
        >>> Accuracies(positions=0.75, sequences=0.5, classes=0.7).sequences
        0.5
    """

    positions: float  # of the targets
    sequences: float  # of the sequences, which count as correct if all of their targets are
    classes: float  # of the targets of each id, averaged over the ids of a batch, then over the batches


class _Counts(NamedTuple):
    """Of a batch: correct targets and sequences, and the mean accuracy of its ids."""

    positions: Float[Array, ""]
    sequences: Float[Array, ""]
    classes: Float[Array, ""]


@jax.jit
def _count_correct(model: PyTree, batch: Batch) -> _Counts:
    logits, _ = read_batch(model, batch)
    predictions = jnp.argmax(logits, axis=-1)
    correct = (predictions == batch["targets"]) * batch["mask"]
    whole = jnp.all(correct == batch["mask"], axis=-1) & jnp.any(batch["mask"], axis=-1)

    def by_class(ids: Array, weights: Array) -> Array:
        return jnp.bincount(ids.reshape(-1), weights.reshape(-1), length=logits.shape[-1])

    number, right = (by_class(batch["targets"], weights) for weights in (batch["mask"], correct))
    classes = number + by_class(predictions, batch["mask"]) > 0
    counts = _Counts(
        jnp.sum(correct), jnp.sum(whole), jnp.sum(right / jnp.maximum(number, 1)) / jnp.maximum(jnp.sum(classes), 1)
    )
    # the largest of logits that are not finite is not a prediction
    finite = jnp.all(jnp.isfinite(logits) | (batch["mask"] == 0)[..., None])
    return jax.tree.map(lambda count: jnp.where(finite, count, jnp.nan), counts)


def accuracies(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> Accuracies:
    """Top-1 accuracy over all batches: of targets with mask 1, of sequences with all of these targets correct, of ids.

    The accuracy of ids (macro accuracy) gives rare targets the weight of frequent ones. The ids of a batch are those
    that are a target or a prediction at a target; one that is no target has accuracy 0. Its mean depends on the size of
    the batches: MAD (Poli et al., 2024) has 128 sequences in each, and torchmetrics' ``MulticlassAccuracy``.

    All are NaN if logits at a target are not finite.

    Args:
        model: as for `token_losses`.
        batches: batches of ``inputs``, ``targets`` and ``mask``, each ``[B, T]``; sequences without a target with mask
            1 do not count.
        mesh: the mesh over which the batches are split, by `batch_sharding`.

    Examples:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from nl_jax.evaluation import accuracies
        >>> from nl_jax.parallel import parse_mesh
        >>> def always_one(tokens, state=None):
        ...     return jax.nn.one_hot(jnp.ones_like(tokens), 4), state
        >>> batch = {"inputs": np.zeros((2, 2), np.int32), "targets": np.array([[1, 1], [1, 2]], np.int32)}
        >>> batch["mask"] = np.ones((2, 2), np.float32)
        >>> accuracies(jax.tree_util.Partial(always_one), [batch], parse_mesh("data:1", jax.devices()[:1]))[:2]
        (0.75, 0.5)
    """
    if not batches:
        raise ValueError("batches has no entries; expected one or more")
    with jax.set_mesh(mesh):
        counts = [_count_correct(model, place_batch(mesh, batch)) for batch in batches]
    positions, sequences, classes = (math.fsum(map(float, found)) for found in zip(*counts, strict=True))
    targets = math.fsum(float(batch["mask"].sum()) for batch in batches)
    rows = math.fsum(float(batch["mask"].any(axis=-1).sum()) for batch in batches)
    return Accuracies(positions / targets, sequences / rows, classes / len(batches))


def accuracy(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> float:
    """Top-1 accuracy over the targets with mask 1 of all batches of ``inputs``, ``targets`` and ``mask``.

    Examples:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from nl_jax.evaluation import accuracy
        >>> from nl_jax.parallel import parse_mesh
        >>> def always_one(tokens, state=None):
        ...     return jax.nn.one_hot(jnp.ones_like(tokens), 4), state
        >>> batch = {"inputs": np.zeros((1, 4), np.int32), "targets": np.array([[1, 1, 2, 1]], np.int32)}
        >>> batch["mask"] = np.array([[1, 1, 1, 0]], np.float32)  # the last target does not count
        >>> round(accuracy(jax.tree_util.Partial(always_one), [batch], parse_mesh("data:1", jax.devices()[:1])), 3)
        0.667
    """
    return accuracies(model, batches, mesh).positions
