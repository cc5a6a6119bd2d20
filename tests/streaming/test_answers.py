"""The likeliest answer is the one that reading all of them gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.models import LanguageModel, named_config
from nl_jax.streaming.answers import PIECE, likeliest

VOCAB = 23


def make(mixer):
    sizes = {"num_layers": 2, "width": 16, "num_heads": 2, "mlp_hidden": 24, "vocab_size": VOCAB, "context_length": 256}
    model = LanguageModel(named_config(mixer, "tiny", **sizes), rngs=nnx.Rngs(0))
    model.embed.embedding[...] *= 8.0  # so that answers differ
    return model


def questions(seed=0):
    """Prompts of two lengths, and answers of 2 or 3 tokens that end with token 0, some of which begin alike."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(1, VOCAB, length).tolist() for length in (5, 8, 5, 8, 8)]
    answers = [[*random.integers(1, 5, random.integers(1, 3)).tolist(), 0] for _ in range(14)]
    return prompts, answers


@jax.jit
def log_likelihoods(model, tokens):
    return jax.nn.log_softmax(model(tokens)[0].astype(jnp.float32))


def brute_force(model, prompts, answers, prefix=()):
    """Log-likelihood of every answer after every prompt, each read as one text of a fixed length."""
    length = len(prefix) + max(map(len, prompts)) + max(map(len, answers))
    rows = [[*prefix, *prompt, *answer] for prompt in prompts for answer in answers]
    table = np.zeros((len(rows), length), np.int32)
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = row
    found = np.asarray(log_likelihoods(model, table))
    sums = []
    for i, row in enumerate(rows):
        answer = answers[i % len(answers)]
        first = len(row) - len(answer)
        sums.append(sum(found[i, first + k - 1, token] for k, token in enumerate(answer)))
    return np.reshape(sums, (len(prompts), len(answers)))


@pytest.mark.parametrize("mixer", ["transformer", "delta_net"])
@pytest.mark.parametrize("before", [0, PIECE + 7])
def test_the_likeliest_is_that_of_all_answers(mixer, before):
    model, (prompts, answers) = make(mixer), questions()
    prefix = np.random.default_rng(1).integers(1, VOCAB, before).tolist()
    scores = brute_force(model, prompts, answers, prefix)
    found = likeliest(model, prompts, answers, batch_size=4, prefix=prefix)
    np.testing.assert_allclose(found.nats, -scores.max(axis=1), rtol=1e-4)
    chosen = np.take_along_axis(scores, found.choice[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, scores.max(axis=1), rtol=1e-4)
    assert len(set(found.choice)) > 1
    assert found.read <= len(prompts) * len(answers)


def test_answers_that_cannot_be_the_best_are_not_read():
    """An answer whose first token is likely is read alone where all others begin with unlikely tokens."""
    model, (prompts, _) = make("transformer"), questions()
    first = np.asarray(model(np.array(prompts[:1]))[0])[0, -1]
    order = np.argsort(-first)
    likely, unlikely = int(order[0]), [int(token) for token in order[-8:]]
    answers = [*([token, 0] for token in unlikely), [likely]]
    found = likeliest(model, prompts[:1], answers)
    assert found.choice[0] == len(answers) - 1
    assert found.read < len(answers)


@pytest.mark.parametrize(("prompts", "answers"), [([[]], [[1]]), ([[1]], []), ([[1]], [[1], []])])
def test_no_tokens_is_an_error(prompts, answers):
    with pytest.raises(ValueError, match="at least one token"):
        likeliest(make("transformer"), prompts, answers)
