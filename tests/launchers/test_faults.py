"""Rounds of faults: real runs that are disturbed and go on, and what is said of one that does not."""

import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
from launcher_cases import results_of

from experiments import faults
from experiments.fault_rounds import disturbed_run, rounds
from experiments.fault_rounds.kinds import KINDS
from experiments.fault_rounds.kinds_of_four import KINDS_OF_FOUR
from experiments.fault_rounds.rounds import Outcome

FAILED = Outcome("kill_step", -9, None, 0.1, 2.0, ["the figures are not those of a run without a fault"])


def processes_with(argument):
    """The command lines of running processes that have a text in their arguments."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().decode(errors="replace").replace("\0", " "))
    return [line for line in lines if argument in line]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [KINDS, KINDS_OF_FOUR], ids=["one process", "four processes"])
def test_every_kind_of_fault(kinds, tmp_path, capsys):
    arguments = ["faults", f"--workdir={tmp_path / 'run'}", f"--rounds={len(kinds)}", "--seed=3"]
    assert faults.main([*arguments, f"--kinds={','.join(kinds)}"]) == 0, capsys.readouterr().out
    table = capsys.readouterr().out
    for kind in kinds:
        assert re.search(rf"^{kind} +1 +1 ", table, re.MULTILINE)
    assert processes_with(str(tmp_path)) == []
    codes = {played["kind"]: played["code"] for played in results_of(tmp_path / "run")["rounds"]}
    assert codes.get("kill_save", -9) == -9
    assert list((tmp_path / "run/rounds").iterdir()) == []  # all of them recovered


def test_a_run_that_does_not_recover_is_named(tmp_path, monkeypatch, capsys):
    played = []

    def play(kind, seed, *_):
        played.append((kind, seed))
        return FAILED if kind == "kill_step" else dataclasses.replace(FAILED, kind=kind, line="error: x", problems=[])

    monkeypatch.setattr(faults, "undisturbed", lambda *_: ({}, 1.0))
    monkeypatch.setattr(faults, "play", play)
    arguments = ["faults", f"--workdir={tmp_path}", "--rounds=3", "--kinds=kill_step,sigterm"]
    assert faults.main(arguments) == 4
    out, err = capsys.readouterr()
    assert [kind for kind, _ in played] == ["kill_step", "sigterm", "kill_step"]
    assert len({seed for _, seed in played}) == 3
    assert f"{tmp_path / 'rounds' / '2'}: kill_step: the figures are not" in out
    assert "2 of 3 runs did not recover" in err
    assert len(results_of(tmp_path)["rounds"]) == 3
    assert faults.main(arguments) == 4  # and is not played again
    assert len(played) == 3


def judged(tmp_path, code, stderr, disturbance):
    """What is found wrong with a run that ended so."""
    process = type("Process", (), {"returncode": code})()
    run = disturbed_run.Run(process, tmp_path / "run", 0.0)
    (tmp_path / "run.err").write_text(stderr)
    disturbance = dataclasses.replace(disturbance, run=run)
    return rounds.problems_of(disturbance, rounds.line_of(disturbance))


@pytest.mark.parametrize(
    ("code", "stderr", "seconds", "problem"),
    [
        (3, "error: no room\n", 1.0, None),
        (2, "error: no room\n", 1.0, "exit code 2, expected 3"),
        (3, "error: no\n", 1.0, "not one line on stderr"),
        (3, "error: no room\nerror: no room\n", 1.0, "2 lines of errors"),
        (3, "error: no room\n", 99.0, "it ended 99 s after the fault"),
        (3, "Traceback (most recent call last):\nerror: no room\n", 1.0, "a traceback on stderr"),
    ],
)
def test_what_is_wrong_with_the_end_of_a_run(code, stderr, seconds, problem, tmp_path):
    disturbance = rounds.Disturbance(None, seconds, (3,), "error: .*room")
    found = judged(tmp_path, code, stderr, disturbance)
    assert found == [] if problem is None else any(text.startswith(problem) for text in found)
