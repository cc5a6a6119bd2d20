"""`read` is the one way to run a model over a text, whether or not the model learns in context."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nl_jax.models.checks import check_like_tokens, check_tokens
from nl_jax.models.in_context import initial_state, read_and_learn


def read(
    model: Any,
    tokens: Int[Array, "batch time"],
    state: Any = None,
    *,
    targets: Int[Array, "batch time"] | None = None,
    mask: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time vocab"], Any]:
    """Returns the logits of the token after each token, and the state after the last.

    A model whose continuum memory learns in context learns from the targets of each chunk after it has read the chunk.
    Any other model ignores targets and mask.

    Args:
      model: a language model, or any function called as ``logits, state = model(tokens, state)``.
      tokens: for a model that learns in context, the length must be a multiple of its shortest period.
      state: the state that the previous call or `start` returned; None starts a text.
      targets: the tokens to learn from. The default is the next token of ``tokens``, without a target at the last
        position.
      mask: 1 for targets that count, 0 for others; None counts all.

    Raises:
      ValueError: if the length does not fit the periods, or if tokens, targets and mask do not fit each other.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, LanguageModelConfig, read
      >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 16, "chunk_size": 4}
      >>> levels = {"cms_periods": (4, 8), "cms_regime": "online"}  # feed-forward blocks that learn from what they read
      >>> config = LanguageModelConfig(mixer="delta_net", vocab_size=10, **sizes, **levels)
      >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
      >>> text = jnp.arange(8)[None]
      >>> logits, state = read(model, text)
      >>> again, state = read(model, text, state)  # a model that has learned from it before
      >>> logits.shape, bool(jnp.allclose(logits, again))
      ((1, 8, 10), False)
    """
    if not learns_in_context(model):
        return model(tokens, state)
    check_tokens(tokens)
    check_like_tokens(tokens, targets=targets, mask=mask)
    if targets is None:
        targets = jnp.roll(tokens, -1, axis=1)
        known = jnp.ones(tokens.shape).at[:, -1].set(0.0)
        mask = known if mask is None else mask * known
    return read_and_learn(model, tokens, targets, mask, state)


def start(model: Any, batch_size: int) -> Any:
    """The state with which `read` starts a text."""
    return initial_state(model, batch_size) if learns_in_context(model) else model.init_state(batch_size)


def learns_in_context(model: Any) -> bool:
    """Whether a model's continuum memory learns from what it reads."""
    return getattr(model, "learns_in_context", False)
