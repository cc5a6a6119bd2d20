"""The page of all results: figures become tables, and the page holds every run with its command."""

import json
import re
import shlex
from pathlib import Path

import pytest
from launcher_cases import error_line
from launcher_table import LAUNCHERS, module_of
from report_cases import evaluation

from experiments import report
from experiments.common.level_flags import fields_of, levels_of
from experiments.reporting.page import Table, markdown, self_contained_html
from experiments.reporting.runs import Run, command_of, numbers_of, read_run, tables
from experiments.reporting.verdicts import HOLDS
from nl_jax.plotting import new_figure, save_figure
from nl_jax.pretrained import StackedLevel


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
    figures = {"hope": [1.9, 1.91], "transformer": [2.1, 2.12], "titans": [2.0, 2.01]}
    workdir = write_run(tmp_path / "text", evaluation(tmp_path / "text", "evals.language", figures))
    arguments = ["report", f"--workdirs={workdir}", f"--workdir={tmp_path / 'page'}"]
    assert report.main(arguments) == 0
    assert re.search(rf"^Language modelling +{HOLDS}$", capsys.readouterr().out, re.M)
    text = (tmp_path / "page/report.md").read_text()
    command = "python -m experiments.evals.language --workdir=text --seeds=2 --models=hope,transformer,titans"
    assert command in text
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


def command(launcher, flags, **results):
    """The words of the command of a run with these flags."""
    run = Run(Path("runs/mine"), launcher, {"configuration": {"flags": flags}, **results})
    return shlex.split(command_of(run))


def test_a_flag_of_value_zero_or_false_is_in_the_command():
    words = command("evals.mad", {"parameters": 0, "layer": 0, "dtype": None, "quick": False, "chat": True, "none": []})
    assert words[:3] == ["python", "-m", "experiments.evals.mad"]
    assert words[3:] == ["--workdir=mine", "--parameters=0", "--layer=0", "--noquick", "--chat", "--none="]


def test_options_that_are_given_several_times_stay_whole_in_a_shell():
    options = ['eta=("sigmoid", 1.0)', "alpha=(0.5,1.0)", "rule='paper'"]
    words = command("recall", {"mixer_option": options, "models": ["a", "b"], "question": "$HOME\nand `this`"})
    assert words[4:] == [
        *(f"--mixer_option={option}" for option in options),
        "--models=a,b",
        "--question=$HOME\nand `this`",
    ]


def test_inputs_are_in_the_command_but_not_what_was_read_of_them():
    inputs = {"data": "/my texts/a.txt", "text_key": "text", "skip_bad": False, "tokenizer": None}
    words = command("language_model", {"steps": 3}, inputs=inputs | {"read": {"documents": 1}, "lost_share": 0.1})
    assert words[4:] == ["--steps=3", "--data=/my texts/a.txt", "--text_key=text", "--noskip_bad"]
    words = command("subjects", {}, inputs={"texts": ["/a.txt", "/with, comma.txt"]})
    assert words[4:] == ['--texts=/a.txt,"/with, comma.txt"']


def test_a_subject_stands_before_the_flags():
    words = command("optimizers", {"subject": "toy", "optimizers": ["sgd"]})
    assert words[2:] == ["experiments.optimizers", "toy", "--workdir=mine", "--optimizers=sgd"]


def test_what_no_flag_holds_comes_from_the_results():
    assert command("topology", {}, figures={"hope": {}, "titans": {}})[4:] == ["--models=hope,titans"]
    words = command("evals.lm_eval", {"limit": 2}, tasks={"arc_easy": {}})
    assert words[3:] == ["--output=mine", "--limit=2", "--tasks=arc_easy"]
    settings = {"levels": {"setting": {}, "from": "/other/results.json"}}
    words = command("continual.class_incremental", {"quick": True, "first_tasks": 3}, settings=settings)
    assert words[4:] == ["--quick", "--settings_from=/other/results.json"]


def test_a_learner_has_the_levels_and_files_that_it_had():
    levels = [StackedLevel("a", 2, blocks=(-2, -1), matrices=("gate", "up")), StackedLevel("b", 8, units=(0.5, 1.0))]
    files = {"0": {"name": "/my notes.txt"}, "1": {"name": "stdin.txt"}}
    flags = {"levels": json.loads(json.dumps(fields_of(levels))), "ask_itself": True, "question": "Q: {text}"}
    words = command("learn", flags, figures={"files": files})
    assert "--ask_itself" in words
    assert "--files=/my notes.txt" in words
    assert not any(word.startswith("--question") for word in words)
    (given,) = [word.removeprefix("--levels=") for word in words if word.startswith("--levels=")]
    assert levels_of(given) == levels


@pytest.mark.parametrize("name", sorted(set(LAUNCHERS) - {"report", "learn", "evals.lm_eval"}))
def test_a_launcher_takes_its_command(name):
    """All flags come back, none of them as its default, where a value of its kind can be made up."""
    values = module_of(name).define_flags()
    given = {flag: other_value(value) for flag, value in values.flag_values_dict().items()}
    del given["workdir"]
    found = module_of(name).define_flags()
    found(command(name, given)[2:])
    assert {flag: found[flag].value for flag in given} == given


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 0 * value
    return value if value is None else [*value, "a b"] if isinstance(value, list) else value


def test_inputs_that_only_the_configuration_has_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"launcher": "learn", "inputs": {"pretrained": "/models/small"}}))
    (tmp_path / "results.json").write_text('{"figures": {}}')
    assert "--pretrained=/models/small" in command_of(read_run(tmp_path))
