"""The page of a run that is going on: it follows the run's files, and ends when the run does."""

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from experiments import report
from experiments.reporting import live
from experiments.reporting.charts import Line, line_chart, ticks
from nl_jax.files import Owner, locked, owner

HOLDER = """
import sys
from pathlib import Path
from nl_jax.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def row(step, model="hope", **values):
    return {"model": model, "step": step, "tokens": 8 * step, "loss": 5.0 / step, "grad_norm": 1.0, **values}


def write_run(workdir, rows):
    (workdir / "config.json").write_text(
        json.dumps({"launcher": "language_model", "flags": {"steps": 4}, "models": {}})
    )
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_metrics_of_the_cells_of_an_evaluation_are_found(tmp_path):
    write_run(tmp_path, [row(1)])
    cell = tmp_path / "aa/transformer"
    cell.mkdir(parents=True)
    (cell / "metrics.jsonl").write_text(json.dumps(row(2, "rate_0.01/seed_0")) + "\n")
    assert live.rows_of(tmp_path) == [row(1), row(2, "aa/transformer/rate_0.01/seed_0")]


def test_a_lock_has_an_owner_as_long_as_its_process_lives(tmp_path):
    lock = tmp_path / ".nl_jax.lock"
    assert owner(lock) is None
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdout.readline() == "held\n"
        assert owner(lock) == Owner(process.pid, socket.gethostname())
        process.kill()
        process.wait()
        assert owner(lock) is None
    with locked(lock):  # nobody's lock was taken by asking
        assert owner(lock).process == os.getpid()
    assert owner(lock) is None


def test_the_page_follows_a_run_to_its_end(tmp_path, capsys):
    levels = {"grad_norm/cms_0": 0.5, "update_norm/cms_0": 0.1, "update_norm/cms_1": 0.0, "state_norm/mixers": 3.0}
    split = {"seconds/data": 1.0, "seconds/step": 3.0, "memory/bytes_in_use": 2**21}
    rows = [row(1, **levels), row(2, **levels), row(2, validation_bits_per_byte=2.5, tokens_per_second=100.0, **split)]
    write_run(tmp_path, rows)
    page = tmp_path / live.PAGE
    seen = []
    with locked(tmp_path / ".nl_jax.lock") as _:

        def sleep(seconds):
            seen.append((seconds, page.read_text()))
            write_run(tmp_path, [*rows, *(row(step) for step in range(3, 3 + len(seen)))])
            if len(seen) == 2:
                raise KeyboardInterrupt  # as by Ctrl-C

        with pytest.raises(KeyboardInterrupt):
            live.watch(tmp_path, 7, sleep=sleep)
    first, second = (text for _, text in seen)
    assert [seconds for seconds, _ in seen] == [7, 7]
    assert '<meta http-equiv="refresh" content="7">' in first
    assert f"Process {os.getpid()} is at it" in first
    assert "2 of 4" in first
    assert "3 of 4" in second
    assert "4 of 4" in page.read_text()
    assert "refresh" not in page.read_text()  # nobody writes it any more
    for words in ("Loss", "Validation bits per byte", "Norm of the gradient of hope", "Norm of the update of hope"):
        assert words in first
    for words in ("Norm of the state", "Memory of the process", "Memory of the device", "1.0 (25%)", "cms_0"):
        assert words in first
    assert "cms_1" not in first  # it has not been due
    assert not re.search(r"(?:src|href)=|https?://", first)

    assert report.main(["report", "--live", f"--workdir={tmp_path}"]) == 0  # of a run that has ended
    assert "The run has ended; its page is" in capsys.readouterr().out
    assert "No process writes there any more" in page.read_text()


def test_a_run_without_a_step_has_a_page(tmp_path):
    write_run(tmp_path, [])
    assert "No step has been recorded yet" in live.watch(tmp_path, 1).read_text()


def test_a_last_line_that_is_being_written_and_values_that_are_not_finite_are_left_out(tmp_path):
    write_run(tmp_path, [row(1), row(2) | {"loss": math.nan}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"model": "hope", "st')
    assert "2 of 4" in live.watch(tmp_path, 1).read_text()


def test_charts_are_svg_with_names_that_do_not_overlap():
    lines = [Line(f"line {i}", range(1000), [i * 1e-3 + 2.0] * 1000) for i in range(6)]
    svg = ElementTree.fromstring(line_chart(lines, title="a < b", x_label="step"))
    names = [text for text in svg.iter("text") if "line " in (text.text or "")]
    places = sorted(float(text.get("y")) for text in names)
    assert len(names) == 6
    assert all(after - before >= 14.9 for before, after in itertools.pairwise(places))
    assert 0 < places[0] < places[-1] <= 280
    lines = list(svg.iter("polyline"))
    assert all(line.get("stroke", "").startswith("#") for line in lines)
    assert all(len(line.get("points").split()) <= 300 for line in lines)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 7.1), (1e-7, 3e-7), (0, 123456)])
def test_ticks_are_few_and_within_the_axis(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert low - 1e-12 <= found[0] < found[-1] <= high + 1e-9


def test_names_of_runs_are_shown_by_what_they_differ_in():
    lines = [Line(f"32x4/{name}/seed_0", [1.0, 2.0], [1.0, 2.0]) for name in ("hope", "titans")]
    assert re.findall(r">2 (\w+)<", line_chart(lines, title="loss", x_label="step")) == ["hope", "titans"]


def test_nothing_to_draw_is_no_chart():
    assert line_chart([Line("a", [1.0], [0.0])], title="a", x_label="step", log=True) == ""
    assert "<polyline" in line_chart([Line("a", [1.0], [0.0])], title="a", x_label="step")
