"""Features of texts: hidden states against the model's own logits, means without padding, and what is kept on disk."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax import InputError
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.pretrained import cached_features, features, hidden_states, mean_features

CONFIG = LanguageModelConfig("attention", 40, 16, 3, 2, 24, context_length=32)
TEXTS = [[1, 2, 3], [], [4], list(range(5, 25)), [7, 8, 9, 10], list(range(40)) * 2]


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, rngs=nnx.Rngs(0))


def test_after_all_blocks_the_hidden_states_give_the_logits(model):
    tokens = jnp.array([TEXTS[3]])
    x = hidden_states(model, tokens, 3)
    logits = model.final_norm(x) @ model.embed.embedding[...].T
    np.testing.assert_allclose(logits, model(tokens)[0], atol=1e-4)
    np.testing.assert_array_equal(hidden_states(model, tokens, 0), model.embed.embedding[...][tokens])


@pytest.mark.parametrize("layer", [0, 2])
def test_means_are_those_of_each_text_alone(model, layer):
    found = mean_features(model, TEXTS, layer)
    for ids, row in zip(TEXTS, found, strict=True):
        read = jnp.array([ids[:32]], jnp.int32)  # as many as the model's context
        expected = np.mean(hidden_states(model, read, layer)[0], axis=0) if ids else np.zeros(16)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_features_are_kept_by_model_text_and_layer(model, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_SHARD", 4)
    first = cached_features(model, TEXTS, 1, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    np.testing.assert_array_equal(first, mean_features(model, TEXTS, 1))
    monkeypatch.setattr(features, "mean_features", lambda *_: pytest.fail("extracted again"))
    np.testing.assert_array_equal(cached_features(model, TEXTS, 1, tmp_path), first)
    monkeypatch.undo()
    monkeypatch.setattr(features, "_SHARD", 4)
    files[0].write_bytes(files[0].read_bytes()[:100])  # a damaged file is written anew
    np.testing.assert_array_equal(cached_features(model, TEXTS, 1, tmp_path), first)
    other = LanguageModel(CONFIG, rngs=nnx.Rngs(1))
    for change in ((other, TEXTS, 1), (model, TEXTS, 2), (model, [*TEXTS[:5], [1]], 1)):
        before = len(list(tmp_path.iterdir()))
        cached_features(*change, tmp_path)
        assert len(list(tmp_path.iterdir())) > before


def test_a_layer_that_is_not_there(model):
    with pytest.raises(InputError, match="layer=4: expected 0 to 3"):
        hidden_states(model, jnp.zeros((1, 2), jnp.int32), 4)
