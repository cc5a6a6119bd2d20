"""Runs a launcher by its name: ``nl-jax NAME --flags``, or ``python -m experiments NAME --flags``.

``nl-jax --completion=bash`` (or zsh) prints a script with which the shell completes names, flags and their values.
"""

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path

COMMANDS = (
    "language_model",
    "compare",
    "context",
    "generate",
    "stream",
    "learn",
    "ask",
    "subjects",
    "recall",
    "parity",
    "optimizers",
    "benchmark",
    "topology",
    "faults",
    "continual.class_incremental",
    "continual.incorporate",
    "continual.new_languages",
    "evals.language",
    "evals.recall",
    "evals.mad",
    "evals.formal_languages",
    "evals.niah",
    "evals.babilong",
    "evals.few_shot",
    "evals.ablation",
    "evals.levels",
    "evals.lm_eval",
    "report",
)

HELP = """{program} NAME --flags runs a launcher; {program} NAME --help explains its flags.
{program} --completion=bash (or zsh) prints a script that completes names and flags.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a launcher and returns its exit code: 0 after help, 2 for an unknown launcher.

    Args:
        argv: program name and arguments; by default ``sys.argv``.
    """
    program, *arguments = sys.argv if argv is None else argv
    program = "python -m experiments" if Path(program).name == "__main__.py" else Path(program).name
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        lines = [f"  {command:27}  {summary(command)}" for command in COMMANDS]
        return _print(HELP.format(program=program), *lines)
    if name.startswith("--completion"):
        return _print_completion(name.partition("=")[2])
    if name not in COMMANDS:
        print(f"error: launcher {name!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"{program} {name}", *arguments[1:]]
    return importlib.import_module(f"experiments.{name}").main()


def _print_completion(shell: str) -> int:
    """Prints the script for a shell; returns the exit code."""
    from experiments.common import completion  # which imports every launcher, and with them JAX

    if shell not in completion.SHELLS:
        print(f"error: --completion={shell}: expected one of {', '.join(completion.SHELLS)}", file=sys.stderr)
        return 2
    return _print(completion.SHELLS[shell]({command: summary(command) for command in COMMANDS}))


def _print(*lines: str) -> int:
    """Prints lines; returns the exit code, 141 as that of every launcher if the reader is gone (``| head``)."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again when the process ends
        return 141
    return 0


def summary(command: str) -> str:
    """The first line of a launcher's docstring, read from its source, since importing the launcher would start JAX."""
    spec = importlib.util.find_spec(f"experiments.{command}")
    assert spec is not None
    assert spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0] if text else ""


if __name__ == "__main__":
    sys.exit(main())
