"""Whatever scores or samples a model that learns in context reads it as training does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import recall
from nl_jax import Diverged
from nl_jax.data import EvaluationSet
from nl_jax.evaluation import accuracies, bits_by_position, evaluate
from nl_jax.models import LanguageModel, LanguageModelConfig, read
from nl_jax.models.in_context import read_and_learn
from nl_jax.models.losses import mean_loss, token_losses
from nl_jax.parallel import parse_mesh
from nl_jax.streaming import Stream
from nl_jax.streaming.generation import sample
from nl_jax.training import finite_outputs, init_state
from nl_jax.training.step import train_step

CHUNK, TIME = 4, 16


@pytest.fixture(scope="module")
def model():
    return make()


def make(regime="meta"):
    config = LanguageModelConfig("attention", 12, 8, 1, 1, 8, (CHUNK, 8), regime, cms_rate=2.0, chunk_size=2)
    return LanguageModel(config, rngs=nnx.Rngs(3))


def batches(count=2, rows=3):
    random = np.random.default_rng(0)
    for _ in range(count):
        tokens = random.integers(0, 12, (rows, TIME + 1), dtype=np.int32)
        mask = (random.random((rows, TIME)) < 0.7).astype(np.float32)
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}


learn = jax.jit(lambda model, *batch: read_and_learn(model, *batch)[0])
read_text, losses_of, mean_of = jax.jit(read), jax.jit(token_losses), jax.jit(mean_loss)


def expected(model, batch):
    logits = learn(model, batch["inputs"], batch["targets"], batch["mask"])
    still, _ = jax.jit(lambda model, tokens: model(tokens))(model, batch["inputs"])
    assert float(jnp.max(jnp.abs(logits - still))) > 0.1  # what is compared with differs from reading without learning
    return logits


def test_every_score_is_of_the_logits_that_learn(model):
    data, mesh = list(batches()), parse_mesh("data:1", jax.devices()[:1])
    logits = [expected(model, batch) for batch in data]
    nats = [
        optax.softmax_cross_entropy_with_integer_labels(out, batch["targets"]) * batch["mask"]
        for out, batch in zip(logits, data, strict=True)
    ]
    masks = np.stack([batch["mask"] for batch in data])
    right = np.stack([(out.argmax(-1) == batch["targets"]) for out, batch in zip(logits, data, strict=True)]) * masks
    found = accuracies(model, data, mesh)
    assert found.positions == pytest.approx(right.sum() / masks.sum())
    assert found.sequences == pytest.approx(np.mean((right == masks).all(-1)))
    total = float(sum(n.sum() for n in nats))
    assert evaluate(model, EvaluationSet(data, 100, 1), mesh) == pytest.approx(total / np.log(2) / 100, rel=1e-5)
    by_position = sum(np.asarray(n).sum(0) for n in nats) / masks.sum((0, 1)) / np.log(2)
    np.testing.assert_allclose(bits_by_position(model, EvaluationSet(data, 100, 1), mesh), by_position, rtol=1e-4)
    np.testing.assert_allclose(losses_of(model, data[0]) * data[0]["mask"], nats[0], rtol=1e-4, atol=1e-5)
    assert float(mean_of(model, data[0])) == pytest.approx(float(nats[0].sum() / masks[0].sum()), rel=1e-5)


def test_recall_after_other_text_learns_it(model, monkeypatch):
    for name, value in (("STREAMS", 2), ("VALIDATION_SEQUENCES", 4), ("PART", 8)):
        monkeypatch.setattr(recall, name, value)
    values = recall.define_flags()
    values(["recall", "--other_text=24", "--batch_size=2", "--seq_len=16", "--vocab_size=12", "--pairs=3"])
    found = recall.after_other_text(values, model, None)["accuracy_after_24"]
    text = np.random.default_rng((recall.VALIDATION_SEED, 24)).integers(1, 12, (2, 24), dtype=np.int32)
    right = total = 0.0
    for batch in recall.validation(values):
        known = np.append(np.ones((2, 23)), np.zeros((2, 1)), axis=1)
        whole = [
            np.concatenate(pair, axis=1)
            for pair in zip(
                (text, np.roll(text, -1, 1), known), map(batch.get, ("inputs", "targets", "mask")), strict=True
            )
        ]
        logits = learn(model, *map(jnp.asarray, whole))[:, 24:]
        right += float(((logits.argmax(-1) == batch["targets"]) * batch["mask"]).sum())
        total += batch["mask"].sum()
    assert found == pytest.approx(right / total)


def test_reading_in_parts_and_without_targets(model):
    (batch,) = batches(1)
    tokens = jnp.asarray(batch["inputs"])
    known = jnp.ones(tokens.shape).at[:, -1].set(0.0)
    whole, _ = read_text(model, tokens)
    np.testing.assert_allclose(whole, learn(model, tokens, jnp.roll(tokens, -1, 1), known), atol=1e-5)
    targets, logits, state = jnp.asarray(batch["targets"]), [], None
    for part in (slice(0, 8), slice(8, TIME)):
        out, state = read_text(model, tokens[:, part], state, targets=targets[:, part])
        logits.append(out)
    np.testing.assert_allclose(jnp.concatenate(logits, 1), learn(model, tokens, targets), atol=1e-5)


@pytest.mark.slow
def test_samples_are_of_the_logits_that_learn(model):
    """The likeliest tokens after a prompt of more than a chunk, by a new text, and by a stream that has read before."""
    prompt = [1, 5, 3, 3, 7, 2]
    stream = Stream(model)
    stream.feed(prompt[:3])
    stream.feed([0, 4, 0])
    for before, tokens in (
        ([], list(sample(model, prompt, num_tokens=8, temperature=0.0))),
        ([*prompt[:3], 0, 4, 0], stream.generate(prompt, num_tokens=8, temperature=0)),
    ):
        text = [*before, *prompt, *tokens]
        padded = jnp.asarray(text + [0] * (-len(text) % CHUNK))[None]
        logits = learn(model, padded, jnp.roll(padded, -1, 1))
        assert tokens == logits[0, len(text) - 9 : len(text) - 1].argmax(-1).tolist()


BAD_ARGUMENTS = [
    ({"prompt": [12]}, "token 12: expected 0 to 11"),
    ({"prompt": [-1]}, "token -1: expected 0 to 11"),
    ({"prompt": [1.5]}, "token 1.5: expected an integer"),
    ({"prompt": "ab"}, "token 'a': expected an integer"),
    ({"num_tokens": -1}, "num_tokens=-1: expected an integer of at least 0"),
    ({"num_tokens": 2.0}, "num_tokens=2.0: expected an integer"),
    ({"temperature": -0.1}, "temperature=-0.1: expected a finite number of at least 0"),
    ({"temperature": float("nan")}, "temperature=nan"),
    ({"temperature": float("inf")}, "temperature=inf"),
    ({"seed": -1}, "seed=-1: expected an integer from 0 to 2147483647"),
    ({"seed": 2**31}, "seed=2147483648"),
    ({"top_k": 0}, "top_k=0: expected an integer of at least 1"),
    ({"top_k": 1.5}, "top_k=1.5"),
    ({"top_p": 0.0}, "top_p=0.0: expected a number above 0"),
    ({"top_p": float("nan")}, "top_p=nan"),
]


@pytest.fixture(scope="module")
def readers(model):
    """What generates: a stream, and the sampler with a model that learns in context and one that does not."""
    outer = make("outer")
    return [Stream(model).generate, lambda **given: sample(model, **given), lambda **given: sample(outer, **given)]


@pytest.mark.parametrize(("change", "problem"), BAD_ARGUMENTS)
def test_arguments_of_generation_are_checked(readers, change, problem):
    for reader in readers:
        with pytest.raises(ValueError, match=problem):
            reader(**{"prompt": [1], "num_tokens": 1} | change)


def test_no_tokens_are_no_tokens(model):
    assert list(sample(model, [1], num_tokens=0)) == []
    with pytest.raises(ValueError, match="prompt: no tokens; expected at least one"):
        sample(model, [], num_tokens=1)


@pytest.mark.parametrize("regime", ["meta", "outer"])
def test_what_is_not_finite_is_no_answer(regime):
    model = make(regime)
    model.final_norm.scale[...] = jnp.full(8, jnp.nan)
    with pytest.raises(Diverged, match="logits of the next token are not finite"):
        next(sample(model, [1], temperature=0.0))
    (batch,) = batches(1)
    found = accuracies(model, [batch], parse_mesh("data:1", jax.devices()[:1]))
    assert np.isnan(found.positions)
    assert np.isnan(found.sequences)


def test_training_names_the_levels_that_diverged():
    (batch,) = batches(1)
    model = make("online")
    optimizer = optax.sgd(0.0)
    take_step = jax.jit(functools.partial(train_step, optimizer))
    for level in (0, 1):
        model.cms_log_rate[...] = jnp.full(2, 0.0).at[level].set(1e3)
        half = jax.tree.map(lambda x: x[:, :8], batch)  # the slow level has just been updated for the first time
        _, outputs = take_step(init_state(lambda: model, optimizer), half)
        with pytest.raises(Diverged, match=("level cms_0, cms_1", "level cms_1 ")[level]):
            finite_outputs("x", 3, outputs | {"loss": jnp.nan, "diverged_layer": -1})


def test_targets_and_masks_of_another_shape_are_refused(model):
    tokens = jnp.zeros((1, 8), jnp.int32)
    for change, message in [
        ({"tokens": tokens[0]}, r"tokens has shape \(8,\)"),
        ({"targets": tokens[:, :4]}, r"targets has shape \(1, 4\); expected that of tokens, \(1, 8\)"),
        ({"mask": jnp.ones(8)}, r"mask has shape \(8,\); expected that of tokens, \(1, 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(model, **{"tokens": tokens} | change)
