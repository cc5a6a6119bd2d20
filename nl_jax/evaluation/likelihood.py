"""Bits per byte of a model on a text, and bits per token by position."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from nl_jax.data import EvaluationSet
from nl_jax.models.losses import Batch, token_losses
from nl_jax.parallel import place_batch
from nl_jax.trees import PyTree


@jax.jit
def _total_nats(model: PyTree, batch: Batch) -> Float[Array, ""]:
    return jnp.sum(token_losses(model, batch) * batch["mask"])


def evaluate(model: PyTree, data: EvaluationSet, mesh: Mesh) -> float:
    """Bits per byte of a model on a fixed set of batches: summed loss in nats / ln 2 / bytes of text.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack
        >>> from nl_jax.evaluation import evaluate
        >>> from nl_jax.parallel import parse_mesh
        >>> uniform = jax.tree_util.Partial(lambda tokens, state=None: (jnp.zeros((*tokens.shape, 512)), state))
        >>> data = evaluation_batches(pack([Document("a", b"hello")] * 2, ByteTokenizer()), batch_size=1, seq_len=4)
        >>> mesh = parse_mesh("data:1", jax.devices()[:1])
        >>> round(evaluate(uniform, data, mesh), 3)  # 9 bits for each of 12 tokens, which cover 10 bytes
        10.8
    """
    batches = (place_batch(mesh, batch) for batch in data.batches)
    with jax.set_mesh(mesh):
        nats = math.fsum(float(_total_nats(model, batch)) for batch in batches)  # float64, on the host
    return nats / math.log(2) / data.num_bytes


@functools.partial(jax.jit, static_argnames="mesh")
def _nats_by_position(model: PyTree, batch: Batch, mesh: Mesh) -> Float[Array, " T"]:
    nats = jnp.sum(token_losses(model, batch) * batch["mask"], axis=0)
    # every process reads all of it, also what the devices of others have computed
    return jax.lax.with_sharding_constraint(nats, NamedSharding(mesh, PartitionSpec()))


def bits_by_position(model: PyTree, data: EvaluationSet, mesh: Mesh) -> Float[np.ndarray, " T"]:
    """Mean loss in bits at each position of a sequence over a fixed set of batches; NaN at positions without target.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack
        >>> from nl_jax.evaluation import bits_by_position
        >>> from nl_jax.parallel import parse_mesh
        >>> uniform = jax.tree_util.Partial(lambda tokens, state=None: (jnp.zeros((*tokens.shape, 512)), state))
        >>> data = evaluation_batches(pack([Document("a", b"hello")] * 2, ByteTokenizer()), batch_size=1, seq_len=4)
        >>> print(bits_by_position(uniform, data, parse_mesh("data:1", jax.devices()[:1])).round(3))
        [9. 9. 9. 9.]
    """
    batches = (place_batch(mesh, batch) for batch in data.batches)
    with jax.set_mesh(mesh):
        nats = sum(np.asarray(_nats_by_position(model, batch, mesh), np.float64) for batch in batches)
    targets = sum(batch["mask"].sum(axis=0, dtype=np.float64) for batch in data.batches)
    return np.divide(nats, targets * math.log(2), out=np.full(targets.shape, np.nan), where=targets > 0)


def octaves(by_position: Float[np.ndarray, " T"], first: int = 64) -> list[tuple[int, float]]:
    """Means over the first ``first`` positions, the next as many, the next twice as many, ..., each with its end.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.evaluation import octaves
        >>> octaves(np.array([4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0]), first=2)
        [(2, 4.0), (4, 3.0), (8, 2.0)]
    """
    ends = [first]
    while ends[-1] < len(by_position):
        ends.append(2 * ends[-1])
    return [
        (min(end, len(by_position)), float(np.nanmean(by_position[start:end])))
        for start, end in zip([0, *ends], ends, strict=False)
    ]
