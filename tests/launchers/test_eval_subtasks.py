"""The subtasks of MAD and of formal languages: what is trained, what is tested, and from which strings."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from experiments.eval_runs import language_subtasks, mad_subtasks
from experiments.eval_runs.batches import padded, split
from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.flags import apply_preset
from experiments.evals import formal_languages, levels, mad
from nl_jax import InputError
from nl_jax.evaluation.accuracy import Accuracies
from nl_jax.models import AutoEncoder, LanguageModel, named_config
from nl_jax.models.losses import read_batch
from nl_jax.tasks import LANGUAGES


def values_of(launcher, *arguments):
    values = launcher.define_flags()
    values([launcher.__name__, *arguments])
    apply_preset(launcher.EVALUATION, values)
    return values


def batches_of(monkeypatch, module, name, values):
    """A subtask, and the batches on which it is tested: validation data first."""
    found = []

    def kept(batches):
        found.append(batches)
        return lambda model, mesh: {}

    monkeypatch.setattr(module, "accuracy_of", kept)
    return module.subtasks(values)[name], found


@pytest.mark.parametrize("name", mad_subtasks.TASKS)
def test_mad_is_tested_on_its_own_targets(monkeypatch, name):
    values = values_of(mad, f"--subtasks={name}", "--batch_size=8")
    subtask, (validation, test) = batches_of(monkeypatch, mad_subtasks, name, values)
    batch = subtask.batch(0, 1)
    rows = [row.tobytes() for batches in ([batch], validation, test) for b in batches for row in b["inputs"]]
    assert [len(batches) for batches in (validation, test)] == [4, 10]
    assert {b["inputs"].shape for b in validation + test} == {(128, subtask.sizes["context_length"])}
    assert len(set(rows)) > 0.999 * len(rows)
    recall = name.endswith("recall")
    assert (test[0]["mask"].mean() < 0.75 * batch["mask"].mean()) == recall
    assert batch["inputs"].shape == (8, subtask.sizes["context_length"])
    assert (subtask.build is AutoEncoder) == (name == "compression")
    assert subtask.steps == (200 if name == "memorization" else None)


def test_memorization_takes_mads_steps_at_most():
    values = values_of(mad, "--subtasks=memorization", "--steps=5000")
    assert mad_subtasks.subtasks(values)["memorization"].steps == 400


def strings(batch):
    return {row[mask > 0].tobytes() for row, mask in zip(batch["inputs"], batch["mask"], strict=True)}


@pytest.mark.parametrize("name", language_subtasks.NAMES)
def test_bins_are_of_their_lengths(name):
    values = values_of(formal_languages, "--preset=full", "--train_strings=1000", "--test_strings=60")
    training, (short, long) = language_subtasks.strings_of(name, values)
    scale = {"anbn": 2, "anbncn": 3}.get(name, 1)
    for batch, low, high in ((training, 2, 50), (short, 2, 50), (long, 51, 100)):
        lengths = batch["mask"].sum(1) / scale
        assert low <= lengths.min() <= lengths.max() <= high
    assert len(strings(short)) == len(short["inputs"]) <= 60
    assert len(strings(long)) == len(long["inputs"]) <= 60
    assert not strings(training) & strings(long)
    unique = name in ("parity", "shuffle_2", "shuffle_2_interleaved")
    assert (len(strings(training)) == len(training["inputs"]) == 1000) == unique
    if name == "parity":
        assert not strings(training) & strings(short)
    if not unique:
        assert strings(short) == strings(training)  # there are few


def test_own_validation_strings_are_neither_trained_nor_tested(monkeypatch):
    seen = []

    def kept(model, rows, mesh):
        seen.append(rows)
        return Accuracies(0.0, 0.0, 0.0)

    monkeypatch.setattr(language_subtasks, "accuracies", kept)
    values = values_of(formal_languages, "--subtasks=parity", "--train_strings=200", "--test_strings=50")
    subtask = language_subtasks.subtasks(values, own_validation=True)["parity"]
    subtask.validate(None, None), subtask.test(None, None)
    found = [set().union(*map(strings, rows)) - {b""} for rows in seen]  # each bin of both, without what fills up
    training = set().union(*(strings(subtask.batch(0, step)) for step in range(6)))
    assert all(len(part) > 20 for part in found)
    for validation in found[:2]:
        assert not validation & (training | found[2] | found[3])


def test_levels_read_the_next_symbols_and_never_the_labels():
    values = values_of(formal_languages, "--subtasks=parity", "--train_strings=96")
    batch = language_subtasks.subtasks(values)["parity"].batch(0, 0)
    counts = batch["mask"].sum(1).astype(int)
    for row, count in zip(batch["read_mask"], counts, strict=True):
        assert row.tolist() == [1.0] * (count - 1) + [0.0] * (len(row) - count + 1)
    config = named_config("delta_net", "tiny", vocab_size=language_subtasks.VOCABULARY, width=8, num_layers=1)
    config = dataclasses.replace(config, num_heads=1, chunk_size=8, cms_periods=(8,), cms_regime="online")
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    small = {name: array[:4, :16] for name, array in batch.items()}
    logits, _ = read_batch(model, small)
    flipped, _ = read_batch(model, small | {"targets": 1 - small["targets"]})
    np.testing.assert_array_equal(logits, flipped)
    other, _ = read_batch(model, small | {"read_mask": 0.0 * small["read_mask"]})
    assert not np.allclose(logits[:, 8:], other[:, 8:])


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--window=1000", "window"),
        ("--subtasks=parity --max_length=50", "max_length"),
        ("--subtasks=mk_1 --length=300", "length"),
    ],
)
def test_lengths_that_levels_cannot_read_are_refused_before_anything_runs(flags, name):
    values = values_of(levels, "--models=levels_1,levels_2", *flags.split())
    with pytest.raises(InputError, match=f"--{name}=[0-9]+: expected a multiple of 32"):
        levels.subtasks(values)
    values = values_of(levels, "--models=levels_1", "--window=1000")  # which learns nothing from what it reads
    assert "language" in levels.subtasks(values)


def test_an_epoch_has_every_string_once():
    values = values_of(formal_languages, "--subtasks=parity", "--train_strings=96")
    batch = language_subtasks.subtasks(values)["parity"].batch
    epochs = [[row.tobytes() for step in range(3 * e, 3 * e + 3) for row in batch(0, step)["inputs"]] for e in (0, 1)]
    assert len(set(epochs[0])) == 96
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert batch(0, 1)["inputs"].tobytes() != batch(1, 1)["inputs"].tobytes()
    np.testing.assert_equal(batch(0, 1), batch(0, 1))


def test_programs_are_shared():
    values = values_of(formal_languages, "--train_strings=100")
    subtasks = language_subtasks.subtasks(values, language_subtasks.NAMES)
    assert set(subtasks) == set(LANGUAGES)
    shapes = [(subtask.batch(0, 0)["inputs"].shape, subtask.sizes["context_length"]) for subtask in subtasks.values()]
    assert len(set(shapes)) == 2
    assert shapes == sorted(shapes)


def test_padding_does_not_count():
    batch = {"inputs": np.ones((2, 3), np.int32), "targets": np.ones((2, 3), np.int32), "mask": np.ones((2, 3))}
    longer = padded(batch, 5)
    assert longer["inputs"].shape == (2, 5)
    assert longer["mask"].tolist() == [[1, 1, 1, 0, 0]] * 2
    parts = list(split(longer, 4))
    assert [part["inputs"].shape for part in parts] == [(4, 5)]
    assert parts[0]["mask"].sum(1).tolist() == [3, 3, 0, 0]


@pytest.mark.parametrize("launcher", [mad, formal_languages])
def test_papers_figures_are_of_subtasks_that_there_are(launcher):
    evaluation: Evaluation = launcher.EVALUATION
    for figures in evaluation.paper.values():
        assert set(figures) <= set(evaluation.names)
    assert {"hope", "transformer"} <= set(evaluation.paper)
