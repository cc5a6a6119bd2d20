"""An auto-encoder: reads a sequence, and says what stood at each position from the state at the last one alone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.errors import InputError
from nl_jax.models.config import LanguageModelConfig
from nl_jax.models.language_model import LanguageModel
from nl_jax.modules.layers import linear


class AutoEncoder(nnx.Module):
    """Reconstructs a sequence from one vector: ``logits, state = model(tokens)``.

    The encoder is a `LanguageModel`, of which the residual stream at the last token is taken. A fixed code of each
    position is added to it, and an MLP decodes each position by itself: twice norm, linear and GELU, all of the model's
    width, then the language model's final norm and logits.

    Args:
      config: of the language model; its continuum memory must not learn in context.

    Raises:
      InputError: if it does, or if the width is odd.

    References:
      The model for MAD's compression task (Poli et al., `Mechanistic Design and Scaling of Hybrid Architectures
      <https://arxiv.org/abs/2403.17844>`_, 2024).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.models import AutoEncoder, named_config
      >>> config = named_config("transformer", "tiny", num_layers=1)
      >>> model = lambda tokens: AutoEncoder(config, rngs=nnx.Rngs(0))(tokens)
      >>> logits, _ = jax.eval_shape(model, jnp.zeros((2, 5), jnp.int32))
      >>> logits.shape  # of every token, from the one vector of its sequence
      (2, 5, 257)
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        if config.cms_regime != "outer" or config.width % 2:
            given = f"cms_regime={config.cms_regime!r} and width={config.width}"
            raise InputError(f"an auto-encoder of {given}: expected 'outer' and an even width")
        self.config, width = config, config.width
        self.encoder = LanguageModel(config, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(width, epsilon=config.norm_epsilon, rngs=rngs) for _ in range(2)])
        self.linears = nnx.List([linear(width, width, bias=0.0, rngs=rngs) for _ in range(2)])

    def init_state(self, batch_size: int) -> Any:
        """The state of the encoder before the first token."""
        return self.encoder.init_state(batch_size)

    def __call__(
        self, tokens: Int[Array, "batch time"], state: Any = None
    ) -> tuple[Float[Array, "batch time vocab"], Any]:
        """Returns the logits of each token itself, which depend on all tokens, and the encoder's last state."""
        x, state = self.encoder.read_blocks(self.encoder.embedded(tokens), state)
        x = x[:, -1:] + position_codes(*x.shape[1:]).astype(x.dtype)
        for norm, layer in zip(self.norms, self.linears, strict=True):
            x = jax.nn.gelu(layer(norm(x))).astype(x.dtype)
        return self.encoder.logits(x), state


def position_codes(time: int, width: int) -> Float[Array, "time width"]:
    """Sines, then cosines, of the position times frequencies from 1 to 1/10,000 (Vaswani et al., 2017)."""
    frequencies = 10_000.0 ** -jnp.linspace(0.0, 1.0, width // 2)
    angles = jnp.arange(time)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
