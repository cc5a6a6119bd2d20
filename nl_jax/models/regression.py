"""A language model's blocks on tokens that are vectors: it predicts a number at each of them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.errors import InputError
from nl_jax.models.config import LanguageModelConfig
from nl_jax.models.language_model import LanguageModel
from nl_jax.modules.layers import linear


class InContextRegressor(LanguageModel):
    """A `LanguageModel` with linear maps in the place of its embedding and its head.

    It is called like one, ``predictions, state = model(tokens, state)``, with tokens ``[batch, time, channels]`` of
    floats and predictions ``[batch, time, 1]``.

    Args:
      config: of the blocks; ``vocab_size`` is the number of channels of a token.
      rngs: source of the initial weights.

    Raises:
      InputError: for blocks that learn in context, whose loss is of the next token.
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        if config.cms_regime != "outer":
            raise InputError(f"cms_regime={config.cms_regime!r}: expected 'outer' for regression")
        super().__init__(dataclasses.replace(config, vocab_size=1, tied_head=False), rngs=rngs)
        self.config = config
        read_in: Any = linear(config.vocab_size, config.width, rngs=rngs)
        self.embed = read_in

    def embedded(self, tokens: Float[Array, "batch time channels"]) -> Float[Array, "batch time width"]:
        """The residual stream before the first block."""
        return self.embed(tokens).astype(self._dtype)

    @property
    def _dtype(self) -> Any:
        return jnp.dtype(self.config.dtype)

    @staticmethod
    def target_losses(outputs: Float[Array, "batch time 1"], targets: Float[Array, "batch time"]) -> Array:
        """The squared error at each position, ``[batch, time]``, which training and `token_losses` take as the loss."""
        return jnp.square(outputs[..., 0] - targets)
