"""Greedy continuations of many prompts are those of one prompt at a time."""

import pytest
from flax import nnx

from nl_jax.models import LanguageModel, named_config
from nl_jax.streaming.answers import read_prefix
from nl_jax.streaming.generation import sample
from nl_jax.streaming.greedy import continuations

PROMPTS = [[5, 9, 3], [7, 7, 1], [2, 4, 8]]


@pytest.fixture(scope="module")
def model():
    return LanguageModel(named_config("transformer", "tiny", num_layers=2), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("before", [[], [11, 12]])
def test_each_continuation_is_that_of_a_prompt_alone(model, before):
    expected = [list(sample(model, [*before, *prompt], num_tokens=6, temperature=0.0)) for prompt in PROMPTS]
    prefix = read_prefix(model, before, 16)
    found = continuations(prefix, PROMPTS, num_tokens=6, batch_size=2)
    assert found == expected
    end = expected[1][2]
    cut = [row[: row.index(end)] if end in row else row for row in expected]
    assert continuations(prefix, PROMPTS, num_tokens=6, ends={end}, batch_size=2) == cut


def test_prompts_of_different_lengths_are_refused(model):
    with pytest.raises(ValueError, match="different lengths"):
        continuations(read_prefix(model, [], 16), [[1], [1, 2]], num_tokens=2)
