"""Verdicts on the claims of the paper follow from figures, seeds, references and what the runs lack."""

import pytest
from report_cases import evaluation, seed, stream

from experiments.continual_methods.table import JOINT as JOINT_METHODS
from experiments.continual_methods.text_table import TEXT_METHODS
from experiments.eval_runs.hope_rows import LEVELS, ROWS
from experiments.eval_runs.language_subtasks import PAPER_NAMES
from experiments.reporting.claims import CLAIMS, HYBRIDS, TRANSFORMERS, VARIANTS, is_recurrent, verdict_of
from experiments.reporting.runs import Run
from experiments.reporting.verdicts import FAILS, HOLDS, JOINT, OPEN, Comparison, from_comparisons
from nl_jax.models import MODEL_NAMES

ACCURACY, FORGETTING = "Continual learning: accuracy", "Continual learning: forgetting"


def verdict(title, *runs):
    return verdict_of(next(claim for claim in CLAIMS if claim.title == title), runs)


def against(ours, other, lower=False):
    return Comparison("s", "hope", "titans", ours, other, lower)


# The rule.


@pytest.mark.parametrize(
    ("hope", "other", "word"),
    [
        ([1.9, 1.91, 1.92], [2.1, 2.11, 2.12], HOLDS),
        ([2.1, 2.11, 2.12], [1.9, 1.91, 1.92], FAILS),
        ([1.9, 2.1, 2.3], [2.0, 2.2, 2.4], OPEN),
        ([1.9], [2.5], OPEN),
        ([], [2.5, 2.5], OPEN),
    ],
)
def test_the_verdict_on_language_follows_from_the_seeds(tmp_path, hope, other, word):
    run = evaluation(tmp_path, "evals.language", {"hope": hope, "transformer": other, "titans": other})
    assert verdict("Language modelling", run).word == word


def test_one_worse_comparison_is_enough_and_its_figures_are_the_evidence(tmp_path):
    figures = {"hope": [2.0, 2.0], "titans": [1.5, 1.5], "transformer": [3.0, 3.0]}
    found = verdict("Language modelling", evaluation(tmp_path, "evals.language", figures))
    assert found.word == FAILS
    assert "titans: 2.000 against 1.500" in found.evidence


def test_a_claim_about_two_kinds_of_models_needs_both(tmp_path):
    figures = {"hope": [1.0, 1.0], "transformer": [2.0, 2.0]}
    found = verdict("Language modelling", evaluation(tmp_path, "evals.language", figures))
    assert found.word == OPEN
    assert "the runs lack a recurrent model" in found.evidence


def test_at_the_ceiling_nothing_is_better_but_all_is_at_or_above():
    both, better = against([1.0, 1.0], [1.0, 1.0]), against([1.0, 1.0], [0.5, 0.5])
    assert from_comparisons([both]).word == OPEN
    found = from_comparisons([both], full=1.0)
    assert found.word == OPEN
    assert found.evidence.startswith("all at the ceiling")
    assert from_comparisons([both], full=1.0, at_or_above=True).word == HOLDS
    assert from_comparisons([better, both], full=1.0).evidence.startswith("both at the ceiling in 1 of 2")
    assert from_comparisons([better], full=1.0).word == HOLDS
    below = against([0.5, 0.5], [1.0, 1.0])
    assert from_comparisons([below, both], full=1.0, at_or_above=True).word == FAILS


def test_a_ceiling_does_not_bring_a_rival_within_the_spread_below():
    noisy = against([0.995, 0.995], [0.96, 0.99])
    assert from_comparisons([noisy], full=0.99).word == OPEN
    assert from_comparisons([noisy], full=0.99, at_or_above=True).word == HOLDS


@pytest.mark.parametrize("at_or_above", [False, True])
def test_one_seed_decides_nothing_at_the_ceiling_either(at_or_above):
    for ours, other in (([1.0], [1.0, 1.0]), ([1.0], [0.1]), ([1.0, 1.0], [0.1])):
        found = from_comparisons([against(ours, other)], full=1.0, at_or_above=at_or_above)
        assert found.word == OPEN
        assert found.evidence.startswith("one seed only")


def test_a_run_that_is_not_finished_decides_nothing(tmp_path):
    figures = {"hope": [1.9, 1.9], "transformer": [2.5, 2.5], "titans": [2.5, 2.5]}
    ended = evaluation(tmp_path, "evals.language", figures)
    assert verdict("Language modelling", ended).word == HOLDS
    for more in ({"wanted": 3}, {"figures": figures | {"delta_net": []}}):
        run = evaluation(tmp_path, "evals.language", **{"figures": figures} | more)
        found = verdict("Language modelling", ended, run)
        assert found.word == OPEN
        assert found.evidence.startswith("the run is not finished: ")
    run = stream(tmp_path, {"ours": [(0.9, 0.1)] * 2, "lda": [(0.8, 0.2)] * 2, "ewc": []})
    assert "ewc has 0 of 2 seeds" in verdict(ACCURACY, run).evidence
    del run.results["figures"]["ewc"]  # as before its first order has ended
    assert "ewc has 0 of 2 seeds" in verdict(ACCURACY, run).evidence


def test_a_model_that_was_not_finite_leaves_the_claim_open(tmp_path):
    figures = {"hope": [1.9, 1.9], "transformer": [2.5, 2.5], "titans": [2.5, 2.5]}
    run = evaluation(tmp_path, "evals.language", figures, wanted=3)
    for cell in run.results["subtasks"]["1024"].values():
        cell["diverged"] = {"1": "titans: loss is nan"}
    found = verdict("Language modelling", run)
    assert found.word == OPEN
    assert found.evidence.endswith("1024, hope, seed 1")


# Which models are rivals.


def test_every_model_has_a_kind():
    named = {"hope", *TRANSFORMERS, *HYBRIDS, *VARIANTS}
    recurrent = set(filter(is_recurrent, MODEL_NAMES))
    assert named <= set(MODEL_NAMES)
    assert recurrent == set(MODEL_NAMES) - named
    assert {"titans", "delta_net", "lstm", "mamba2", "atlas"} <= recurrent


@pytest.mark.parametrize(
    ("title", "name", "key", "best"),
    [("Recall from the context", "evals.recall", "accuracy", 0.9), ("Long contexts: needles", "evals.niah", "x1", 90)],
)
def test_recurrent_models_are_not_compared_with_attention(tmp_path, title, name, key, best):
    with_attention = {model: [best, best] for model in ("hope_attention", *TRANSFORMERS, *HYBRIDS)}
    figures = {"hope": [best * 0.8] * 2, "titans": [best * 0.5] * 2, **with_attention}
    assert verdict(title, evaluation(tmp_path, name, figures, key)).word == HOLDS
    del figures["titans"]
    assert verdict(title, evaluation(tmp_path, name, figures, key)).word == OPEN


def test_mad_needs_every_task_of_the_paper(tmp_path):
    figures = {"hope": [1.0, 1.0], "titans": [1.0, 1.0]}
    run = evaluation(tmp_path, "evals.mad", figures, "classes", "recall")
    found = verdict("Synthetic tasks of memory", run)
    assert found.word == OPEN
    assert "the runs lack compression, fuzzy_recall, copying, memorization" in found.evidence
    cells = run.results["subtasks"]["recall"]
    run.results["subtasks"] |= dict.fromkeys(("compression", "fuzzy_recall", "copying", "memorization"), cells)
    assert verdict("Synthetic tasks of memory", run).word == HOLDS


# All right.


def languages(workdir, shares):
    """A run of formal languages: Bin1's shares of each seed by language."""
    cells = {
        name: {"hope": {"seeds": [seed({"bin0": 1.0, "bin1": share}) for share in found]}}
        for name, found in shares.items()
    }
    return Run(workdir, "evals.formal_languages", {"subtasks": cells})


def test_formal_languages_hold_only_if_every_seed_of_each_is_all_right(tmp_path):
    right = {name: [1.0, 1.0] for name in PAPER_NAMES}
    assert verdict("State tracking", languages(tmp_path, right)).word == HOLDS
    found = verdict("State tracking", languages(tmp_path, right | {"aa": [1.0, 0.998]}))
    assert found.word == FAILS
    assert "aa, bin1 0.999" in found.evidence
    one, rest = languages(tmp_path, {"parity": [1.0, 1.0]}), dict(right)
    del rest["parity"]
    assert verdict("State tracking", one, languages(tmp_path, rest)).word == HOLDS
    assert verdict("State tracking", languages(tmp_path, {"parity": [1.0, 0.5]}), languages(tmp_path, right)).word == (
        FAILS
    )


def test_formal_languages_say_what_is_missing(tmp_path):
    found = verdict("State tracking", languages(tmp_path, {"parity": [1.0, 1.0], "aa": [1.0]}))
    assert found.word == OPEN
    assert found.evidence.endswith(" on aa, abab, shuffle_2, anbn, anbncn")


# References.


def questions(workdir, hope, other, frequent):
    references = {} if frequent is None else {"most frequent label": {"qa1": {"longest": frequent}}}
    figures = {"hope": hope, **({} if other is None else {"titans": other})}
    return evaluation(workdir, "evals.babilong", figures, "longest", "qa1", references=references)


@pytest.mark.parametrize(
    ("hope", "other", "frequent", "word"),
    [
        ([80.0, 82.0], [20.0, 22.0], 18.0, HOLDS),
        ([15.0, 15.0], [5.0, 5.0], 18.0, FAILS),  # better than the other model, but one answer is right more often
        ([17.0, 21.0], [5.0, 5.0], 18.0, OPEN),
        ([80.0, 82.0], [20.0, 22.0], None, OPEN),
        ([80.0, 82.0], None, 18.0, OPEN),
        ([100.0, 100.0], [100.0, 100.0], 18.0, OPEN),
        ([100.0], [20.0], 18.0, OPEN),
    ],
)
def test_questions_are_answered_if_more_are_right_than_by_one_answer(tmp_path, hope, other, frequent, word):
    assert verdict("Long contexts: reasoning", questions(tmp_path, hope, other, frequent)).word == word


def functions(workdir, hope, other):
    references = {name: {"linear": {"error": 0.1}} for name in ("least_squares", "nearest_neighbours")}
    figures = {"hope": hope, "transformer": other}
    return evaluation(workdir, "evals.few_shot", figures, "error", "linear", references=references)


@pytest.mark.parametrize(
    ("hope", "other", "learned", "estimators"),
    [
        ([0.05, 0.06], [0.2, 0.2], HOLDS, HOLDS),
        ([0.15, 0.16], [0.2, 0.2], HOLDS, FAILS),
        ([1.1, 1.2], [1.9, 1.9], FAILS, FAILS),  # better than the other model, but always saying 0 is better still
        ([0.9, 1.0], [1.9, 1.9], OPEN, FAILS),
        ([0.05], [0.2], OPEN, OPEN),
    ],
)
def test_functions_are_learned_if_the_error_is_below_that_of_0(tmp_path, hope, other, learned, estimators):
    run = functions(tmp_path, hope, other)
    assert verdict("Few-shot generalisation", run).word == learned
    assert verdict("Few-shot generalisation: estimators", run).word == estimators


# Parts and levels.


def test_each_part_is_compared_with_its_absence(tmp_path):
    rows = {row: [1.2, 1.2] for row in ROWS} | {"hope_paper": [1.0, 1.0], "hope": [0.5, 0.5]}
    ablation = evaluation(tmp_path, "evals.ablation", rows, subtask="language")
    assert verdict("Parts of Hope", ablation).word == HOLDS
    del rows["without_cms"]
    found = verdict("Parts of Hope", evaluation(tmp_path, "evals.ablation", rows, subtask="language"))
    assert found.word == OPEN
    assert "the runs lack without_cms" in found.evidence
    rows["without_cms"] = [0.9, 0.9]
    assert verdict("Parts of Hope", evaluation(tmp_path, "evals.ablation", rows, subtask="language")).word == FAILS


@pytest.mark.parametrize(("subtask", "figures"), [("parity", {"both": 0.1, "bits_per_byte": 9.0}), ("mk_1", {"x1": 0})])
def test_perplexity_is_decided_by_text_alone(tmp_path, subtask, figures):
    rows = {row: [1.2, 1.2] for row in ROWS} | {"hope_paper": [1.0, 1.0]}
    levels = {name: [2.0 - 0.1 * i] * 2 for i, name in enumerate(LEVELS)}
    for title, name, found in (("Parts of Hope", "evals.ablation", rows), ("Levels", "evals.levels", levels)):
        run = evaluation(tmp_path, name, found, subtask="language")
        high = {"both": 1.0, "x1": 100.0, "bits_per_byte": 1.0}
        bad = ("hope_paper", "levels_4")
        run.results["subtasks"][subtask] = {
            model: {"seeds": [seed(figures if model in bad else high)] * 2} for model in found
        }
        assert verdict(title, run).word == HOLDS


def test_each_level_is_compared_with_one_less(tmp_path):
    rows = {"levels_1": [1.2, 1.2], "levels_2": [1.0, 1.0], "levels_3": [1.1, 1.1]}
    found = verdict("Levels", evaluation(tmp_path, "evals.levels", rows, subtask="language"))
    assert found.word == FAILS
    assert "levels_3 against levels_2" in found.evidence
    rows["levels_3"] = [0.9, 0.9]
    found = verdict("Levels", evaluation(tmp_path, "evals.levels", rows, subtask="language"))
    assert found.word == OPEN
    assert "the runs lack levels_4 against levels_3" in found.evidence


# Continual learning.


def test_classes_are_compared_without_joint_training_and_our_variants(tmp_path):
    ours, rest = [(0.93, 0.03), (0.94, 0.03)], [(0.90, 0.05), (0.90, 0.05)]
    best = dict.fromkeys(("levels", "levels_no_slow", "levels_no_fast"), [(0.99, 0.0)] * 2)
    run = stream(tmp_path, {"ours": ours, "lda": rest, **best, "joint_svm": [(0.99, 0.0)]})
    assert verdict(ACCURACY, run).word == verdict(FORGETTING, run).word == HOLDS
    assert verdict(ACCURACY).word == OPEN
    assert verdict(ACCURACY, stream(tmp_path, {"levels": ours, "lda": rest})).word == OPEN  # ours is not there


def test_on_texts_ours_are_the_levels_and_one_level_is_a_control(tmp_path):
    best = dict.fromkeys(("one_level", "levels_no_slow"), [(0.9, 0.01)] * 2)
    figures = {"levels": [(0.5, 0.2)] * 2, **best, "joint": [(0.9, 0.0)], "joint_levels": [(0.9, 0.0)]}
    run = stream(tmp_path, figures | {"finetune": [(0.3, 0.4)] * 2}, "text")
    for title in (ACCURACY, FORGETTING):
        found = verdict(title, run)
        assert found.word == HOLDS
        assert "in all 1 comparisons" in found.evidence
        assert "levels against finetune" in found.evidence
    assert verdict(ACCURACY, stream(tmp_path, figures | {"finetune": [(0.6, 0.4)] * 2}, "text")).word == FAILS


def test_higher_accuracy_is_not_less_forgetting(tmp_path):
    run = stream(tmp_path, {"ours": [(0.9, 0.2)] * 2, "lda": [(0.8, 0.1)] * 2})
    assert verdict(ACCURACY, run).word == HOLDS
    assert verdict(FORGETTING, run).word == FAILS


def test_what_has_learned_nothing_does_not_forget_less(tmp_path):
    run = stream(tmp_path, {"levels": [(0.9, 0.2)] * 2, "ewc": [(0.3, 0.5)] * 2, "zero_shot": [(0.2, 0.1)] * 2}, "text")
    assert verdict(ACCURACY, run).word == verdict(FORGETTING, run).word == HOLDS


def test_joint_methods_are_those_of_the_tables():
    assert set(JOINT) == {*JOINT_METHODS, *(name for name, method in TEXT_METHODS.items() if method.shuffled)}


def answers(workdir, **exact):
    found = {name: [{"exact": [bool(x) for x in right]}] * 3 for name, right in exact.items()}
    return Run(workdir, "continual.incorporate", {"figures": found})


def test_a_document_that_was_read_is_compared_with_not_reading_it_and_with_fine_tuning(tmp_path):
    title, known = "Knowledge incorporation", {"in_context": [1, 1, 1, 1], "levels": [1, 1, 0, 1]}
    found = verdict(title, answers(tmp_path, without=[0, 0, 1, 0], fine_tuned=[0, 1, 1, 0], **known))
    assert found.word == HOLDS
    assert "0.750 against 0.250" in found.evidence
    assert "lack fine_tuned" in verdict(title, answers(tmp_path, without=[0, 0, 0, 0], **known)).evidence
    assert "lack without" in verdict(title, answers(tmp_path, fine_tuned=[0, 0, 0, 0], **known)).evidence
