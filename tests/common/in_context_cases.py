"""Small models that learn in context, for tests."""

import jax
import jax.numpy as jnp
from flax import nnx

from nl_jax.models import LanguageModel, LanguageModelConfig

VARIANTS = ("sequential", "nested", "nested_first_order", "independent")
PERIODS = (4, 8, 16)


def make(variant="sequential", regime="meta", mixer="delta_net", periods=PERIODS, wide=False, **fields):
    sizes = {
        "vocab_size": 11,
        "width": 8,
        "num_layers": 2,
        "num_heads": 1,
        "mlp_hidden": 6,
        "chunk_size": 2,
    }
    config = LanguageModelConfig(
        mixer, **sizes | fields, cms_periods=periods, cms_regime=regime, cms_variant=variant, cms_rate=0.5
    )
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda x: x.astype(jnp.float64), model) if wide else model


def text(time, batch=2):
    tokens = jax.random.randint(jax.random.key(1), (batch, time + 1), 0, 11)
    return tokens[:, :-1], tokens[:, 1:]
