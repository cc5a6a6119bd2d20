"""What self-modifying Titans make of a text and keep of it, to look at: keys, values, rates, retention and recall."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nl_jax.modules.mixers.generation import generate, generate_queries
from nl_jax.modules.mixers.parameters import Groups
from nl_jax.modules.mixers.self_modifying_titans import SelfModifyingTitans
from nl_jax.modules.mixers.stepping import MemoryState
from nl_jax.modules.mixers.subchunk import answer_at_boundary, weights_at_boundary


class Observation(NamedTuple):
    """What the memories of a mixer generated and kept of a text of T tokens, which they read in n subchunks.

    The axes in front are the batch; those that `nl_jax.models.observe_memories` returns have the layers there.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer, observe
      >>> titans = mixer("self_modifying_titans", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0))
      >>> seen = observe(titans, jnp.ones((1, 8, 8)))
      >>> seen.key.shape, seen.alpha.shape
      ((1, 2, 8, 4), (1, 2, 8))
    """

    key: Float[Array, "... heads T head_dim"]  # of unit length, as are values and queries
    value: Float[Array, "... heads T head_dim"]
    query: Float[Array, "... heads T head_dim"]
    eta: Float[Array, "... heads T"]  # learning rate of each token
    alpha: Float[Array, "... heads T"]  # retention of each token: 1 forgets nothing
    # Cosine of each token's value with the memory's answer to the token's key, before the first subchunk and after
    # each: 1 where the memory has all of the value. Before a token is read it shows what was known without it.
    recall: Float[Array, "... heads n+1 T"]
    # ‖ΔW‖ after each subchunk, of the memories that make projections (where there are any) and of the one that answers
    change: Float[Array, "... heads n groups"]
    ends: Int[np.ndarray, " n"]  # tokens read after each subchunk


def observe(mixer: SelfModifyingTitans, x: Float[Array, "batch time width"]) -> Observation:
    """Reads x from the start of a text, as ``mixer(x)`` does, and returns what happens inside.

    It keeps the weights after every subchunk (as many tokens as the smallest chunk), so it is for texts of some
    hundreds of tokens.

    Args:
      mixer: self-modifying Titans; `nl_jax.models.observe_memories` finds them in a language model.
      x: input of the mixer, one token or more.

    Examples:
      >>> from flax import nnx
      >>> mixer = SelfModifyingTitans(8, 2, chunk_size=4, rngs=nnx.Rngs(0))
      >>> seen = observe(mixer, jax.random.normal(jax.random.key(0), (1, 12, 8)))
      >>> seen.eta.shape, seen.recall.shape, seen.ends.tolist()
      ((1, 2, 12), (1, 2, 4, 12), [4, 8, 12])
    """
    size, state = mixer.chunking.subchunk, mixer.init_state(len(x))
    generated, memories = [], [_answering(mixer, state)]
    changes = []
    for start in range(0, x.shape[1], size):
        inputs, state = _read(mixer, x[:, start : start + size], state)
        generated.append(inputs)
        memories.append(_answering(mixer, state))
        changes.append(jnp.stack([_length(layers) for layers in _moved(mixer, state)], axis=-1))
    key, value, query, eta, alpha = (jnp.concatenate(part, axis=2) for part in zip(*generated, strict=True))
    recall = jnp.stack([_recall(mixer, weights, key, value) for weights in memories], axis=2)
    ends = np.minimum(size * np.arange(1, len(changes) + 1), x.shape[1])
    return Observation(key, value, query, eta, alpha, recall, jnp.stack(changes, axis=2), ends)


@jax.jit
def _read(
    mixer: SelfModifyingTitans, x: Float[Array, "batch C width"], state: MemoryState
) -> tuple[tuple[Array, ...], MemoryState]:
    """Keys, values, queries, η and α of a subchunk, and the state after it."""
    read_only = mixer.read_only(len(x))
    weights = weights_at_boundary(read_only.w0, state.memories)
    tokens, _ = mixer.project(x, state.conv)
    inputs = generate(mixer.projecting, mixer.groups, read_only, weights, tokens, self_targets=mixer.self_targets)
    query = generate_queries(mixer.projecting, weights, tokens)
    value, eta = inputs.targets[-1][:, :, 0], inputs.eta * (0.0 if mixer.frozen else 1.0)
    _, state = mixer(x, state)
    return (inputs.key, value, query, eta, inputs.alpha), state


def _answering(mixer: SelfModifyingTitans, state: MemoryState) -> Groups:
    """The weights of the memory that answers."""
    delta_w, w0 = state.delta_w[-1:], mixer.w0()
    return delta_w if w0 is None else jax.tree.map(jnp.add, w0[-1:], delta_w)


def _moved(mixer: SelfModifyingTitans, state: MemoryState) -> Groups:
    """W - W₀ of every group: what a text has changed."""
    if mixer.pulls_to_initial:
        return state.delta_w
    return jax.tree.map(jnp.subtract, state.delta_w, mixer.initial_weights())


def _length(layers: tuple[Array, ...]) -> Float[Array, "batch heads"]:
    return jnp.sqrt(sum(jnp.sum(w**2, axis=tuple(range(2, w.ndim))) for w in layers))


@jax.jit
def _recall(
    mixer: SelfModifyingTitans,
    weights: Groups,
    key: Float[Array, "batch heads T head_dim"],
    value: Float[Array, "batch heads T head_dim"],
) -> Float[Array, "batch heads T"]:
    answer = answer_at_boundary(mixer.groups[-1], mixer.read_only(len(key)), weights, key)
    lengths = jnp.linalg.norm(answer, axis=-1) * jnp.linalg.norm(value, axis=-1)
    return jnp.sum(answer * value, axis=-1) / jnp.maximum(lengths, 1e-6)
