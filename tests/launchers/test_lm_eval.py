"""The launcher of lm-eval's tasks: what it keeps, what it refuses, and a run on local tasks."""

import pytest
from harness_cases import write_tasks
from launcher_cases import error_line, results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments.eval_runs import harness
from experiments.evals import lm_eval

pytest.importorskip("lm_eval", reason="needs the package lm-eval: pip install nl-jax[eval]")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    config = configuration("llama")
    return write_directory(tmp_path_factory.mktemp("model") / "llama", config, tensors_of(config))


def call(*arguments):
    return lm_eval.main(["evals.lm_eval", *map(str, arguments)])


def test_finished_tasks_are_kept_and_more_can_be_added(llama, tmp_path, capsys, monkeypatch):
    evaluated = []

    def evaluate(adapter, tasks, name, values):
        if name == "broken" and "broken" not in evaluated:
            evaluated.append(name)
            raise KeyboardInterrupt
        evaluated.append(name)
        return {name: {"alias": name, "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25}}

    monkeypatch.setattr(harness, "_tasks", lambda values: None)
    monkeypatch.setattr(harness, "_evaluate", evaluate)
    given = (f"--model={llama}", f"--output={tmp_path / 'out'}")
    assert call(*given, "--tasks=one,broken,two") == 130
    assert call(*given, "--tasks=one,broken,two", "--batch_size=2") == 0
    assert evaluated == ["one", "broken", "broken", "two"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[1:3]] == [
        ["one", "acc", "0.5000", "0.1000"],
        ["one", "f1", "(strict)", "0.2500", "-"],
    ]
    assert printed[-1].startswith(f"Everything is in {tmp_path / 'out'}: results.json")
    assert call(*given, "--tasks=three") == 0
    assert evaluated[4:] == ["three"]
    assert list(results_of(tmp_path / "out")["tasks"]) == ["one", "broken", "two", "three"]
    capsys.readouterr()
    assert call(*given, "--tasks=one", "--limit=3") == 2
    assert "limit None there, 3 here" in error_line(capsys)


@pytest.mark.slow
def test_a_run_on_local_tasks(llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tasks = write_tasks(tmp_path / "tasks")
    given = (f"--model={llama}", f"--tasks_dir={tasks}", "--max_length=256")
    assert call(*given, "--tasks=local_choice,local_text,local_write", "--limit=2") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        ["local_choice", "acc"],
        ["local_text", "bits_per_byte"],
        ["local_write", "exact_match"],
    ]
    assert call(*given, "--tasks=local_choice,nowhere") == 2
    assert "--tasks=nowhere: expected tasks that lm-eval knows or of --tasks_dir=" in error_line(capsys)
    (tasks / "local_text.jsonl").unlink()
    assert call(*given, "--tasks=local_text") == 2
    assert "--tasks=local_text: its data cannot be read (" in error_line(capsys)
