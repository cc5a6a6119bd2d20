"""The page of all results: verdicts follow from figures and seeds, and the page holds every run."""

import json

import pytest
from launcher_cases import error_line

from experiments import report
from experiments.reporting.claims import CLAIMS, FAILS, HOLDS, OPEN, Comparison, from_comparisons, verdict_of
from experiments.reporting.page import Table, markdown, self_contained_html
from experiments.reporting.runs import Run, numbers_of, tables
from nl_jax.plotting import new_figure, save_figure


def evaluation(workdir, name, figures, key="bits_per_byte", subtask="1024"):
    """A finished evaluation: figures of each seed by model."""
    cells = {
        model: {"parameters": 9, "learning_rate": 1e-3, "seeds": [seed(key, figure) for figure in seeds]}
        for model, seeds in figures.items()
    }
    results = {"shown": {"bits": key}, "paper": {}, "departures": ["smaller | models"], "subtasks": {subtask: cells}}
    return Run(
        workdir, name, results | {"device": "2 x cpu", "configuration": {"flags": {"steps": 3, "models": ["a"]}}}
    )


def seed(key, figure):
    return {"test": {key: figure}, "test_at_best": {key: figure}, "steps": 3}


def claim(title):
    return next(claim for claim in CLAIMS if claim.title == title)


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
    run = evaluation(tmp_path, "evals.language", {"hope": hope, "transformer": other})
    assert verdict_of(claim("Language modelling"), [run]).word == word


def test_one_worse_comparison_is_enough_and_its_figures_are_the_evidence(tmp_path):
    figures = {"hope": [2.0, 2.0], "titans": [1.5, 1.5], "transformer": [3.0, 3.0]}
    verdict = verdict_of(claim("Language modelling"), [evaluation(tmp_path, "evals.language", figures)])
    assert verdict.word == FAILS
    assert "titans: 2.000 against 1.500" in verdict.evidence


def test_where_all_is_right_nothing_can_be_better(tmp_path):
    both = Comparison("both", [1.0, 1.0], [1.0, 1.0])
    assert from_comparisons([both]).word == OPEN
    assert from_comparisons([both], full=1.0).word == HOLDS


def test_formal_languages_hold_only_if_every_seed_is_all_right(tmp_path):
    def judged(shares):
        cells = {"hope": {"seeds": [{"test": {"bin0": 1.0, "bin1": share}} for share in shares]}}
        return verdict_of(
            claim("State tracking"), [Run(tmp_path, "evals.formal_languages", {"subtasks": {"p": cells}})]
        )

    assert judged([1.0, 1.0]).word == HOLDS
    assert judged([1.0, 0.998]).word == FAILS
    assert judged([]).word == OPEN


def test_parts_and_levels_are_compared_with_their_neighbours(tmp_path):
    rows = {"hope_paper": [1.0, 1.0], "without_cms": [1.2, 1.2], "hope": [0.5, 0.5]}
    assert verdict_of(claim("Parts of Hope"), [evaluation(tmp_path, "evals.ablation", rows)]).word == HOLDS
    rows = {"levels_1": [1.2, 1.2], "levels_2": [1.0, 1.0], "levels_3": [1.1, 1.1]}
    verdict = verdict_of(claim("Levels"), [evaluation(tmp_path, "evals.levels", rows)])
    assert verdict.word == FAILS
    assert "levels_3 against levels_2" in verdict.evidence


def test_classes_are_compared_without_joint_training(tmp_path):
    figures = {"ours": [0.93, 0.94], "lda": [0.90, 0.90], "joint_svm": [0.99, 0.99]}
    found = {name: [{"last_accuracy": share} for share in shares] for name, shares in figures.items()}
    run = Run(tmp_path, "continual.class_incremental", {"figures": found})
    assert verdict_of(claim("Continual learning"), [run]).word == HOLDS
    assert verdict_of(claim("Continual learning"), []).word == OPEN


def test_a_document_that_was_read_is_compared_with_not_reading_it(tmp_path):
    answers = {"without": [0, 0, 1, 0], "in_context": [1, 1, 1, 1], "levels": [1, 1, 0, 1]}
    found = {name: [{"exact": [bool(x) for x in exact]}] * 3 for name, exact in answers.items()}
    verdict = verdict_of(claim("Knowledge incorporation"), [Run(tmp_path, "continual.incorporate", {"figures": found})])
    assert verdict.word == HOLDS
    assert "0.750 against 0.250" in verdict.evidence


def test_figures_of_any_launcher_become_a_table(tmp_path):
    entry = {"tuning": {"1.0": 2.0}, "seeds": [{"bits": 2.0, "name": "a"}, {"bits": 3.0, "name": "b"}], "tokens": 7}
    assert numbers_of(entry) == {"bits": [2.0, 3.0], "tokens": [7.0]}
    ((title, rows),) = tables(Run(tmp_path, "compare", {"models": {"hope": entry, "titans": {"tokens": 8}}})).items()
    assert title == "models"
    assert rows == [("", "bits", "tokens"), ("hope", "2.500 ± 0.707", "7.000"), ("titans", "-", "8.000")]


def test_text_cannot_break_the_page(tmp_path):
    parts = [Table([("a|b", "<script>"), ("&", "1")]), "<b>"]
    assert "a\\|b" in markdown(parts, tmp_path)
    page = self_contained_html(parts, "t")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "<b>" not in page


def write_run(workdir, run):
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"launcher": run.launcher}))
    (workdir / "results.json").write_text(json.dumps(run.results))
    save_figure(new_figure()[0], workdir / "results.png")
    return workdir


def test_the_page_has_every_run_its_command_and_its_picture(tmp_path, capsys):
    figures = {"hope": [1.9, 1.91], "transformer": [2.1, 2.12]}
    workdir = write_run(tmp_path / "text", evaluation(tmp_path / "text", "evals.language", figures))
    arguments = ["report", f"--workdirs={workdir}", f"--workdir={tmp_path / 'page'}"]
    assert report.main(arguments) == 0
    assert HOLDS in capsys.readouterr().out
    text = (tmp_path / "page/report.md").read_text()
    assert "python -m experiments.evals.language --workdir=text --steps=3 --models=a" in text
    assert "![results](../text/results.png)" in text
    assert "1.905" in text
    assert "Departure: smaller | models." in text
    page = (tmp_path / "page/report.html").read_text()
    assert "data:image/png;base64," in page
    assert "../text" not in page
    assert report.main(arguments) == 0  # written again


def test_a_workdir_without_results_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"launcher": "compare"}')
    assert report.main(["report", f"--workdirs={tmp_path}", f"--workdir={tmp_path / 'page'}"]) == 2
    assert "no results.json there" in error_line(capsys)
    assert not (tmp_path / "page").exists()
