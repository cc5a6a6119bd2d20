"""Associative recall: the generator against what the task says, masked loss and accuracy, and the launcher's runs."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher_cases import results_of
from launcher_table import files

from experiments import recall
from experiments.common import task_training
from nl_jax import InputError
from nl_jax.evaluation import accuracy
from nl_jax.models.losses import mean_loss
from nl_jax.parallel import parse_mesh
from nl_jax.tasks import recall_batch
from nl_jax.training import make_optimizer

SMALL = {"batch_size": 4, "seq_len": 16, "vocab_size": 12, "pairs": 2}


@st.composite
def task_sizes(draw):
    pairs = draw(st.integers(1, 6))
    return {
        "batch_size": draw(st.integers(1, 4)),
        "seq_len": draw(st.integers(4 * pairs, 4 * pairs + 9)),
        "vocab_size": draw(st.integers(2 * pairs + 2, 2 * pairs + 12)),
        "pairs": pairs,
    }


@settings(deadline=None)
@given(task_sizes(), st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_every_query_is_answered_by_its_pair(sizes, seed, step):
    batch = recall_batch(seed, step, **sizes)
    shape, pairs, first_value = (sizes["batch_size"], sizes["seq_len"]), sizes["pairs"], sizes["vocab_size"] // 2
    assert {key: (array.shape, array.dtype) for key, array in batch.items()} == {
        "inputs": (shape, np.int32),
        "targets": (shape, np.int32),
        "mask": (shape, np.float32),
    }
    for inputs, targets, mask in zip(*batch.values(), strict=True):
        keys, values = inputs[0 : 2 * pairs : 2], inputs[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert keys.min() >= 1
        assert keys.max() < first_value <= values.min()
        assert values.max() < sizes["vocab_size"]
        answers = dict(zip(keys, values, strict=True))
        queries = np.flatnonzero(inputs[2 * pairs :]) + 2 * pairs
        assert sorted(inputs[queries]) == sorted(keys)
        assert (queries % 2 == 0).all()
        assert list(targets[queries]) == [answers[key] for key in inputs[queries]]
        assert list(np.flatnonzero(mask)) == list(np.flatnonzero(targets)) == list(queries)
        assert set(mask) <= {0, 1}


def test_gaps_are_drawn_in_turn_with_their_weights():
    """First and second gap, for the first and second pair, against the probabilities of drawing one after the other."""
    count = 40_000
    batch = recall_batch(0, 0, batch_size=count, seq_len=14, vocab_size=20, pairs=2)
    keys, queries = batch["inputs"][:, [0, 2]], batch["inputs"][:, 4:14:2]
    first, second = np.argmax(queries[:, None] == keys[..., None], axis=-1).T
    counts = np.zeros((5, 5))
    np.add.at(counts, (first, second), 1 / count)
    weights = np.arange(1, 6) ** (0.01 - 1)
    p = weights / weights.sum()
    expected = p[:, None] * p / (1 - p[:, None]) * (1 - np.eye(5))
    np.testing.assert_allclose(counts, expected, atol=5 * (0.25 / count) ** 0.5)


def test_keys_and_values_are_uniform_and_independent():
    batch = recall_batch(0, 0, batch_size=20_000, seq_len=8, vocab_size=8, pairs=2)
    counts = np.zeros((8, 8))
    np.add.at(counts, (batch["inputs"][:, 2], batch["inputs"][:, 3]), 1 / 20_000)
    np.testing.assert_allclose(counts[1:4, 4:], 1 / 12, atol=0.01)


def test_batches_are_fixed_by_seed_and_step():
    sizes = {"batch_size": 4, "seq_len": 32, "vocab_size": 64, "pairs": 4}
    seeds = (0, 1, recall.VALIDATION_SEED)
    batches = [recall_batch(seed, step, **sizes)["inputs"] for seed in seeds for step in (0, 1)]
    np.testing.assert_array_equal(batches[0], recall_batch(0, 0, **sizes)["inputs"])
    assert len({batch.tobytes() for batch in batches}) == len(batches)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pairs": 0}, "pairs=0: expected at least 1"),
        ({"seq_len": 7}, "seq_len=7: expected at least 8"),
        ({"vocab_size": 5}, "vocab_size=5: expected at least 6"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, problem):
    with pytest.raises(InputError, match=problem):
        recall_batch(0, 0, **{**SMALL, **change})


def test_only_queries_count():
    """A model that copies the target everywhere but at the first query, and is wrong wherever there is no query."""
    batch = recall_batch(0, 0, **SMALL)
    answers = np.where(batch["mask"] == 1, batch["targets"], 5)
    answers[0, np.flatnonzero(batch["mask"][0])[0]] = 0
    logits = 3 * jax.nn.one_hot(answers, SMALL["vocab_size"])
    model = jax.tree_util.Partial(lambda logits, inputs, state: (logits, state), logits)
    assert accuracy(model, [batch], parse_mesh(devices=jax.devices()[:1])) == 7 / 8
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0][batch["mask"] == 1].mean()
    assert float(mean_loss(model, batch)) == pytest.approx(expected, rel=1e-6)
    unmasked = {"inputs": batch["inputs"], "targets": batch["targets"]}
    everywhere = -np.take_along_axis(log_p, batch["targets"][..., None], -1).mean()
    assert float(mean_loss(model, jax.tree.map(jnp.asarray, unmasked))) == pytest.approx(everywhere, rel=1e-6)


FLAGS = ["--pairs=2", "--seq_len=8", "--vocab_size=12", "--width=8", "--num_layers=1", "--chunk_size=4"]
# Hope-Attention compiles quickly and has a continuum memory; the launcher treats all models alike.
FLAGS += ["--batch_size=128", "--steps=5", "--eval_every=2", "--seeds=2", "--models=hope_attention,transformer"]
FLAGS += ["--other_text=5,5000"]


def call(*arguments):
    """Exit code of the launcher run in this process."""
    return recall.main(["recall", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert call(f"--workdir={workdir}", *FLAGS) == 0
    return workdir


def test_a_whole_run(finished, capsys):
    results = results_of(finished)
    assert list(results["models"]) == ["hope_attention", "transformer"]
    assert {"configuration", "seeds", "versions", "device"} < set(results)
    assert results["seeds"] == [0, 1]
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for name, figures in results["models"].items():
        assert figures["steps"] == [5, 5]
        for key in ("accuracy_after_5", "accuracy_after_5000"):
            assert len(figures[key]) == 2
            assert all(0 <= accuracy < 0.99 for accuracy in figures[key])
        assert figures["steps_to_99"] == [None, None]
        for seed in (0, 1):
            run = [row for row in rows if row["model"] == f"{name}/seed_{seed}"]
            assert [row["step"] for row in run] == [1, 2, 3, 4, 5]
            assert [row["step"] for row in run if "accuracy" in row] == [2, 4, 5]
            assert run[-1]["accuracy"] == figures["accuracy"][seed]
            assert 0 <= figures["accuracy"][seed] < 0.99
            assert list((finished / name / f"seed_{seed}" / "tensorboard").glob("events.*"))
        assert len({row["loss"] for row in rows if row["model"].startswith(name) and row["step"] == 1}) == 2
    assert (finished / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    before = files(finished)
    capsys.readouterr()
    assert call(f"--workdir={finished}", *FLAGS) == 0  # only prints the table again
    out, err = capsys.readouterr()
    assert err == ""
    for name, figures in results["models"].items():
        row = next(line for line in out.splitlines() if line.startswith(name))
        assert f"{figures['parameters']:,}" in row
        assert f"{np.mean(figures['accuracy']):.3f} ± " in row
        assert "0 of 2" in row
    assert str(finished) in out.splitlines()[-1]
    assert files(finished) == before


def test_finished_seeds_are_kept_and_the_rest_is_run(finished, tmp_path, capsys):
    """As after a kill in the second seed of the second model."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    expected = results_of(workdir)
    partial = results_of(workdir)
    for figures in partial["models"]["transformer"], partial["models"]["hope_attention"]:
        figures["accuracy"][0] = 0.5  # to be seen again
    for key in ("accuracy", "steps_to_99", "steps", "accuracy_after_5", "accuracy_after_5000"):
        partial["models"]["transformer"][key].pop()
    (workdir / "results.json").write_text(json.dumps(partial))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:-2]))
    capsys.readouterr()
    assert call(f"--workdir={workdir}", *FLAGS) == 0
    assert "seed_0" not in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_text().splitlines(keepends=True) == lines
    for figures in expected["models"].values():
        figures["accuracy"][0] = 0.5
    assert results_of(workdir) == expected


def test_a_run_ends_at_two_good_evaluations_in_a_row(tmp_path, monkeypatch):
    scores = iter([0.2, 0.995, 0.98, 0.99, 1.0])
    monkeypatch.setattr(recall, "accuracy", lambda *_, **__: next(scores))
    flags = ["--models=transformer", "--steps=100", "--eval_every=3", "--seeds=1"]
    assert call(f"--workdir={tmp_path}", *FLAGS, *flags) == 0
    figures = results_of(tmp_path)["models"]["transformer"]
    assert (figures["accuracy"], figures["steps_to_99"], figures["steps"]) == ([1.0], [6], [15])


def test_other_text_is_read_before_the_pairs(monkeypatch):
    """A model that answers well while it has read fewer than 100 tokens, wherever the parts of the text are cut."""

    class Forgetful:
        def init_state(self, batch_size):
            return jnp.zeros((batch_size,), jnp.int32)

        def __call__(self, tokens, state):
            right = recall_targets(tokens) * (state < 100)[:, None]
            return jax.nn.one_hot(right, 12), state + tokens.shape[1]

    sizes = {"seq_len": 8, "vocab_size": 12, "pairs": 2}

    def recall_targets(tokens):  # the value behind the first place of each token
        first = jnp.argmax(tokens[:, :4, None] == tokens[:, None], axis=1)
        return jnp.take_along_axis(tokens, jnp.minimum(first + 1, 7), axis=1)

    monkeypatch.setattr(recall, "PART", 30)
    jax.tree_util.register_pytree_node(Forgetful, lambda _: ((), None), lambda *_: Forgetful())
    values = recall.define_flags()
    values(["recall", "--other_text=64,128", "--batch_size=32", *(f"--{k}={v}" for k, v in sizes.items())])
    assert recall.after_other_text(values, Forgetful(), None) == {"accuracy_after_64": 1.0, "accuracy_after_128": 0.0}


def test_divergence_ends_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(task_training, "make_optimizer", lambda **_: make_optimizer(learning_rate=1e37, steps=5))
    assert call(f"--workdir={tmp_path}", *FLAGS, "--models=transformer") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: transformer/seed_0 diverged at step")
    assert not (tmp_path / "results.json").exists()
