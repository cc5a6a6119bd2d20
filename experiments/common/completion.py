"""Scripts with which bash and zsh complete the launchers of ``nl-jax``, their tasks, flags and values.

The flags are in the script, since a launcher takes seconds to be imported: write it to a file, as
``nl-jax --completion=bash > ~/.local/share/bash-completion/completions/nl-jax``, or for zsh to a file ``_nl-jax`` in a
folder of ``$fpath``.
"""

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from absl import flags

from experiments.common.path_flags import INPUT_FLAGS
from nl_jax.models import PRESETS
from nl_jax.models.config import REGIMES
from nl_jax.modules.continuum_memory import VARIANTS

BOOLEAN = ("true", "false")
KNOWN: Mapping[str, Sequence[str]] = {
    "cms_regime": REGIMES,
    "cms_variant": VARIANTS,
    "preset": tuple(PRESETS),
}
PATHS = ("workdir", "workdirs", *INPUT_FLAGS)


class Option(NamedTuple):
    """A flag.

    Attributes:
        name: its name.
        summary: the first sentence of its help.
        values: what it can be, where these are few; empty otherwise.
    """

    name: str
    summary: str
    values: Sequence[str] = ()


def options_of(command: str) -> list[Option]:
    """The flags of a launcher, by name."""
    values = importlib.import_module(f"experiments.{command}").define_flags()
    return [_option(values[name]) for name in sorted(values)]


def _option(flag: flags.Flag) -> Option:
    choices = getattr(flag.parser, "enum_values", None) or (BOOLEAN if flag.boolean else KNOWN.get(flag.name, ()))
    summary = " ".join((flag.help or "").split()).split(". ")[0].rstrip(".")
    return Option(flag.name, summary, tuple(choices))


def tasks_of(command: str) -> tuple[str, ...]:
    """The tasks that a launcher wants before its flags; none for most."""
    return tuple(getattr(importlib.import_module(f"experiments.{command}"), "SUBJECTS", ()))


def bash(commands: Mapping[str, str]) -> str:
    """The script for bash, for launchers with their summaries."""
    cases = []
    for command in commands:
        options = options_of(command)
        words = [*tasks_of(command), *(f"--{option.name}=" for option in options), "--help"]
        cases.append(f"    {command}) words={shlex.quote(' '.join(words))} ;;")
        for option in options:
            if option.values:
                cases.append(f"    {command}--{option.name}) words={shlex.quote(' '.join(option.values))} ;;")
    names = shlex.quote(" ".join([*commands, "--help"]))
    return f"""# bash completion of nl-jax
_nl_jax() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} key=${{COMP_WORDS[1]}} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W {names} -- "$current"))
    return
  fi
  # bash takes the sign of equality for a word of its own
  if [ "$current" = "=" ]; then key=$key$before current=
  elif [ "$before" = "=" ]; then key=$key${{COMP_WORDS[COMP_CWORD-2]}}
  fi
  case $key in
{chr(10).join(cases)}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [ "${{#COMPREPLY[@]}}" -eq 1 ] && [[ ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace 2> /dev/null; fi
}}
complete -o default -F _nl_jax nl-jax"""


def zsh(commands: Mapping[str, str]) -> str:
    """The script for zsh, for launchers with their summaries."""
    names = "\n".join(f"    {shlex.quote(f'{command}:{_plain(text)}')}" for command, text in commands.items())
    cases = []
    for command in commands:
        lines = [_specification(option) for option in options_of(command)]
        tasks = tasks_of(command)
        lines.append(shlex.quote(f"1:task:({' '.join(tasks)})" if tasks else "*:file:_files"))
        joined = " \\\n        ".join(lines)
        cases.append(f"    {command})\n      _arguments -S \\\n        {joined} ;;")
    return f"""#compdef nl-jax
_nl_jax() {{
  local -a commands
  commands=(
{names}
  )
  if (( CURRENT == 2 )); then
    _describe launcher commands
    return
  fi
  local name=$words[2]
  shift words
  (( CURRENT-- ))
  case $name in
{chr(10).join(cases)}
  esac
}}
compdef _nl_jax nl-jax"""


def _specification(option: Option) -> str:
    """A flag as ``_arguments`` of zsh takes it."""
    action = f"({' '.join(option.values)})" if option.values else "_files" if option.name in PATHS else " "
    return shlex.quote(f"*--{option.name}=[{_plain(option.summary)}]:{option.name}:{action}")


def _plain(text: str) -> str:
    """A text without what means something to ``_arguments`` and ``_describe``."""
    for mark, other in (("[", "("), ("]", ")"), (":", ",")):
        text = text.replace(mark, other)
    return "".join(character for character in text if character not in "\\'\"`")


SHELLS: Mapping[str, Callable[[Mapping[str, str]], str]] = {"bash": bash, "zsh": zsh}
