"""Small layers that several modules share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """``nnx.Linear`` as one product of two matrices, whatever the number of leading axes.

    With several of them XLA on CPU would copy its operands into transposed order in the backward pass, which took a
    tenth of a training step (BUILD_NOTES.md, D56).
    """

    def __call__(self, inputs: Float[Array, "... in"], out_sharding: Any = None) -> Float[Array, "... out"]:
        """Maps every vector; ``ValueError`` for vectors of another size."""
        size_in = self.kernel.shape[0]
        if inputs.shape[-1:] != (size_in,):
            raise ValueError(f"inputs has shape {inputs.shape}; expected a last axis of {size_in}")
        outputs = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def linear(size_in: int, size_out: int, *, rngs: nnx.Rngs, scale: float = 1.0, bias: float | None = None) -> Linear:
    """Linear map x [..., in] -> [..., out], weights of variance ``scale² / in``; without a bias unless one is given."""
    initial = variance_scaling(scale**2, "fan_in", "normal")
    if bias is None:
        return Linear(size_in, size_out, use_bias=False, kernel_init=initial, rngs=rngs)
    return Linear(size_in, size_out, kernel_init=initial, bias_init=nnx.initializers.constant(bias), rngs=rngs)


# Only the results of matrix products are kept for the backward pass: the rest is quicker to compute again than to keep.
remat_except_dots = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)


def unit_length(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """x divided by its L2 norm over the last axis; zero stays zero, and the gradient there is finite."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class CausalConv(nnx.Module):
    """Causal depthwise convolution over time, ``y_t = Σ_i kernel[i] x_{t-3+i}``; all taps start with equal variance."""

    width = 4  # tokens seen: the paper's (§8.2)

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (self.width, channels), jnp.float32) / self.width**0.5
        self.kernel = nnx.Param(kernel)

    def init_state(self, batch_size: int) -> Float[Array, "batch 3 channels"]:
        """The inputs before the first: zeros, in float32, or the kernel's dtype where that is wider."""
        kernel = self.kernel[...]
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        return jnp.zeros((batch_size, self.width - 1, kernel.shape[-1]), wide)

    def __call__(
        self, x: Float[Array, "batch time channels"], state: Float[Array, "batch 3 channels"]
    ) -> tuple[Float[Array, "batch time channels"], Float[Array, "batch 3 channels"]]:
        """Convolved x, and the last three inputs, in the dtype of the state."""
        time = x.shape[1]
        padded = jnp.concatenate([state.astype(x.dtype), x], axis=1)
        taps = [self.kernel[...][i] * padded[:, i : i + time] for i in range(self.width)]
        return taps[0] + taps[1] + taps[2] + taps[3], padded[:, time:].astype(state.dtype)


def start_as_induction(query: Linear, key: Linear, conv: CausalConv) -> None:
    """Sets the initial weights so that a token's key is the query of the token before, and its value is its own.

    A query then finds, from the first training step on, what followed the last tokens when they came before: an
    induction head (Olsson et al., 2022). Without this start models learn one late or, in short training, never
    (BUILD_NOTES.md, D13).

    Args:
      query, key: projections of equal sizes; key becomes a copy of query.
      conv: of the channels of query, key and value, in this order. Queries see the last three tokens with random taps,
        keys the three before the last with the same, values mostly their own.
    """
    (first, *taps), _, values = jnp.split(conv.kernel[...], 3, axis=-1)
    taps = (4 / 3) ** 0.5 * jnp.stack(taps)  # oldest first; of the variance of four
    own = jnp.zeros_like(values).at[-1].set(1.0)
    queries = jnp.concatenate([jnp.zeros_like(taps[:1]), taps])
    # a little of their own: the first token's key would else be zero, where the gradient of its length is huge
    keys = jnp.concatenate([taps, 0.1 * first[None]])
    conv.kernel[...] = jnp.concatenate([queries, keys, own + 0.3 * values], axis=-1)
    key.kernel[...] = query.kernel[...]
