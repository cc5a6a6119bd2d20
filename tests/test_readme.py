"""What README and the pages beside it say: examples, commands, flags, the list of launchers, the files they name."""

import dataclasses
import functools
import importlib
import re
import shlex
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest
from labelled_cases import write_labelled
from launcher_cases import error_line
from launcher_table import LAUNCHERS, flags_of, module_of
from pretrained_cases import configuration, tensors_of, write_directory

import nl_jax.pretrained
from experiments.__main__ import COMMANDS
from experiments.common import launcher
from experiments.eval_runs import harness
from experiments.reporting import live
from nl_jax import InputError, Schedule
from nl_jax.modules import MIXERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
WITH_TEXT = ("language_model", "compare", "context", "subjects")  # which would read the default corpus
TASKS = {name: list(module_of(name).SUBJECTS) for name in ("optimizers", "benchmark")}


def commands():
    """Each command that runs a launcher, in README, pages and the launchers' docstrings: its name and arguments."""
    texts = {"README": README, **PAGES}
    places = {name: "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)) for name, text in texts.items()}
    places |= {name: module_of(name).__doc__ for name in COMMANDS}
    for place, text in places.items():
        for line in text.replace("\\\n", " ").splitlines():
            if found := re.search(r"python -m experiments\.([\w.]+)(.*)", line):
                arguments = [word for word in shlex.split(found[2].partition("<")[0]) if word != "|"]
                yield pytest.param(found[1], arguments, id=f"{place}: {found[1]} {' '.join(arguments)}")


def losses_of(schedule, xs):
    return schedule.run(schedule.init(jax.random.key(1), xs[0]), xs)[1]


def test_the_example_prints_its_table_learns_and_is_what_its_text_says(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    *table, last = capsys.readouterr().out.splitlines()
    assert table == ["memory  ···█···█···█···█", "keys    ·······█·······█"]

    schedule, xs, losses = names["schedule"], names["xs"], names["losses"]
    assert last == f"loss of the first 64 tokens {losses[:64].mean():.2f}, of the last {losses[-64:].mean():.2f}"
    assert losses[-64:].mean() < 0.3 * losses[:64].mean()
    # both levels have their part in it
    still = {level.name: dataclasses.replace(level, update=lambda state, context: state) for level in schedule.levels}
    alone = Schedule([names["memory"], still["keys"]], names["flow"], has_aux=True)
    assert losses_of(alone, xs)[64:128].mean() > 1.5 * losses[64:128].mean()
    forgetful = Schedule([still["memory"], names["slow"]], names["flow"], has_aux=True)
    assert losses_of(forgetful, xs)[-64:].mean() > 3.0 * losses[-64:].mean()
    assert schedule.timeline(16).sum(0).tolist() == [4, 2]
    start = schedule.init(jax.random.key(1), xs[0])

    @jax.jit
    def answer(projection):
        """The loss of the last tokens, where the keys' projection starts so."""
        levels = start.levels | {"keys": schedule["keys"].start(projection)}
        return schedule.run(start._replace(levels=levels), xs)[1][-64:].mean()

    gradient = jax.grad(answer)(names["blurred"])  # through every update of both; tests/levels has that it is exact
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4


def test_the_learner_of_the_example_learns_and_is_saved(tmp_path, monkeypatch, capsys):
    """With a small model of random weights in the place of SmolLM2."""
    code, protecting = re.findall(r"```python\n(.*?)```", PAGES["pretrained"], re.DOTALL)
    small = {**configuration("llama"), "num_hidden_layers": 4}
    write_directory(tmp_path / "llama", small, tensors_of(small))
    given = nl_jax.pretrained.load_pretrained(tmp_path / "llama")
    monkeypatch.setattr(nl_jax.pretrained, "load_pretrained", lambda: given)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "pretrained.md", "exec"), names)
    answer, loss = re.fullmatch(r"\['(.*)'\] Score\(loss=([\d.]+), .*\)\n", capsys.readouterr().out).groups()
    assert answer in names["learner"].labels
    assert 0 < float(loss) < 20
    assert (tmp_path / "runs" / "learner").is_dir()
    assert not np.array_equal(
        names["learner"].model.blocks.cms.levels[0].down.kernel, given.model.blocks.cms.levels[0].down.kernel
    )
    exec(compile(protecting, "pretrained.md", "exec"), names)
    assert names["learner"].labels == ("dog", "cat")
    (state,) = names["learner"].snapshot()[0].levels.values()
    assert all(np.all(seen.inputs > 0) for seen in state.seen.values())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    for name in ("text", "other"):
        lines = (f"{name} {i} that is long enough for every command\n" for i in range(20_000))
        path.with_name(f"{name}.txt").write_text("".join(lines))
    write_labelled(path.parent / "labelled")
    llama = configuration("llama") | {"max_position_embeddings": 2048}  # which sees a document whole
    write_directory(path.parent / "llama", llama, tensors_of(llama))
    return path


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_every_command_gets_past_all_checks(name, arguments, text, tmp_path, monkeypatch, capsys):
    """To where a launcher looks into its workdir, which it does when everything else is known to be right."""

    def stop(*_, **__):
        raise InputError("as far as the workdir")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "check_workdir", stop)
    monkeypatch.setattr(module_of("ask"), "check_run", stop)
    for reader in ("generate", "stream"):
        monkeypatch.setattr(module_of(reader), "chosen_model", stop)
    monkeypatch.setattr(module_of("generate"), "load_pretrained", stop)
    monkeypatch.setattr(module_of("report"), "read_run", stop)
    monkeypatch.setattr(live, "config_of", stop)
    for reader in ("chosen_model", "load_pretrained"):
        monkeypatch.setattr(harness, reader, stop)
    monkeypatch.setattr(harness, "check_installed", lambda: None)
    # what these name would have to be there already
    arguments = [
        word for word in arguments if not word.startswith(("--start_from", "--data", "--texts", "--tasks_dir"))
    ]
    more = [f"--data={text}"] if name in WITH_TEXT else []
    more += [f"--batch_size={jax.device_count()}"] if name == "context" else []  # an earlier test may have chosen two
    more += [f"--texts={text},{text.with_name('other.txt')}"] if name == "subjects" else []
    if name == "learn":
        arguments = [word for word in arguments if word.startswith("--")]
        more += [str(text), f"--pretrained={text.parent / 'llama'}"]
    if name.startswith("continual."):
        more.append(f"--pretrained={text.parent / 'llama'}")
    if name == "continual.class_incremental":
        more += [f"--data_dir={text.parent / 'labelled'}", "--layer=1", "--tasks=3"]
    if "--questions=questions.jsonl" in arguments:
        (text.parent / "q.jsonl").write_text('{"question": "Which line?", "answer": "the first"}\n')
        (text.parent / "short.txt").write_text("The first line. The second line.\n")
        more += [f"--text={text.parent / 'short.txt'}", f"--questions={text.parent / 'q.jsonl'}"]
    if "--pairs_a=a.tsv" in arguments:
        (text.parent / "pairs.tsv").write_text("".join(f"mot {n}\tword {n}\n" for n in range(200)))
        more += [f"--pairs_{language}={text.parent / 'pairs.tsv'}" for language in "ab"]
    assert module_of(name).main([name, *arguments, *more]) == 2
    assert error_line(capsys).endswith(": as far as the workdir")
    assert list(tmp_path.iterdir()) == []


def takes(value, flag):
    """Whether a launcher's flag takes a value, or has a default where none is named."""
    try:
        flag.parser.parse(value or flag.default)
    except ValueError:
        return False
    return True


def test_every_flag_that_is_named_exists_with_its_value():
    known = defaultdict(list)
    for values in map(flags_of, LAUNCHERS):
        for flag in values:
            known[flag].append(values[flag])
    prose = re.sub(r"```.*?```", "", "\n".join([README, *PAGES.values()]), flags=re.DOTALL)  # commands have a test
    quoted = [words for words in re.findall(r"`([^`]*--[^`]*)`", prose) if not re.search("pip |mkdocs", words)]
    named = re.findall(r"--([a-z_]+)(?:=([^\s`]+))?", " ".join(quoted))
    assert len(named) > 5
    for flag, value in named:
        if flag not in ("help", "xla_force_host_platform_device_count"):
            assert any(map(functools.partial(takes, value), known[flag])), (flag, value)


def test_every_launcher_is_in_the_map_and_every_name_there_is_one():
    (row,) = re.findall(r"^\| `experiments/` \|(.*)$", PAGES["map"], re.MULTILINE)
    assert set(re.findall(r"`([a-z_.]+)`", row)) == set(COMMANDS)
    for text in (README, *PAGES.values()):
        for name, tasks in re.findall(r"`(?:python -m )?experiments\.([\w.]+)(?: ([\w|]+))?`", text):
            assert name in COMMANDS
            assert not tasks or set(tasks.split("|")) <= set(TASKS[name]), (name, tasks)


def test_every_path_in_the_map_and_in_the_table_of_the_paper_exists():
    cells = [line.split("|")[1] for line in PAGES["map"].splitlines() if line.startswith("|")]
    cells += [line.split("|")[2] for line in README[README.index("## The paper") :].splitlines() if line[:1] == "|"]
    paths = [path for cell in cells for path in re.findall(r"`([\w/]+/\w*(?:\.py)?)`", cell)]
    assert len(paths) > 25
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "nl_jax" / path).exists(), path


def test_names_in_the_paper_s_map_are_exported():
    rows = [row.split("|")[2] for row in PAGES["paper"].splitlines() if row.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`([A-Za-z_]\w*)`", row)}
    public = {
        name
        for room in ("levels", "memory", "optim", "modules", "models", "pretrained")
        for name in vars(importlib.import_module(f"nl_jax.{room}"))
    }
    assert len(named) > 30
    assert named - public - set(MIXERS) == set()


def test_the_readme_is_short_and_its_figure_is_one_of_a_command():
    assert len(README.splitlines()) <= 150
    assert re.findall(r"!\[.*?\]\((.*?)\)", README) == ["experiments/figures/compare.png"]
    assert "`.venv/bin/python -m experiments.compare --workdir=runs/compare`" in README
    introduction = README.split("\n## ")[0].partition("\n\n")[2].replace("et al., ", "")
    assert len(re.findall(r"[.](?:\s|$)", introduction)) == 5


# What makes each command of the README small enough to be run to its end.
SMALL = {
    "language_model": "--data={text} --models=transformer --steps=2 --batch_size=2 --seq_len=32 --eval_every=2",
    "generate": "--num_tokens=4",
    "report": "",
    "evals.recall": "--models=linear_attention --width=8 --num_layers=1 --chunk_size=4 --batch_size=4 --steps=2"
    " --eval_every=2 --subtasks=32x4",
    "compare": "--data={text} --models=transformer --steps=2 --batch_size=2 --seq_len=16 --eval_every=2 --seeds=1"
    " --points=2 --learning_rate=0.003",
    "learn": "--pretrained={llama} --batch_size=2 --chunk=8",
    "ask": "--num_tokens=4",
}
NOT_RUN = ("topology",)  # compiles for minutes, and needs libtpu; tests/parallel compiles small programs so


@pytest.mark.slow
def test_every_command_of_the_readme_runs_to_its_end(text, tmp_path, monkeypatch, capsys):
    """In their order, in one folder, with flags that make them small."""
    lines = re.findall(r"python -m experiments\.([\w.]+)([^`\n]*)", README)
    assert {name for name, _ in lines} == {*SMALL, *NOT_RUN}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("The card was lost. " * 20)
    for name, rest in lines:
        if name in NOT_RUN:
            continue
        arguments = [word for word in shlex.split(rest) if not word.startswith("--pretrained")]
        arguments += SMALL[name].format(text=text, llama=text.parent / "llama").split()
        assert module_of(name).main([name, *arguments]) == 0, (name, capsys.readouterr().err)
    for path in (
        "runs/first/live.html",
        "runs/first/results.json",
        "runs/compare/compare.png",
        "runs/report/report.html",
    ):
        assert (tmp_path / path).exists(), path


def test_other_commands_of_the_readme_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    others = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    tools = {match for line in others for match in re.findall(r"-m (pytest|mkdocs)", line)}
    assert tools == {"pytest"}
    assert "python -m pytest -m 'not slow'" in ci
