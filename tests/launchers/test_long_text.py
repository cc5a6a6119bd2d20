"""Tasks that hide something in a long text: what training sees, and what answers are graded."""

import jax
import numpy as np
import pytest

from experiments.eval_runs import long_text
from experiments.evals import babilong, niah
from nl_jax.parallel import parse_mesh

LAUNCHERS = {"niah": (niah, "mv", 256), "babilong": (babilong, "qa1", 256)}


@pytest.fixture
def subtask_of(tmp_path):
    def subtask(name, *arguments):
        launcher, task, length = LAUNCHERS[name]
        text = tmp_path / "text"
        text.write_text("Of all that was said that day, nothing was remembered longer than this one sentence. " * 50)
        values = launcher.define_flags()
        given = [
            f"--subtasks={task}",
            f"--length={length}",
            "--samples=3",
            "--longest_samples=2",
            f"--haystack={text}",
            *arguments,
        ]
        values([name, "--workdir=x", *given])
        return launcher.EVALUATION.subtasks(values)[task]

    return subtask


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rows_hold_one_two_or_four_texts_and_ask_for_each_answer_and_its_end(name, subtask_of):
    task = subtask_of(name, "--batch_size=6")
    batch = task.batch(0, 1)
    assert all(np.array_equal(array, task.batch(0, 1)[key]) for key, array in batch.items())
    inputs, targets, mask = (batch[key] for key in ("inputs", "targets", "mask"))
    assert inputs.shape == targets.shape == mask.shape == (6, 256)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.max() < task.sizes["vocab_size"]
    expected = {"niah": [1, 1, 1], "babilong": [1, 2, 4]}[name]  # 128 tokens are too few for four needles
    read = batch["read_mask"]
    assert np.all(read[mask == 1] == 1)
    assert read.mean() > 0.8  # all texts, which a model that learns in context reads in a test, too
    for row, count in enumerate(expected * 2):
        assert np.sum(targets[row][mask[row] == 1] == 0) == count  # ends
        per_answer = {"niah": 4 * 4 + 3 + 1, "babilong": 2}[name]
        assert mask[row].sum() == count * per_answer


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("right", [True, False])
def test_answers_are_graded_at_each_length(name, right, subtask_of, monkeypatch):
    task = subtask_of(name, "--longest=4096")
    asked = []

    def answers(model, parts, *, num_tokens, ends, length):
        tokens = np.concatenate(list(parts), axis=1)
        asked.append((length, tokens.shape, num_tokens))
        rows = [q.answer for q in made[length]]
        return [list(row) if right else [1] for row in rows]

    made = {}
    first = long_text._graded

    def graded(model, questions, source, room, length):
        made[length] = questions
        return first(model, questions, source, room, length)

    monkeypatch.setattr(long_text, "greedy_answers", answers)
    monkeypatch.setattr(long_text, "_graded", graded)
    figures = task.test(None, parse_mesh(devices=jax.local_devices()[:1]))
    keys = {"niah": ("x1", "x2", "x4", "longest"), "babilong": ("x1", "x16", "longest")}[name]
    assert figures == dict.fromkeys(keys, 100.0 if right else 0.0)
    assert [shape[0] for _, shape, _ in asked] == [3] * (len(keys) - 1) + [2]
    assert all(shape[1] == length - room for length, shape, room in asked)
    assert asked[-1][0] == 4096
