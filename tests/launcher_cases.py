"""What tests of launchers share."""

import json


def error_line(capsys):
    """What is on stderr, if it is one line and stdout is empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())
