"""Shell completion of nl-jax: the scripts, in the shells themselves."""

import shutil
import subprocess

import pytest

from experiments.__main__ import COMMANDS, main, summary
from experiments.common import completion

SUMMARIES = {command: summary(command) for command in COMMANDS}

COMPLETE = """
source "$1"
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_nl_jax
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "nl-jax.bash"
    path.write_text(completion.bash(SUMMARIES))
    return path


def completed(script, *words):
    """What bash offers after these words, of which the last is being typed."""
    command = ["bash", "-c", COMPLETE, "bash", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["nl-jax", "eva"], {"evals.recall", "evals.niah", "evals.levels"}),
        (["nl-jax", "lang"], {"language_model"}),
        (["nl-jax", "recall", "--other"], {"--other_text="}),
        (["nl-jax", "language_model", "--preset", "=", "paper"], {"paper_760m", "paper_1_3b"}),
        (["nl-jax", "language_model", "--dtype", "="], {"float32", "bfloat16"}),
        (["nl-jax", "optimizers", "t"], {"toy", "training"}),
        (["nl-jax", "report", "--live", "="], {"true", "false"}),
        (["nl-jax", "nothing", "--"], set()),
    ],
)
def test_bash_offers_names_flags_and_values(bash_script, words, offered):
    found = completed(bash_script, *words)
    assert offered <= set(found)
    assert all(word.startswith(words[-1].strip("=")) for word in found)


def test_every_flag_of_every_launcher_is_offered(bash_script):
    for command in COMMANDS:
        names = {f"--{option.name}=" for option in completion.options_of(command)}
        assert {"--workdir="} <= names
        assert names <= set(completed(bash_script, "nl-jax", command, "--"))


def test_zsh_can_read_its_script(tmp_path):
    script = completion.zsh(SUMMARIES)
    assert all(f"    {command})" in script for command in COMMANDS)
    assert "'*--preset=[" in script
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh here")
    (tmp_path / "_nl-jax").write_text(script)
    subprocess.run(["zsh", "-n", str(tmp_path / "_nl-jax")], check=True, capture_output=True)
    code = f"autoload -U compinit && compinit -u -d {tmp_path}/dump && source {tmp_path}/_nl-jax && whence -w _nl_jax"
    done = subprocess.run(["zsh", "-f", "-c", code], check=True, capture_output=True, text=True)
    assert "_nl_jax: function" in done.stdout
    assert done.stderr == ""


def test_the_command_prints_the_script_or_says_what_there_is(capsys):
    assert main(["nl-jax", "--completion=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("complete -o default -F _nl_jax nl-jax")
    assert main(["nl-jax", "--completion=fish"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: --completion=fish: expected one of bash, zsh\n"
