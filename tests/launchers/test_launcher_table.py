"""Every launcher against the same table: help, bad flags, workdirs that are not its own, going on, SIGKILL."""

import json
import re
import shutil
from pathlib import Path

import pytest
from bad_flags import BAD_FLAGS
from launcher_cases import error_line, read_only
from launcher_table import (
    LAUNCHERS,
    OTHERS,
    READERS,
    RUNS,
    call,
    figures_of,
    files,
    flags_of,
    kill,
    module_of,
    run_of,
    write_inputs,
)
from locks import holder_of

from experiments import stream
from experiments.common import launcher
from experiments.common.path_flags import PathListParser, PathParser
from nl_jax.models import LanguageModelConfig

WRITERS = [name for name in LAUNCHERS if name not in READERS + OTHERS]
# Runs that compile little. The others are slow: what is tested is the same code, in experiments/common.
QUICK = ("parity", "evals.recall", "optimizers toy", "optimizers speed")
every_launcher = pytest.mark.parametrize("name", LAUNCHERS)
every_writer = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_the_table_is_complete():
    root = Path(module_of("recall").__file__).parent
    files = [*root.glob("*.py"), *(root / "continual").glob("*.py"), *(root / "evals").glob("*.py")]
    texts = {".".join(file.relative_to(root).with_suffix("").parts): file.read_text() for file in files}
    del texts["__main__"]  # which runs any of them
    found = {name for name, text in texts.items() if re.search(r"^(def main\(|define_flags, main = )", text, re.M)}
    assert found == set(LAUNCHERS) == set(BAD_FLAGS)
    tasks = {f"{name} {task}" for name in ("optimizers", "benchmark") for task in module_of(name).SUBJECTS}
    assert set(RUNS) == {name for name in WRITERS if LAUNCHERS[name] == []} | tasks


# Help and flags.


@every_launcher
def test_help_explains_the_launcher_and_every_flag(name, capsys):
    assert call(name, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(module_of(name).__doc__.strip())
    values = flags_of(name)
    for flag in values:
        assert f"--{flag}: {values[flag].help.removesuffix(launcher.REPEATED)}" in captured.out


def small_arguments(name, inputs, workdir):
    """Flags with which a launcher could start but for a bad one."""
    return run_of(name).arguments(inputs, workdir) if name in WRITERS else [f"--workdir={workdir}"]


@pytest.mark.parametrize(
    ("name", "flags", "problem"),
    [
        pytest.param(
            name, *case, id=f"{name} {' '.join(case[0]) or 'without a task'}".encode("ascii", "replace").decode()
        )
        for name, cases in BAD_FLAGS.items()
        for case in cases
    ],
)
def test_a_bad_flag_ends_in_one_line_and_nothing_is_written(name, flags, problem, inputs, tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = [flag.replace("{inputs}", str(inputs)) for flag in flags]
    arguments = [f"--workdir={workdir}", *BAD_FLAG_BASES.get(name, "").format(inputs=inputs).split(), *flags]
    assert module_of(name).main([name, *arguments]) == 2
    assert problem in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


# What the bad flags are added to.
BAD_FLAG_BASES = {
    **{
        name: run_of(name).flags
        for name in (
            *("language_model", "compare", "context", "learn"),
            *("continual.class_incremental", "continual.incorporate", "continual.new_languages"),
        )
    },
    "subjects": run_of("subjects").flags + " --seq_len=128",
    "evals.formal_languages": "--subtasks=aa",
    "recall": run_of("recall").flags + " --batch_size=128 --other_text=5,5000",
    "parity": run_of("parity").flags
    + ' --models=delta_net --mixer_option=allow_neg_eigval=True --mixer_option=eta=("sigmoid",1.0)',
}


@every_launcher
def test_every_number_that_is_none_is_refused_by_the_name_of_its_flag(name, inputs, tmp_path, capsys):
    values = flags_of(name)
    numbers = {flag: values[flag].flag_type() for flag in values if values[flag].flag_type() in ("int", "float")}
    arguments = small_arguments(name, inputs, tmp_path / "run")
    for flag, kind in numbers.items():
        for bad in ["many", "1.5"] if kind == "int" else ["many"]:
            assert module_of(name).main([name, *arguments, f"--{flag}={bad}"]) == 2
            assert f"flag --{flag}={bad}" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@every_writer
def test_every_number_out_of_range_is_refused_by_the_name_of_its_flag(name, inputs, tmp_path, capsys):
    values = flags_of(name)
    arguments = small_arguments(name, inputs, tmp_path / "run")
    if name == "optimizers":  # the task that reads most flags; toy does without the number of steps
        arguments = RUNS["optimizers training"].arguments(inputs, tmp_path / "run")
    for flag in values:
        kind = values[flag].flag_type()
        for bad in {"int": ["-1"], "float": ["-1.0", "nan", "inf"]}.get(kind, []):
            assert module_of(name).main([name, *arguments, f"--{flag}={bad}"]) == 2, (flag, bad)
            line = error_line(capsys)
            assert bad in line
            assert f"--{flag}=" in line
    assert list(tmp_path.iterdir()) == []


# What launchers say that take words beside flags.
STRAY = {"learn": "stray: cannot be read", "ask": "no run there"}


@every_launcher
def test_what_is_no_flag_is_refused(name, inputs, tmp_path, capsys):
    arguments = small_arguments(name, inputs, tmp_path / "run")
    for extra, problem in [
        ("--stepz=3", "Unknown command line flag 'stepz'"),
        ("stray", STRAY.get(name, "argument 'stray': expected flags only")),
        ("--workdir=", "--workdir: missing"),
    ]:
        assert module_of(name).main([name, *arguments, extra]) == 2
        assert problem in error_line(capsys)
    assert call(name) == 2
    assert "--workdir: missing" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@every_launcher
def test_every_flag_that_is_a_path_is_read_as_one(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    values = flags_of(name)
    named = {
        flag
        for flag in values
        if re.search(r"directory|\bfiles?\b|workdir of|tokenizer\.json", values[flag].help, re.I)
    }
    assert named == {flag for flag in values if isinstance(values[flag].parser, PathParser | PathListParser)}
    assert "workdir" in named
    for flag in named:
        assert call(name, "--workdir=run", f"--{flag}=gs://bucket/run") == 2
        line = error_line(capsys)
        assert f"flag --{flag}=gs://bucket/run" in line
        assert "expected a path on this machine" in line
        values.unparse_flags()
        values(["x", f"--{flag}=~/a"])
        assert values[flag].value in (str(tmp_path / "me/a"), [str(tmp_path / "me/a")])
    assert list(tmp_path.iterdir()) == []


# Workdirs.


@pytest.mark.parametrize("command", RUNS)
def test_a_workdir_of_something_else_is_left_alone(command, inputs, tmp_path, capsys):
    for number, (name, content) in enumerate(
        [
            ("config.json", "{"),
            ("config.json", "[]"),
            ("config.json", '{"launcher": "other"}'),
            ("results.json", "{}"),
        ]
    ):
        workdir = tmp_path / str(number)
        workdir.mkdir()
        (workdir / name).write_text(content)
        assert RUNS[command](inputs, workdir) == 2
        assert str(workdir / name) in error_line(capsys)
        assert files(workdir) == {Path(name): content.encode()}
    text = tmp_path / "text"
    text.write_text("mine")
    assert RUNS[command](inputs, text) == 2
    assert f"--workdir={text}: expected a directory" in error_line(capsys)
    assert text.read_text() == "mine"


@pytest.mark.parametrize("name", READERS)
def test_a_workdir_of_another_launcher_is_not_read(name, tmp_path, capsys):
    config = {"launcher": "recall", "flags": {}, "data": {}, "models": {"transformer": {}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call(name, f"--workdir={tmp_path}") == 2
    assert f"{tmp_path / 'config.json'}: of launcher 'recall'" in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@every_writer
def test_a_workdir_that_cannot_be_written_ends_in_one_line(name, inputs, tmp_path, capsys):
    with read_only(tmp_path):
        assert run_of(name)(inputs, tmp_path / "run") == 3
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert str(tmp_path / "run") in last


@pytest.fixture(scope="module")
def in_use(tmp_path_factory):
    """A workdir that another process has, and that process."""
    workdir = tmp_path_factory.mktemp("run")
    with holder_of(workdir / launcher.LOCK) as process:
        yield workdir, process.pid


@every_writer
def test_a_workdir_in_use_is_refused(name, in_use, capsys):
    workdir, pid = in_use
    assert call(name, f"--workdir={workdir}") == 2
    assert f"{workdir}: process {pid} is writing there" in error_line(capsys)
    assert list(workdir.iterdir()) == [workdir / launcher.LOCK]


def test_a_run_in_use_is_still_read_but_its_stream_has_one_owner(in_use, capsys, monkeypatch):
    workdir, pid = in_use
    chosen = workdir, LanguageModelConfig("oja", 9, 8, 1, 1, 8, cms_periods=(64,), cms_regime="online").to_json(), None
    monkeypatch.setattr(stream, "chosen_model", lambda values: chosen)
    monkeypatch.setattr(stream, "restore", lambda *_: None)
    monkeypatch.setattr(stream, "LOCK", launcher.LOCK)
    assert stream.main(["stream", f"--workdir={workdir}"]) == 2
    assert f"{workdir}: process {pid} is writing there" in error_line(capsys)


# Going on.


@pytest.fixture(scope="module")
def finished(request, inputs, tmp_path_factory):
    """The smallest run of a launcher, and its workdir."""
    run = RUNS[request.param]
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert run(inputs, workdir) == 0
    return run, workdir


def fast(*quick, of=RUNS):
    """Commands of runs; all but the quick ones are slow."""
    return [pytest.param(c, marks=[] if c in quick else pytest.mark.slow, id=c) for c in of]


@pytest.mark.parametrize("finished", fast(*QUICK), indirect=True)
def test_the_same_command_prints_again_and_other_flags_are_refused(finished, inputs, capsys):
    run, workdir = finished
    before = files(workdir)
    capsys.readouterr()
    assert run(inputs, workdir) == 0
    first = capsys.readouterr().out
    assert first.splitlines()[-1].startswith(f"Everything is in {workdir}: results.json")
    other, problem = run.other
    assert run(inputs, workdir, other) == 2
    line = error_line(capsys)
    assert f"{workdir} holds a run with other flags: " in line
    assert problem in line
    assert files(workdir) == before


@pytest.mark.parametrize("finished", fast("parity", of=[c for c in RUNS if RUNS[c].stops]), indirect=True)
def test_a_run_that_was_killed_goes_on_to_the_same_figures(finished, inputs, tmp_path):
    run, workdir = finished
    for place, count in run.stops:
        assert kill(run.name, run.arguments(inputs, tmp_path / "run"), place, count) == -9
    assert run(inputs, tmp_path / "run") == 0
    assert figures_of(tmp_path / "run") == figures_of(workdir)


@pytest.mark.slow
def test_a_stream_that_was_killed_starts_again(inputs, tmp_path, monkeypatch, capsys):
    """It is saved at its end only; what a kill leaves is the run as it was."""
    run, workdir = RUNS["language_model"], tmp_path / "run"
    levels = ["--models=hope_attention", "--cms_levels=16,32", "--cms_regime=online", "--steps=2"]
    assert run(inputs, workdir, *levels) == 0
    arguments = [f"--workdir={workdir}", "--every=64"]

    def kept():
        return {path: content for path, content in files(workdir).items() if "lock" not in path.name}

    before = kept()

    def read():
        """What the stream prints, speeds and memory aside."""
        capsys.readouterr()
        with (inputs / "prose.txt").open() as text:
            monkeypatch.setattr("sys.stdin", text)
            assert call("stream", *arguments) == 0
        return [line.partition("updated")[0] for line in capsys.readouterr().out.splitlines()]

    with (inputs / "prose.txt").open() as text:
        assert kill("stream", arguments, "nl_jax.streaming.stream Stream.feed", 3, stdin=text) == -9
    assert kept() == before
    printed = read()
    assert len(printed) > 3
    shutil.rmtree(workdir / "hope_attention/stream")
    assert read() == printed
