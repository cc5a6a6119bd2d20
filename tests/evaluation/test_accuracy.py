"""Accuracy by class against scikit-learn's recall, and its mean over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import recall_score

from nl_jax.evaluation import accuracies
from nl_jax.parallel import parse_mesh

CLASSES = 6


def macro(answers, batches):
    """Of a model that gives these answers, batch by batch."""
    mesh, means = parse_mesh(devices=jax.devices()[:1]), []
    for logits, batch in zip(answers, batches, strict=True):
        model = jax.tree_util.Partial(lambda logits, inputs, state: (logits, state), logits)
        means.append(accuracies(model, [batch], mesh).classes)
    return means


def batch_of(random, shape=(4, 9)):
    targets = random.integers(CLASSES - 1, size=shape, dtype=np.int32)  # the last class is no target
    mask = (random.random(shape) < 0.5).astype(np.float32)
    mask[0, 0] = 1
    return {"inputs": targets, "targets": targets, "mask": mask}


def test_it_is_the_mean_recall_of_the_classes():
    random = np.random.default_rng(0)
    for _ in range(20):
        batch = batch_of(random)
        predicted = np.where(random.random((4, 9)) < 0.5, batch["targets"], random.integers(CLASSES, size=(4, 9)))
        counted = batch["mask"] > 0
        expected = recall_score(batch["targets"][counted], predicted[counted], average="macro", zero_division=0)
        (found,) = macro([jax.nn.one_hot(predicted, CLASSES)], [batch])
        assert found == pytest.approx(expected, rel=1e-6)


def test_batches_count_equally_whatever_their_targets():
    batch = batch_of(np.random.default_rng(0), (2, 3))
    batch["mask"][:] = 1
    few = batch | {"mask": np.eye(2, 3, dtype=np.float32)}
    model = jax.tree_util.Partial(lambda logits, inputs, state: (logits, state), jax.nn.one_hot(batch["targets"], 6))
    mesh = parse_mesh(devices=jax.devices()[:1])
    wrong = few | {"targets": (few["targets"] + 1) % CLASSES}
    assert accuracies(model, [batch, few], mesh).classes == 1
    assert accuracies(model, [batch, wrong], mesh).classes == 0.5


def test_logits_that_are_not_finite_give_nan():
    batch = batch_of(np.random.default_rng(0))
    logits = jax.nn.one_hot(batch["targets"], CLASSES)
    masked = np.argwhere(batch["mask"] == 0)[0]
    outside = logits.at[masked[0], masked[1], 0].set(jnp.nan)
    inside = logits.at[0, 0, 0].set(jnp.nan)
    assert macro([outside, inside], [batch, batch])[0] == 1
    assert np.isnan(macro([inside], [batch])[0])


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="batches has no entries; expected one or more"):
        accuracies(None, [], parse_mesh(devices=jax.devices()[:1]))
