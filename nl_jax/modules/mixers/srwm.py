"""The self-referential weight matrix, which makes its own keys, queries and learning rates (Irie et al., 2022)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Architecture, limit_norm
from nl_jax.memory.guards import LARGEST_STATE
from nl_jax.modules.layers import CausalConv, linear
from nl_jax.modules.mixers.initial_memories import InitialMemories
from nl_jax.modules.mixers.parameters import head_size, over_batch
from nl_jax.modules.mixers.stepping import Chunking, MemoryState
from nl_jax.modules.mixers.token_by_token import read_tokens
from nl_jax.ops import matmul

RATES = 4  # a learning rate for each of the blocks that make y, q, k, and the rates themselves
LARGEST_SCORE = 1e4  # of what φ takes; at 1e15 a score that a compiler computes twice exceeds its own maximum by 1e8


class SelfReferentialMatrix(nnx.Module):
    """One matrix per head that answers each token and rewrites itself by the delta rule, as a sequence mixer.

    With φ = softmax over a head's channels, x a head's input and W [d, 3 d + 4], which starts at learned weights:

        (y, q, k, β) = φ(x) W,    W ← W + φ(k)ᵀ (σ(β) ∘ (φ(q) - φ(k)) W)

    The row vector (φ(q) - φ(k)) W is the new value minus the present one; each of the four rates in β belongs to the
    columns that make y, q, k or β (arXiv 2202.05780, Eq. 5-8). Tokens are read one after the other: a text of T tokens
    takes T steps, each with two products of a vector and W, and one write.

    Departures: x is a projection of the token and of the three before it (a width-4 convolution), as in every mixer
    here; a root mean square norm of each head's answer precedes the output projection; the Frobenius norm of W is
    limited to 1,000, since the rule has no bound of its own, and each channel of x to 10,000 in size.

    Args:
      width: of input and output.
      num_heads: must divide width; every head has a matrix of its own.
      chunk_size: tokens between two states that the backward pass keeps; it changes no result.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, or a chunk size below 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import SelfReferentialMatrix
      >>> mixer = lambda x: SelfReferentialMatrix(8, 2, rngs=nnx.Rngs(0))(x)
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape
      (1, 8, 8)
    """

    def __init__(self, width: int, num_heads: int, *, chunk_size: int = 64, output_scale: float = 1.0, rngs: nnx.Rngs):
        self.num_heads, self.head_dim = num_heads, head_size(width, num_heads)
        self.chunking = Chunking((chunk_size,), 1, keeps_boundary=False)
        self.query = linear(width, width, rngs=rngs)
        self.conv = CausalConv(width, rngs=rngs)
        size = self.head_dim
        initial = InitialMemories(num_heads, Architecture(size, 3 * size + RATES), rngs=rngs)
        # φ averages rows, so entries of size 1 make softmaxes that differ between tokens; rates start at 1/2
        start = jax.random.normal(rngs.params(), (num_heads, size, 3 * size + RATES), jnp.float32)
        initial.layers[0][...] = start.at[..., 3 * size :].set(0.0)
        self.memories = nnx.List([initial])
        self.output_norm = nnx.RMSNorm(size, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    def init_state(self, batch_size: int) -> MemoryState:
        """The state before the first token: the learned matrix of each head, [key, answers]."""
        weights = self.memories[0].layers[0][...]
        dtype = jnp.promote_types(weights.dtype, jnp.float32)
        start = jnp.array(over_batch(weights.astype(dtype), batch_size))
        conv = self.conv.init_state(batch_size).astype(dtype)
        return MemoryState(conv, ((start,),), (), (), None, jnp.zeros((), jnp.int32))

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x, as ``MemoryMixer`` does; ``state=None`` starts a text."""
        batch, time, width = x.shape
        state = self.init_state(batch) if state is None else state
        if time == 0:
            return self.output(x), state
        wide = jnp.promote_types(self.query.kernel[...].dtype, jnp.float32)
        projected, conv = self.conv(self.query(x), state.conv)
        scores = jnp.clip(projected.astype(wide), -LARGEST_SCORE, LARGEST_SCORE)
        keys = jax.nn.softmax(scores.reshape(batch, time, self.num_heads, self.head_dim)).astype(projected.dtype)
        weights, y = read_tokens(_learn, state.delta_w[0][0].astype(wide), keys, self.chunking.subchunk)
        new = MemoryState(conv, ((weights,),), (), (), None, self.chunking.wrap(state.position + time))
        new = jax.tree.map(lambda u, before: u.astype(before.dtype), new, state)
        return self.output(self.output_norm(y).reshape(batch, time, width).astype(x.dtype)), new


def _learn(
    weights: Float[Array, "batch heads d columns"], key: Float[Array, "batch heads d"]
) -> tuple[Float[Array, "batch heads d columns"], Float[Array, "batch heads d"]]:
    """The matrix after one token, and its answer to it."""
    size, wide = key.shape[-1], weights.dtype

    def read(keys):  # in the tokens' type
        return jnp.squeeze(matmul(keys.astype(key.dtype)[..., None, :], weights), -2).astype(wide)

    y, query, own_key, rates = jnp.split(read(key), [size, 2 * size, 3 * size], axis=-1)
    query, own_key = jax.nn.softmax(query), jax.nn.softmax(own_key)
    counts = jnp.array([size] * 3 + [RATES])
    rates = jnp.repeat(jax.nn.sigmoid(rates), counts, axis=-1, total_repeat_length=weights.shape[-1])
    write = rates * read(query - own_key)
    weights = limit_norm(weights + own_key[..., None] * write[..., None, :], LARGEST_STATE, (-2, -1))
    return weights, y
