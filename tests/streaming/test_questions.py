"""Answers after a prefix that is read once are those after the whole text, read anew."""

import numpy as np
import pytest
from flax import nnx

from nl_jax.data import ByteTokenizer
from nl_jax.models import LanguageModel, named_config
from nl_jax.pretrained import StackedLevel
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.answers import likeliest, read_prefix
from nl_jax.streaming.generation import sample
from nl_jax.streaming.questions import answered


@pytest.fixture(scope="module")
def model():
    return LanguageModel(named_config("transformer", "tiny", num_layers=2), rngs=nnx.Rngs(0))


PROMPTS, ANSWERS = [[1, 2, 3], [7, 8], [4, 4]], [[5, 6], [9], [3, 2, 1]]
BEFORE = list(range(10, 30))


def test_a_prefix_is_what_stands_before(model):
    prefix = read_prefix(model, BEFORE, 16)
    whole = likeliest(model, [[*BEFORE, *prompt] for prompt in PROMPTS], ANSWERS)
    after = likeliest(model, PROMPTS, ANSWERS, prefix=prefix)
    np.testing.assert_array_equal(after.choice, whole.choice)
    np.testing.assert_allclose(after.nats, whole.nats, rtol=1e-4)
    best = [ANSWERS[i] for i in whole.choice]
    np.testing.assert_allclose(answered(prefix, PROMPTS, best, batch_size=2).nats, whole.nats, rtol=1e-4)


def test_exact_is_what_greedy_sampling_gives(model):
    prefix = read_prefix(model, BEFORE, 32)
    greedy = [list(sample(model, [*BEFORE, *prompt], num_tokens=3, temperature=0.0)) for prompt in PROMPTS]
    assert answered(prefix, PROMPTS, greedy).exact.tolist() == [True] * 3
    other = [greedy[0], [*greedy[1][:2], greedy[1][2] ^ 1], [greedy[2][0] ^ 1, *greedy[2][1:]]]
    assert answered(prefix, PROMPTS, other).exact.tolist() == [True, False, False]


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 2.0, "ridge": 0.01},
        {"learning_rate": 0.01, "ridge": 0.1, "rule": "adam", "protects": True, "matrices": ("gate", "up", "down")},
        {"learning_rate": 0.3, "ridge": 0.1, "rule": "gradient_descent", "protects": True},
    ],
    ids=lambda options: options.get("rule", "preconditioned"),
)
def test_protected_texts_are_not_learned_and_keep_their_answers(model, options):
    """Steps for a new text then avoid the directions of the protected texts' inputs."""
    level = StackedLevel("fast", blocks=(1,), **options)
    protected, new = ["the sky is blue and wide"] * 4, ["12345 67890 2468"] * 4

    def learner():
        return ContinualLearner(model, ByteTokenizer(), [level], chunk=32, batch_size=4)

    plain, safe = learner(), learner()
    before = plain.score(protected).loss
    safe.protect(protected)
    assert safe.score(protected).loss == pytest.approx(before, abs=1e-6)
    changes = []
    for each in (plain, safe):
        loss = each.score(new).loss
        for _ in range(8):
            each.learn(new)
        assert each.score(new).loss < loss - 0.2
        changes.append(abs(each.score(protected).loss - before) / (loss - each.score(new).loss))
    assert changes[1] < 0.7 * changes[0]
