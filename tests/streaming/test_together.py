"""What many texts give together is what each gives alone: likelihoods and continuations of every kind of model."""

import jax
import numpy as np
import pytest
from flax import nnx
from in_context_cases import make

from nl_jax.models import LanguageModel, named_config, read
from nl_jax.streaming import together
from nl_jax.streaming.answers import read_prefix
from nl_jax.streaming.generation import checked_sampling, sample
from nl_jax.streaming.together import continued, likelihoods

SIZES = {"vocab_size": 11, "width": 8, "num_heads": 1, "num_layers": 1, "mlp_hidden": 8, "chunk_size": 4}
KINDS = {
    "attention": lambda: LanguageModel(
        named_config("transformer", "tiny", context_length=16, **SIZES), rngs=nnx.Rngs(0)
    ),
    "memory": lambda: LanguageModel(named_config("gated_delta_net", "tiny", **SIZES), rngs=nnx.Rngs(0)),
    "in_context": lambda: make(regime="online", periods=(4,), num_layers=1),
}
TEXTS = [([3], [5, 1]), ([1, 2, 3, 4, 5, 6, 7], [8]), ([9, 9], [4, 4, 2, 7, 1, 0, 3, 3, 5]), ([2, 10], [6])]


jitted_read = jax.jit(read)


def kinds(*quick):
    """Kinds of models, of which all but the quick ones are slow."""
    marked = [pytest.param(k, marks=[] if k in quick else pytest.mark.slow, id=k) for k in KINDS]
    return pytest.mark.parametrize("model", marked, indirect=True)


@pytest.fixture(scope="module")
def model(request):
    return KINDS[request.param]()


def alone(model, begin, end):
    """Likelihood and greediness of one text, from the logits of all of its tokens."""
    ids = np.asarray([*begin, *end], np.int32)[None]
    unit = min(model.config.cms_periods)
    filled = np.pad(ids, ((0, 0), (0, -(ids.shape[1] - 1) % unit)))
    known = np.arange(filled.shape[1] - 1)[None] < ids.shape[1] - 1
    logits, _ = jitted_read(model, filled[:, :-1], targets=filled[:, 1:], mask=known.astype(np.float32))
    places = np.arange(len(begin) - 1, ids.shape[1] - 1)
    scores = jax.nn.log_softmax(logits[0, places])
    return float(scores[np.arange(len(end)), end].sum()), bool((scores.argmax(-1) == np.asarray(end)).all())


@kinds("memory", "in_context")
@pytest.mark.parametrize(("piece", "batch_size"), [(8, 3), pytest.param(256, 1, marks=pytest.mark.slow)])
def test_likelihoods_depend_neither_on_the_batch_nor_on_pieces(model, piece, batch_size, monkeypatch):
    monkeypatch.setattr(together, "PIECE", piece)
    monkeypatch.setattr(together, "FEW_LENGTHS", 8)
    first = int(jitted_read(model, np.full((1, 4), 3, np.int32))[0][0, 0].argmax())
    texts = [*TEXTS, ([3], [first])]
    expected = [alone(model, *text) for text in texts]
    assert expected[-1][1]
    found = dict(likelihoods(model, texts, batch_size=batch_size))
    assert sorted(found) == list(range(len(texts)))
    for i, (nats, right) in enumerate(expected):
        np.testing.assert_allclose(found[i].log_likelihood, nats, atol=2e-5)
        assert found[i].greedy == right


PROMPTS = [[3], [1, 2, 3, 4, 5, 6, 7], [9, 9], [2, 10, 4]]


@kinds("memory")
def test_continuations_are_those_of_each_prompt_alone(model):
    expected = [list(sample(model, prompt, num_tokens=6, temperature=0.0)) for prompt in PROMPTS]
    greedy = checked_sampling(0.0, None, 1.0, 11)
    found = dict(continued(model, PROMPTS, num_tokens=6, sampling=greedy, stopped=lambda _: False, batch_size=3))
    assert [found[i] for i in range(len(PROMPTS))] == expected
    end = expected[0][2]
    cut = [row[: row.index(end) + 1] if end in row else row for row in expected]
    found = dict(
        continued(model, PROMPTS, num_tokens=6, sampling=greedy, stopped=lambda ids: ids[-1] == end, batch_size=3)
    )
    assert [found[i] for i in range(len(PROMPTS))] == cut


@pytest.mark.parametrize("model", ["attention", "memory"], indirect=True)
def test_a_prefix_stands_before_every_prompt(model):
    prefix, greedy = [5, 1, 8], checked_sampling(0.0, None, 1.0, 11)
    options = {"num_tokens": 4, "sampling": greedy, "stopped": lambda _: False, "batch_size": 2}
    whole = dict(continued(model, [[*prefix, *prompt] for prompt in PROMPTS], **options))
    longest = max(map(len, PROMPTS)) + 4
    assert dict(continued(model, PROMPTS, prefix=read_prefix(model, prefix, longest), **options)) == whole


@kinds("attention")
def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_others(model):
    options = {"num_tokens": 5, "sampling": checked_sampling(1.0, 8, 0.95, 11), "stopped": lambda _: False}
    one = dict(continued(model, PROMPTS, batch_size=1, **options))
    assert one == dict(continued(model, PROMPTS, batch_size=4, **options))
    assert one != dict(continued(model, PROMPTS, batch_size=4, seed=1, **options))


@kinds("memory")
def test_texts_without_tokens_are_refused(model):
    with pytest.raises(ValueError, match="no beginning or no continuation"):
        list(likelihoods(model, [([1], [])]))
    with pytest.raises(ValueError, match="no tokens"):
        list(continued(model, [[]], num_tokens=1, sampling=checked_sampling(0.0, None, 1.0, 11), stopped=bool))
