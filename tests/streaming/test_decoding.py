"""Decoding from rotated keys gives what reading token by token gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.modules.quantized import quantize
from nl_jax.streaming import generation
from nl_jax.streaming.generation import (
    can_decode,
    checked_sampling,
    next_from_own,
    next_token,
    rotated_state,
    sample,
    with_room,
)

CONFIG = LanguageModelConfig("attention", 31, 16, 2, 4, 32, context_length=24)
LLAMA3 = (
    ("rope_type", "llama3"),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 16),
)
OPTIONS = {
    "plain": (),
    "grouped": (("num_kv_heads", 2),),
    "one head of keys": (("num_kv_heads", 1), ("head_dim", 6)),
    "Qwen": (("bias", True), ("qk_norm", True)),
    "scaled": (("rope_base", 500.0), ("rope_scaling", LLAMA3)),
}


def made(options=(), **changes):
    config = dataclasses.replace(CONFIG, mixer_options=options, **changes)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(model)  # biases and scales that do something
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [u + 0.3 * jax.random.normal(key, u.shape, u.dtype) for u, key in zip(leaves, keys, strict=True)]
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_are_those_of_one_reading(options):
    model = made(options)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 31, (3, 24)), jnp.int32)
    expected, _ = model(tokens)
    logits, state = model(tokens[:, :7])
    state = rotated_state(model, state)
    for t in range(7, 24):
        logits, state = model(tokens[:, t : t + 1], state)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], rtol=2e-5, atol=2e-5)
    assert state.position.tolist() == [24, 24]


def test_a_long_prefix_that_slid_through_the_state_is_there_whole():
    model = made()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 31, (1, 20)), jnp.int32)
    state = None
    for part in (tokens[:, :3], tokens[:, 3:11], tokens[:, 11:19]):
        _, state = model(part, state)
    logits, _ = model(tokens[:, 19:], rotated_state(model, state))
    np.testing.assert_allclose(logits[:, 0], model(tokens)[0][:, -1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_likeliest_tokens_are_those_of_reading(dtype):
    model = made(OPTIONS["grouped"], dtype=dtype)
    sampling, key = checked_sampling(0.0, None, 1.0, 31), jax.random.key(0)
    token, state, _ = next_token(model, jnp.asarray([[5, 6, 7]]), None, key, sampling)
    rotated, fast, slow = rotated_state(model, state), [token], [token]
    for _ in range(9):
        found, rotated, finite = next_from_own(model, fast[-1], rotated, key, sampling)
        fast.append(found)
        assert finite
        found, state, _ = next_token(model, slow[-1], state, key, sampling)
        slow.append(found)
    assert [int(t[0, 0]) for t in fast] == [int(t[0, 0]) for t in slow]


@pytest.mark.parametrize("quantized", [False, True])
def test_samples_are_those_without_it(monkeypatch, quantized):
    model = quantize(made()) if quantized else made()
    fast = list(sample(model, [1, 2, 3], num_tokens=21, temperature=1.0, seed=3))
    monkeypatch.setattr(generation, "can_decode", lambda model, length: False)
    assert list(sample(model, [1, 2, 3], num_tokens=21, temperature=1.0, seed=3)) == fast
    assert len(set(fast)) > 3


def test_a_text_longer_than_the_context_slides():
    model = made()
    assert can_decode(with_room(model, 24), 24)
    assert not can_decode(with_room(model, 25), 25)
    assert not can_decode(made((("convolution", True),)), 5)
    assert not can_decode(LanguageModel(dataclasses.replace(CONFIG, mixer="delta_net"), rngs=nnx.Rngs(0)), 5)
    assert len(list(sample(model, [1, 2, 3], num_tokens=40, seed=0))) == 40
    conv = made((("convolution", True),))
    with pytest.raises(ValueError, match="convolution cannot decode"):
        rotated_state(conv, conv.init_state(1))
