"""LSTM, read token by token: the recurrent network with a nonlinear state (Hochreiter and Schmidhuber, 1997)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.layers import linear
from nl_jax.modules.mixers.parameters import head_size
from nl_jax.modules.mixers.stepping import Chunking
from nl_jax.modules.mixers.token_by_token import read_tokens
from nl_jax.ops import matmul

FORGET_BIAS = 1.0  # sigmoid: 0.73; with 0 half of the cell would be lost at every token


class LSTMState(NamedTuple):
    """What the cell holds after the last token, in float32 (float64 with parameters in float64).

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> lstm = mixer("lstm", width=8, num_heads=1, rngs=nnx.Rngs(0))
      >>> _, state = lstm(jnp.ones((2, 5, 8)))
      >>> state.hidden.shape, state.cell.shape
      ((2, 8), (2, 8))
    """

    hidden: Float[Array, "batch width"]
    cell: Float[Array, "batch width"]


class LSTM(nnx.Module):
    """``c ← σ(f) c + σ(i) tanh(g)``, ``h = σ(o) tanh(c)``, with (i, f, g, o) = x W + h R + b, as a sequence mixer.

    The output is a projection of h. Tokens are read one after the other: a text of T tokens takes T steps, each with a
    product of [batch, width] and [width, 4 width].

    Args:
      width: of input, state and output.
      num_heads: must divide width, as for every mixer; the cell itself has no heads.
      chunk_size: tokens between two states that the backward pass keeps; it changes no result.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, or a chunk size below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import LSTM
      >>> lstm = LSTM(8, 1, rngs=nnx.Rngs(0))
      >>> y, state = lstm(jnp.ones((1, 6, 8)), lstm.init_state(1))
      >>> y.shape, state.hidden.shape, state.cell.shape
      ((1, 6, 8), (1, 8), (1, 8))
    """

    def __init__(self, width: int, num_heads: int, *, chunk_size: int = 64, output_scale: float = 1.0, rngs: nnx.Rngs):
        head_size(width, num_heads)
        self.chunking = Chunking((chunk_size,), 1, keeps_boundary=False)
        self.gates = linear(width, 4 * width, bias=0.0, rngs=rngs)
        self.recurrent = linear(width, 4 * width, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)
        bias: Any = self.gates.bias
        bias[...] = bias[...].at[width : 2 * width].set(FORGET_BIAS)

    def init_state(self, batch_size: int) -> LSTMState:
        """The state before the first token: zeros."""
        kernel = self.recurrent.kernel[...]
        shape, dtype = (batch_size, kernel.shape[0]), jnp.promote_types(kernel.dtype, jnp.float32)
        return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def __call__(
        self, x: Float[Array, "batch time width"], state: LSTMState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], LSTMState]:
        """Reads the tokens of x; ``state=None`` starts a text. There are no boundaries to be at.

        Any number of tokens in any number of calls gives the same outputs and state as one call, up to rounding. The
        state keeps its types; no tokens give no outputs, and the state as it was.
        """
        state = self.init_state(len(x)) if state is None else state
        if x.shape[1] == 0:
            return self.output(x), state
        wide = jnp.promote_types(self.recurrent.kernel[...].dtype, jnp.float32)
        recurrent, bias = self.recurrent.kernel[...], self.gates.bias
        assert bias is not None
        inputs = matmul(x.reshape(-1, x.shape[-1]), self.gates.kernel[...]).astype(wide) + bias[...].astype(wide)
        inputs = inputs.reshape(*x.shape[:2], inputs.shape[-1])

        def step(state: LSTMState, inputs: Array) -> tuple[LSTMState, Array]:
            gates = inputs + matmul(state.hidden, recurrent).astype(wide)
            enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * state.cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return LSTMState(hidden, cell), hidden

        begun = jax.tree.map(lambda u: u.astype(wide), state)
        new, hidden = read_tokens(step, begun, inputs, self.chunking.subchunk)
        new = jax.tree.map(lambda u, before: u.astype(before.dtype), new, state)
        return self.output(hidden.astype(x.dtype)), new
