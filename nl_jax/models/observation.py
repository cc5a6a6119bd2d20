"""Looks into the memories of a language model while it reads a text."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int

from nl_jax.models.language_model import LanguageModel
from nl_jax.modules import Observation, SelfModifyingTitans, observe


def observe_memories(model: LanguageModel, tokens: Int[jax.Array, " T"]) -> Observation:
    """What the self-modifying memories of each layer generate and keep of a text, from its first token on.

    Args:
      model: a model whose mixer is ``self_modifying_titans``, such as Hope, and whose CMS does not learn in context.
      tokens: one text of some hundreds of tokens.

    Returns:
      The observations of all layers, which are the first axis of each field but ``ends``.

    Raises:
      ValueError: for a model with another mixer, or whose CMS learns in context.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, named_config, observe_memories
      >>> config = named_config("hope", "tiny", width=8, num_layers=1, num_heads=2, mlp_hidden=8, chunk_size=4)
      >>> observe = lambda tokens: observe_memories(LanguageModel(config, rngs=nnx.Rngs(0)), tokens)
      >>> seen = jax.eval_shape(observe, jnp.arange(12))
      >>> seen.eta.shape, seen.recall.shape  # layers, heads, tokens; recall before the first chunk and after each
      ((1, 2, 12), (1, 2, 4, 12))
    """
    if not isinstance(model.blocks.mixer, SelfModifyingTitans):
        raise ValueError(f"mixer {model.config.mixer!r}: expected a model with 'self_modifying_titans'")
    if model.learns_in_context:
        raise ValueError(f"cms_regime={model.config.cms_regime!r}: expected 'outer', whose blocks a text leaves alone")
    x, layers = model.embedded(jnp.asarray(tokens)[None]), []
    for layer in range(model.config.num_layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.blocks)
        layers.append(observe(block.mixer, block.mixer_norm(x).astype(x.dtype)))
        x = jax.jit(lambda block, x: block(x)[0])(block, x)
    stacked: Any = [jnp.concatenate(parts) for parts in zip(*(seen[:-1] for seen in layers), strict=True)]
    return Observation._make([*stacked, layers[0].ends])
