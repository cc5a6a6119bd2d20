"""The auto-encoder: what it computes, from what, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax import InputError
from nl_jax.models import AutoEncoder, named_config
from nl_jax.models.losses import mean_loss
from nl_jax.parameter_axes import logical_axes
from nl_jax.tasks import compression_batch
from nl_jax.training import init_state, make_optimizer, train_step
from nl_jax.trees import named_leaves

SIZES = {"width": 16, "mlp_hidden": 8, "chunk_size": 4, "context_length": 16, "num_heads": 2, "num_layers": 1}


apply = jax.jit(lambda model, tokens: model(tokens))


def small(name="transformer", **options):
    return AutoEncoder(named_config(name, "tiny", 7, **SIZES, **options), rngs=nnx.Rngs(0))


def test_it_equals_numpy():
    model = small()
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 0, 7)
    logits, state = apply(model, tokens)
    stream, last = jax.jit(lambda model: model.read_blocks(model.embedded(tokens)))(model.encoder)
    jax.tree.map(np.testing.assert_array_equal, state, last)
    x = np.asarray(stream)[:, -1:] + np.zeros((1, 5, 1))
    for t in range(5):
        for i in range(8):
            angle = t * 10_000.0 ** (-i / 7)
            x[:, t, i] += np.sin(angle)
            x[:, t, 8 + i] += np.cos(angle)

    def norm(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    for layer in model.linears:
        x = norm(x) @ np.asarray(layer.kernel[...])
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    expected = norm(x) @ np.asarray(model.encoder.embed.embedding[...]).T
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_every_answer_depends_on_every_token():
    model = small()
    tokens = jax.random.randint(jax.random.key(0), (1, 6), 0, 7)
    logits, _ = apply(model, tokens)
    for t in range(6):
        changed, _ = apply(model, tokens.at[0, t].set((tokens[0, t] + 1) % 7))
        assert float(jnp.min(jnp.max(jnp.abs(changed - logits), axis=-1))) > 1e-6


def test_all_parameters_have_named_axes():
    leaves = named_leaves(small("transformer"))
    assert {len(logical_axes(path) or ()) - leaf.ndim for path, leaf in leaves.items()} == {0}


def test_it_learns():
    optimizer = make_optimizer(learning_rate=1e-2, steps=30)
    state = init_state(small, optimizer)
    losses = []
    step = jax.jit(lambda state, batch: train_step(optimizer, state, batch))
    for i in range(30):
        state, outputs = step(state, compression_batch(0, i, batch_size=16, seq_len=4, vocab_size=4))
        losses.append(float(outputs["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert float(mean_loss(state.model, compression_batch(1, 0, batch_size=64, seq_len=4, vocab_size=4))) < 1.3


def test_models_that_it_cannot_take_are_refused():
    with pytest.raises(InputError, match="cms_regime='meta' and width=16: expected 'outer'"):
        small("hope", cms_regime="meta", cms_periods=(4, 8))
