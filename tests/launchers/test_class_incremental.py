"""Class-incremental learning: every learner against its definition in NumPy, and whole runs on made-up texts."""

import dataclasses
import json

import numpy as np
import pytest
from labelled_cases import write_labelled
from launcher_cases import results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments.continual import class_incremental
from experiments.continual_methods import candidates, table
from experiments.continual_methods.counting import complement_naive_bayes, naive_bayes, tfidf_mean
from experiments.continual_methods.heads import BATCH, fine_tuned, replayed
from experiments.continual_methods.joint import joint_logistic, joint_svm
from experiments.continual_methods.learner import Examples, Sizes, grams_of, log_softmax, state_bytes
from experiments.continual_methods.memories import matrix_memory, preconditioned_memory, two_levels
from experiments.continual_methods.moments import FourierMap, class_mean, discriminant_analysis, least_squares
from experiments.continual_methods.sums import weighted_sum
from experiments.continual_methods.table import METHODS, NAMES
from experiments.continual_methods.text_learners import Elastic, InContext, Replay
from experiments.continual_methods.text_table import TEXT_METHODS
from nl_jax.pretrained import load_pretrained
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.streaming.answers import Answers

CLASSES, WIDTH, NUMBER = 4, 6, 96
SIZES = Sizes(CLASSES, WIDTH, 0)
FOURIER = FourierMap(40, 0.3)


@pytest.fixture(scope="module")
def examples():
    """Examples whose classes are Gaussians with one covariance, class after class; and their labels."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), NUMBER // CLASSES).astype(np.int32)
    mixing = random.normal(size=(WIDTH, WIDTH))
    features = (random.normal(size=(CLASSES, WIDTH))[labels] * 1.5 + random.normal(size=(NUMBER, WIDTH))) @ mixing
    features = (features / features.std(axis=0)).astype(np.float32)
    texts = tuple(f"word{label} other{random.integers(5)} word{label} the {random.integers(9)}" for label in labels)
    return Examples(texts, grams_of(texts), features, features[:, ::-1].copy()), labels


def learned(learner, examples, order=None, part=32):
    """The state after all examples in an order, in parts of some size."""
    found, labels = examples
    rows = np.arange(len(labels)) if order is None else order
    state = learner.init(SIZES)
    for start in range(0, len(rows), part):
        taken = rows[start : start + part]
        state = learner.learn(state, found.take(taken), labels[taken])
    return learner.end_task(state, found, labels)


def scores(learner, examples, **options):
    return learner.scores(learned(learner, examples, **options), examples[0])


EXACT = {
    "class_mean": class_mean(),
    "lda": discriminant_analysis(1e-2),
    "klda": discriminant_analysis(1e-2, fourier=FOURIER),
    "least_squares": least_squares(1e-2),
    "fourier": least_squares(1e-2, "both", FOURIER),
    "engine": preconditioned_memory(0.1),
    "naive_bayes": naive_bayes(0.1),
    "complement": complement_naive_bayes(0.1),
    "tfidf": tfidf_mean(),
    "sum": weighted_sum(naive_bayes(0.1), discriminant_analysis(1e-2, "embeddings"), 0.5),
    "slow": two_levels(1e-2, 96, FOURIER, fast=False),
}


@pytest.mark.parametrize("name", EXACT)
def test_neither_the_order_nor_the_parts_change_an_exact_learner(name, examples):
    order = np.random.default_rng(1).permutation(NUMBER)
    whole, cut = scores(EXACT[name], examples, part=NUMBER), scores(EXACT[name], examples, order=order, part=13)
    np.testing.assert_allclose(cut, whole, rtol=2e-3, atol=2e-3)


def test_discriminants_and_means_are_what_numpy_says(examples):
    (found, labels), x = examples, examples[0].features.astype(float)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(CLASSES)])
    within = (x - means[labels]).T @ (x - means[labels]) / NUMBER
    distances = np.stack([np.einsum("nd,de,ne->n", x - m, np.linalg.inv(within), x - m) for m in means], axis=1)
    got = scores(discriminant_analysis(1e-9), examples)
    np.testing.assert_array_equal(got.argmax(axis=1), distances.argmin(axis=1))
    np.testing.assert_allclose(got[:, 0] - got[:, 1], 0.5 * (distances[:, 1] - distances[:, 0]), rtol=1e-3, atol=1e-3)
    nearest = ((x[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(scores(class_mean(), examples).argmax(axis=1), nearest)
    assert state_bytes(learned(class_mean(), examples)) == 8 * (CLASSES + CLASSES * (WIDTH + 1))
    assert len(labels) == NUMBER
    assert found.features.shape == (NUMBER, WIDTH)


def test_least_squares_and_the_engine_are_ridge_regressions(examples):
    found, labels = examples
    x = np.concatenate([found.features.astype(float), np.ones((NUMBER, 1))], axis=1)
    y = np.eye(CLASSES)[labels]
    gram = x.T @ x
    lam = 1e-2 * np.trace(gram) / len(gram)
    expected = x @ np.linalg.solve(gram + lam * np.eye(len(gram)), x.T @ y)
    np.testing.assert_allclose(scores(least_squares(1e-2), examples), expected, atol=1e-6)
    keys = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = keys @ np.linalg.solve(keys.T @ keys + 0.1 * np.eye(len(gram)), keys.T @ y)
    np.testing.assert_allclose(scores(preconditioned_memory(0.1), examples), expected, atol=1e-4)


def test_counting_learners_are_what_numpy_says(examples):
    found, labels = examples
    ids = np.split(found.grams.ids, found.grams.starts[1:])
    known = sorted(set(found.grams.ids))
    counts = np.zeros((CLASSES, len(known)))
    for row, label in zip(ids, labels, strict=True):
        for gram in row:
            counts[label, known.index(gram)] += 1
    table = np.log((counts + 0.1) / (counts + 0.1).sum(axis=1, keepdims=True))
    other = counts.sum(axis=0) - counts
    complement = -np.log((other + 0.1) / (other + 0.1).sum(axis=1, keepdims=True))
    for learner, log_p in ((naive_bayes(0.1), table), (complement_naive_bayes(0.1), complement)):
        expected = [log_p[:, [known.index(gram) for gram in row]].sum(axis=1) for row in ids]
        np.testing.assert_allclose(scores(learner, examples), expected, rtol=1e-6)
    texts = np.array([sum(gram in row for row in ids) for gram in known])
    weights = counts * (np.log((1 + NUMBER) / (1 + texts)) + 1)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    bag = np.array([[list(row).count(gram) for gram in known] for row in ids])
    expected = bag * (np.log((1 + NUMBER) / (1 + texts)) + 1) @ weights.T
    np.testing.assert_allclose(scores(tfidf_mean(), examples), expected, rtol=1e-6)


def test_the_delta_rule_momentum_and_retention_are_their_recurrences(examples):
    found, labels = examples
    keys = np.concatenate([found.features.astype(float), np.ones((NUMBER, 1))], axis=1)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    for eta, delta, alpha, mu in ((0.3, True, 1.0, 0.0), (0.2, True, 0.99, 0.5), (0.1, False, 1.0, 0.0)):
        weights, momentum = np.zeros((CLASSES, WIDTH + 1)), np.zeros((CLASSES, WIDTH + 1))
        for key, label in zip(keys, labels, strict=True):
            momentum = mu * momentum + eta * (1 - mu) * np.outer(np.eye(CLASSES)[label], key)
            forgotten = alpha * np.eye(WIDTH + 1) - (eta if delta else 0.0) * np.outer(key, key)
            weights = weights @ forgotten + momentum
        got = scores(matrix_memory(eta, delta, alpha, mu), examples)
        np.testing.assert_allclose(got, keys @ weights.T, atol=1e-4)


def test_levels_forget_less_than_the_fast_one_and_know_the_newest_unlike_the_slow_one(examples):
    """Two consolidations in the stream, and a quarter of it, the last class, after the last one."""
    labels = examples[1]

    def right(**switches):
        answers = scores(two_levels(1e-3, 36, FOURIER, **switches), examples).argmax(axis=1) == labels
        return answers[: NUMBER // 2].mean(), answers[-NUMBER // 4 :].mean()

    both, without_slow, without_fast = right(), right(slow=False), right(fast=False)
    assert both[0] > without_slow[0]
    assert both[1] > 0.5 > without_fast[1] == 0.0


def test_replay_keeps_its_share_of_each_class_and_forgets_less(examples):
    learner = replayed(0.1, every=8)
    head, buffer = learned(learner, examples)
    np.testing.assert_array_equal(np.bincount(buffer.labels), [3] * CLASSES)
    first = slice(0, NUMBER // CLASSES)
    plain = log_softmax(scores(fine_tuned(0.1), examples))[first, 0]
    again = log_softmax(learner.scores((head, buffer), examples[0]))[first, 0]
    assert again.mean() > plain.mean()


def test_ewc_with_a_large_penalty_keeps_what_a_task_has_taught(examples):
    found, labels = examples
    first, rest = np.arange(48), np.arange(48, NUMBER)

    def moved(penalty):
        learner = fine_tuned(0.01, "sgd", penalty=penalty)
        state = learner.learn(learner.init(SIZES), found.take(first), labels[first])
        state = learner.end_task(state, found.take(first), labels[first])
        after = learner.learn(state, found.take(rest), labels[rest])
        return float(np.abs(after.params["w"][:, :2] - state.params["w"][:, :2]).mean())

    assert moved(300.0) < 0.7 * moved(0.0)


def test_a_head_takes_a_step_for_each_batch_and_filling_up_changes_nothing(examples):
    found, labels = examples
    learner = fine_tuned(0.1, "sgd")
    state = learned(learner, examples, part=NUMBER)
    weights, momentum = np.zeros((WIDTH + 1, CLASSES)), np.zeros((WIDTH + 1, CLASSES))
    x = np.concatenate([found.features.astype(float), np.ones((NUMBER, 1))], axis=1)
    for start in range(0, NUMBER, BATCH):
        batch, y = x[start : start + BATCH], np.eye(CLASSES)[labels[start : start + BATCH]]
        p = np.exp(batch @ weights)
        momentum = 0.9 * momentum + batch.T @ (p / p.sum(axis=1, keepdims=True) - y) / BATCH
        weights -= 0.1 * momentum
    np.testing.assert_allclose(state.params["w"], weights[:-1], atol=1e-4)


def test_joint_methods_separate_what_can_be_separated(examples):
    found, labels = examples
    for method, setting in ((joint_logistic, 1e-4), (joint_svm, 1.0)):
        answers = method(setting, found, labels, found, CLASSES).argmax(axis=1)
        assert (answers == labels).mean() > 0.9
    x = np.concatenate([found.features.astype(float), np.ones((NUMBER, 1))], axis=1)
    logits = joint_logistic(1e-2, found, labels, found, CLASSES)
    w = np.linalg.lstsq(x, logits, rcond=None)[0]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gradient = x.T @ (p - np.eye(CLASSES)[labels]) / NUMBER + 2e-2 * w
    assert np.abs(gradient).max() < 1e-3


# Whole runs.


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    llama = configuration("llama")
    write_directory(folder / "llama", llama, tensors_of(llama))
    return write_labelled(folder)


def call(inputs, workdir, *more):
    flags = [f"--data_dir={inputs}", f"--pretrained={inputs / 'llama'}", f"--workdir={workdir}", "--tasks=3"]
    return class_incremental.main(["class_incremental", *flags, "--layer=1", *more])


@pytest.mark.slow
def test_every_method_runs_and_the_table_has_all(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(table, "FOURIER", 32)
    assert call(inputs, tmp_path / "run", "--quick", "--dataset=dbpedia") == 0
    out = capsys.readouterr().out
    results = results_of(tmp_path / "run")
    assert set(results["figures"]) == set(results["settings"]) == set(NAMES)
    for name in NAMES:
        (found,) = results["figures"][name]
        assert 0 <= found["last_accuracy"] <= found["top_3"] <= 1
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
        assert ("matrix" in found) == (name in METHODS)
    assert results["figures"]["naive_bayes"][0]["last_accuracy"] > 0.9  # the words tell the class
    assert results["figures"]["joint_svm"][0]["last_accuracy"] > 0.9
    for figure in ("accuracy_matrix.png", "forgetting.png"):
        assert (tmp_path / "run" / figure).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["model"] == "lda/order_0"] == [1, 2, 3]
    assert list((tmp_path / "run/features").glob("features_layer1_*.npy"))


def test_settings_are_chosen_on_validation_texts_and_orders_differ(inputs, tmp_path, capsys):
    methods = "--methods=naive_bayes,lda,joint_svm"
    assert call(inputs, tmp_path / "run", "--order=domains", methods, "--seeds=2") == 0
    results = results_of(tmp_path / "run")
    chosen = results["settings"]["lda"]
    assert chosen["setting"] == chosen["settings"][int(np.argmax(chosen["validation"]))]
    assert len(results["figures"]["lda"]) == 2
    assert len(results["figures"]["lda"][0]["matrix"]) == 2  # two domains
    assert len(results["figures"]["joint_svm"]) == 1
    assert "±" in capsys.readouterr().out
    before = results_of(tmp_path / "run")
    assert call(inputs, tmp_path / "run", "--order=domains", methods, "--seeds=2") == 0
    assert results_of(tmp_path / "run") == before


def test_a_learner_of_texts_stores_its_share_and_answers_among_the_labels_seen(inputs):
    """Replay, elastic weight consolidation and examples in the window, on a small model, without a run."""
    pretrained = load_pretrained(inputs / "llama")
    examples = [(f"word {i} of {label}", label) for i in range(6) for label in ("one thing", "another")]
    levels = (StackedLevel("adam", blocks=(-1,), rule="adam", learning_rate=1e-2),)
    replay = Replay(pretrained, levels, every=3, answered=4, batch=4)
    elastic = Elastic(pretrained, levels, penalty=1.0, answered=4, batch=4)
    window = InContext(pretrained, levels, answered=8)
    for learner in (replay, elastic, window):
        learner.learn(examples)
        learner.end_task(examples)
        assert set(learner.predict(["word 3 of another", "?"], ["one thing", "another"])) <= {"one thing", "another"}
    assert [label for _, label in replay.stored] == ["one thing", "another"] * 2
    assert int(replay.state.step) == 6  # twice 12 examples, but for the first batch, which found none stored
    assert all(np.all(leaf >= 0) for leaf in elastic.learner.pull["adam"].strength.values())
    assert {label: len(texts) for label, texts in window.newest.items()} == {"one thing": 6, "another": 6}
    shown = window.tokenizer.decode(np.asarray(window._prefix(10**6))).lstrip("\n")
    assert shown.count("label: one thing\n\n") == shown.count("label: another\n\n") == 6
    ids = window._prefix(10**6)
    assert ids[-2:] == 2 * window.encode("\n")  # the last example ends as the others do


def test_candidates_are_the_nearest_classes_and_the_model_chooses_after_their_examples(inputs, monkeypatch):
    pretrained = load_pretrained(inputs / "llama")
    levels = TEXT_METHODS["inca"].levels((0,))
    learner = candidates.Candidates(pretrained, levels, answered=8, layer=8, ridge=1e-2, shown=2)
    words = {"one": "abc", "two": "xyz", "three": "klm", "four": "qrs"}
    tasks = [("one", "two"), ("three", "four")]
    examples = [[(f"{words[label]} {i} {words[label]}", label) for i in range(9) for label in task] for task in tasks]
    for part in examples:
        learner.learn(part)
        learner.end_task(part)
    whole = candidates.Candidates(pretrained, levels, answered=8, layer=8, ridge=1e-2, shown=2)
    whole.standard = learner.standard
    whole.learn([*examples[0], *examples[1]])  # in one part
    np.testing.assert_allclose(whole.scores(["abc 9 abc"]), learner.scores(["abc 9 abc"]), rtol=1e-3)
    asked, read = [f"{words[label]} 9 {words[label]}" for label in words], []
    assert np.argmax(learner.scores(asked), axis=1).tolist() == [0, 1, 2, 3]

    def likeliest(model, prompts, answers, batch_size):
        read.append((prompts[0], answers))
        return Answers(np.array([1]), np.zeros(1), 1)

    monkeypatch.setattr(candidates, "likeliest", likeliest)
    learner.predict(asked, list(words))
    for ids, answers in read:  # what is too long for the context is cut
        assert len(ids) + max(map(len, answers)) <= learner.model.config.context_length
    read.clear()
    learner.model.config = dataclasses.replace(learner.model.config, context_length=512)  # so that no prompt is cut
    found = learner.predict(asked, list(words))
    for text, label, answer, (ids, answers) in zip(asked, words, found, read, strict=True):
        prompt = learner.tokenizer.decode(np.asarray(ids))
        assert len(answers) == candidates.CANDIDATES
        assert answer != label  # the second nearest, since that is what the model says
        assert prompt.count(f"label: {label}\n\n") == 2  # examples of the nearest class, too
        assert prompt.endswith(f"{text}\nlabel:")
        assert len(ids) % candidates.LENGTHS == 0


@pytest.mark.slow
def test_methods_that_read_texts_run_go_on_and_take_settings_of_another_run(inputs, tmp_path, capsys):
    flags = ["--form=text", "--dataset=banking77", "--train_per_class=4", "--test_per_class=2", "--seeds=1"]
    some = "--methods=levels,levels_no_slow,joint_levels,zero_shot"

    def run(workdir, *more):
        common = [f"--data_dir={inputs}", f"--pretrained={inputs / 'llama'}", "--tasks=3", f"--workdir={workdir}"]
        assert class_incremental.main(["class_incremental", *common, *flags, *more]) == 0
        return results_of(workdir), capsys.readouterr().out

    results, out = run(tmp_path / "run", some)
    assert results["settings"]["levels_no_slow"]["setting"] == results["settings"]["levels"]["setting"]
    assert len(results["settings"]["levels"]["validation"]) == len(TEXT_METHODS["levels"].settings)
    assert len(results["figures"]["levels"][0]["matrix"]) == 3
    assert all(name in out for name in ("levels_no_slow", "joint_levels", "zero_shot"))
    again, _ = run(tmp_path / "run", some)
    assert again["figures"] == results["figures"]
    taken, _ = run(tmp_path / "taken", "--methods=levels", f"--settings_from={tmp_path / 'run' / 'results.json'}")
    assert taken["settings"]["levels"]["setting"] == results["settings"]["levels"]["setting"]
    assert taken["figures"]["levels"][0]["matrix"] == results["figures"]["levels"][0]["matrix"]


def test_settings_of_a_file_without_them_are_an_error(inputs, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"settings": {}}')
    for file, problem in (("results.json", "levels"), ("absent", "No such file")):
        flags = ["--form=text", "--methods=levels", f"--settings_from={tmp_path / file}", f"--data_dir={inputs}"]
        assert class_incremental.main(["class_incremental", f"--workdir={tmp_path / 'run'}", *flags]) == 2
        error = capsys.readouterr().err
        assert f"--settings_from={tmp_path / file}: " in error
        assert problem in error
        assert not (tmp_path / "run").exists()
