"""What the README says: its example, its commands, its flags, its list of launchers."""

import functools
import re
import shlex
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
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
from nl_jax import InputError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
WITH_TEXT = ("language_model", "compare", "context", "subjects")  # which would read the default corpus
TASKS = {name: list(module_of(name).SUBJECTS) for name in ("optimizers", "benchmark")}


def commands():
    """Each command that runs a launcher, in the README and in the launchers' docstrings: its name and arguments."""
    places = {"README": "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))}
    places |= {name: module_of(name).__doc__ for name in COMMANDS}
    for place, text in places.items():
        for line in text.replace("\\\n", " ").splitlines():
            if found := re.search(r"python -m experiments\.([\w.]+)(.*)", line):
                arguments = [word for word in shlex.split(found[2].partition("<")[0]) if word != "|"]
                yield pytest.param(found[1], arguments, id=f"{place}: {found[1]} {' '.join(arguments)}")


def test_the_example_prints_its_table_and_is_what_its_text_says(capsys):
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == ["memory  ···█···█···█···█", "keys    ·······█·······█"]

    schedule, xs = names["schedule"], names["xs"]
    assert schedule.timeline(16).sum(0).tolist() == [4, 2]
    assert not np.allclose(schedule.read(names["state"], "keys"), jnp.eye(4))  # the slow optimizer has written
    start = schedule.init(jax.random.key(1), xs[0])

    @jax.jit
    def answer(projection):
        """What the fast memory answers at the end, where the keys' projection starts so."""
        levels = start.levels | {"keys": schedule["keys"].start(projection)}
        end = schedule.run(start._replace(levels=levels), xs)
        return jnp.sum(jnp.sin(schedule.read(end, "memory", xs)))

    gradient = jax.grad(answer)(jnp.eye(4))  # through every update of both; tests/levels has that it is exact
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0.1


def test_the_learner_of_the_example_learns_and_is_saved(tmp_path, monkeypatch, capsys):
    """With a small model of random weights in the place of SmolLM2."""
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = {**configuration("llama"), "num_hidden_layers": 4}
    write_directory(tmp_path / "llama", small, tensors_of(small))
    given = nl_jax.pretrained.load_pretrained(tmp_path / "llama")
    monkeypatch.setattr(nl_jax.pretrained, "load_pretrained", lambda: given)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    answer, loss = re.fullmatch(r"\['(.*)'\] Score\(loss=([\d.]+), .*\)\n", capsys.readouterr().out).groups()
    assert answer in names["learner"].labels
    assert 0 < float(loss) < 20
    assert (tmp_path / "runs" / "learner").is_dir()
    assert not np.array_equal(
        names["learner"].model.blocks.cms.levels[0].down.kernel, given.model.blocks.cms.levels[0].down.kernel
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    for name in ("text", "other"):
        lines = (f"{name} {i} that is long enough for every command\n" for i in range(20_000))
        path.with_name(f"{name}.txt").write_text("".join(lines))
    write_labelled(path.parent / "labelled")
    llama = configuration("llama")
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
        more += [f"--text={text}", f"--questions={text.parent / 'q.jsonl'}"]
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
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)  # commands have a test of their own
    named = re.findall(r"--([a-z_]+)(?:=([^\s`]+))?", " ".join(re.findall(r"`([^`]*--[^`]*)`", prose)))
    assert len(named) > 5
    for flag, value in named:
        if flag not in ("help", "xla_force_host_platform_device_count"):
            assert any(map(functools.partial(takes, value), known[flag])), (flag, value)


def test_every_launcher_is_in_the_map_and_every_name_there_is_one():
    (row,) = re.findall(r"^\| `experiments/` \|(.*)$", README, re.MULTILINE)
    assert set(re.findall(r"`([a-z_.]+)`", row)) == set(COMMANDS)
    for name, tasks in re.findall(r"`experiments\.([\w.]+)(?: ([\w|]+))?`", README):
        assert name in COMMANDS
        assert not tasks or tasks.split("|") == TASKS[name]


def test_every_path_in_the_map_exists():
    root = Path(__file__).parents[1]
    rows = README[README.index("## Map") : README.index("## Scaling")].splitlines()
    folders = [path for row in rows for path in re.findall(r"`([\w/]+/)`", row.split("|")[1] if "|" in row else "")]
    assert len(folders) > 10
    for path in folders:
        assert (root / path).is_dir() or (root / "nl_jax" / path).is_dir(), path
