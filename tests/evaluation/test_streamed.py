"""Greedy answers after texts read in parts: the same as reading and generating in one piece, for every model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax import Diverged
from nl_jax.evaluation import greedy_answers, label_is_right, read_text, streamed, substring_score
from nl_jax.models import LanguageModel, LanguageModelConfig, read
from nl_jax.streaming.generation import sample

MODELS = {
    "delta_net": {"mixer": "delta_net"},
    "hope": {"mixer": "self_modifying_titans"},
    "attention": {"mixer": "attention", "context_length": 48},
    "online": {"mixer": "delta_net", "cms_periods": (8, 16), "cms_regime": "online"},
}
LENGTH = 45


@functools.cache
def model_of(name):
    sizes = {"vocab_size": 11, "width": 8, "num_layers": 1, "num_heads": 2, "mlp_hidden": 8, "chunk_size": 4}
    return LanguageModel(LanguageModelConfig(**sizes, **MODELS[name]), rngs=nnx.Rngs(0))


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(11, size=(3, LENGTH), dtype=np.int32)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(streamed, "PART", 16)


def cut(tokens, size):
    return (tokens[:, begin : begin + size] for begin in range(0, tokens.shape[1], size))


@pytest.mark.parametrize("name", ["delta_net", "attention", "online", pytest.param("hope", marks=pytest.mark.slow)])
def test_the_logits_are_those_of_reading_all_at_once(name, tokens, small_parts):
    model = model_of(name)
    # what follows the last token is no target of what was learned before it
    filled = tokens if name != "online" else np.pad(tokens, ((0, 0), (0, -LENGTH % 8)))
    whole = read(model, jnp.asarray(filled))[0][:, LENGTH - 1]
    for size in (7, LENGTH):
        np.testing.assert_allclose(read_text(model, cut(tokens, size)).logits, whole, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("length", [1, 16, 17])
@pytest.mark.parametrize("name", ["delta_net", pytest.param("online", marks=pytest.mark.slow)])
def test_parts_of_all_sizes_are_read(name, length, tokens, small_parts):
    model, tokens = model_of(name), tokens[:, :length]
    filled = tokens if name != "online" else np.pad(tokens, ((0, 0), (0, -length % 8)))
    whole = read(model, jnp.asarray(filled))[0][:, length - 1]
    np.testing.assert_allclose(read_text(model, cut(tokens, 5)).logits, whole, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["delta_net", "attention", pytest.param("hope", marks=pytest.mark.slow)])
def test_answers_are_those_of_greedy_sampling(name, tokens, small_parts):
    model = model_of(name)
    alone = [list(sample(model, row, num_tokens=6, temperature=0.0)) for row in tokens]
    assert greedy_answers(model, cut(tokens, 10), num_tokens=6) == alone
    assert greedy_answers(model, cut(tokens, 10), num_tokens=6, length=LENGTH + 6) == alone
    end = alone[0][2]
    ended = greedy_answers(model, cut(tokens, 10), num_tokens=6, ends=(end,))
    assert ended == [row[: row.index(end)] if end in row else row for row in alone]


def test_logits_that_are_not_finite_and_no_tokens_are_refused(tokens):
    model = model_of("attention")
    with pytest.raises(ValueError, match="a text without tokens"):
        read_text(model, [])
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model)
    with pytest.raises(Diverged, match=f"after {LENGTH} tokens"):
        read_text(broken, [tokens])


def test_scores_of_answers():
    assert substring_score(" 1234567, 7654321.", ["7654321", "1234567"]) == 1
    assert substring_score("ABC", ["abc", "d"]) == 0.5
    rooms = ("office", "garden", "kitchen")
    assert label_is_right("The Office. No, the garden.", "office", rooms, "Where is Mary?")
    assert not label_is_right("office or garden", "office", rooms, "Where is Mary?")
    assert label_is_right("office, not garden", "office", rooms, "Where was it before the garden?")
    assert not label_is_right("", "office", rooms, "Where is Mary?")
