"""8-bit weights: close to the weights that they stand for, exact for those of 4 bits, and equal rows and products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax import InputError
from nl_jax.models import LanguageModel, named_config
from nl_jax.modules.quantized import BLOCK, QuantizedEmbed, QuantizedLinear, QuantizedMatrix, quantize
from nl_jax.pretrained import StackedLevel, load_pretrained, stack_levels


@pytest.mark.parametrize("constant", [False, True])
def test_weights_are_off_by_half_a_step_at_most(constant):
    weights = jax.random.normal(jax.random.key(0), (3, 5, 2 * BLOCK))
    weights = jnp.full_like(weights, 0.3) if constant else weights
    blocks = weights.reshape(3, 5, 2, BLOCK)
    step = jnp.repeat((blocks.max(-1) - blocks.min(-1)) / 255, BLOCK, axis=-1)
    assert np.all(np.abs(QuantizedMatrix(weights).values() - weights) <= 0.5 * step + 1e-6)


def test_blocks_of_16_levels_are_exact():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 16, (7, 3, BLOCK))
    levels[..., :2] = 0, 15
    weights = jnp.asarray((levels * 0.013 - 0.1).reshape(7, -1), jnp.float32)
    np.testing.assert_allclose(QuantizedMatrix(weights).values(), weights, atol=1e-6)


def test_a_model_reads_as_with_the_weights_that_it_has():
    sizes = {"width": 64, "num_heads": 2, "mlp_hidden": 96, "num_layers": 3, "mixer_options": (("bias", True),)}
    model = LanguageModel(named_config("transformer", "tiny", **sizes), rngs=nnx.Rngs(0))
    quantized = quantize(model)
    assert isinstance(quantized.embed, QuantizedEmbed)
    assert isinstance(quantized.blocks.mixer.query, QuantizedLinear)
    bits = [leaf.dtype.itemsize * leaf.size for leaf in jax.tree.leaves(quantized)]
    assert sum(bits) < 0.4 * sum(4 * leaf.size for leaf in jax.tree.leaves(model))

    same = nnx.clone(model)  # in float32, with the values of the 8-bit weights
    same.embed.embedding[...] = quantized.embed.embedding
    for name in ("query", "key", "value", "output"):
        getattr(same.blocks.mixer, name).kernel[...] = getattr(quantized.blocks.mixer, name).kernel
    for name in ("gate", "up", "down"):
        getattr(same.blocks.cms.levels[0], name).kernel[...] = getattr(quantized.blocks.cms.levels[0], name).kernel
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 200, (2, 9)))
    whole, _ = jax.jit(lambda m: m(tokens))(quantized)
    expected, _ = jax.jit(lambda m: m(tokens))(same)
    np.testing.assert_allclose(whole, expected, atol=2e-4)
    first, state = quantized(tokens[:, :4])
    rest, _ = quantized(tokens[:, 4:], state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), expected, atol=2e-4)


def test_a_layer_whose_input_is_no_whole_block_stays():
    sizes = {"width": 64, "num_heads": 2, "mlp_hidden": 72, "num_layers": 2}
    model = quantize(LanguageModel(named_config("transformer", "tiny", **sizes), rngs=nnx.Rngs(0)))
    block = model.blocks.cms.levels[0]
    assert isinstance(block.gate, QuantizedLinear)
    assert not isinstance(block.down, QuantizedLinear)


def test_what_cannot_be_is_refused():
    sizes = {"width": 64, "num_heads": 2, "mlp_hidden": 96, "num_layers": 2}
    model = quantize(LanguageModel(named_config("transformer", "tiny", **sizes), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match="8-bit"):
        stack_levels(model, [StackedLevel("a", blocks=(0,))])
    with pytest.raises(InputError, match="weights='int4'"):
        load_pretrained("anywhere", weights="int4")
