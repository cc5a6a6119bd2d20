"""Finished runs of any launcher, as tables."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl.flags import CsvListSerializer

from experiments.common.launcher import CONFIG, RESULTS, mean_and_spread, read_json
from experiments.common.path_flags import INPUT_FLAGS
from experiments.eval_runs.table import rows_of
from nl_jax import InputError

Rows = list[tuple[str, ...]]
REPEATED = ("mixer_option",)  # flags that are given once for each value
NO_FLAGS = ("subject", "first_tasks")  # a word before the flags; what --quick says
NAMED_BY = {"topology": ("models", "figures"), "evals.lm_eval": ("tasks", "tasks")}  # flags that the results' keys tell


class Run(NamedTuple):
    """What a launcher left in its workdir.

    Attributes:
        workdir: the directory.
        launcher: the launcher's name, such as "evals.mad".
        results: the content of results.json.
    """

    workdir: Path
    launcher: str
    results: dict[str, Any]

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that the run's configuration holds, by name."""
        return self.results.get("configuration", {}).get("flags", {})

    @property
    def figures(self) -> list[Path]:
        """The pictures that the launcher drew."""
        return sorted(self.workdir.glob("*.png"))


def read_run(workdir: Path) -> Run:
    """The run in a workdir; raises `InputError` if there are no results of a launcher."""
    config, results = read_json(workdir / CONFIG), read_json(workdir / RESULTS)
    if config is None or results is None:
        missing = CONFIG if config is None else RESULTS
        raise InputError(f"{workdir}: no {missing} there; expected the workdir of a launcher that has results")
    if "inputs" in config:  # some launchers write them there only
        results.setdefault("inputs", config["inputs"])
    return Run(workdir, str(config.get("launcher")), results)


def command_of(run: Run) -> str:
    """The command that made the run, as a shell takes it: its subject, then the flags and the inputs that it kept."""
    words = ["python", "-m", f"experiments.{run.launcher}"]
    if "subject" in run.flags:
        words.append(str(run.flags["subject"]))
    workdir = {"workdir": run.workdir.name}
    if run.launcher == "evals.lm_eval":  # whose --workdir is the model's
        workdir = {"output": run.workdir.name}
    for name, value in (workdir | _given(run)).items():
        words += _words(name, value)
    return shlex.join(words)


def _given(run: Run) -> dict[str, Any]:
    """The value of each flag of a run."""
    given = {name: value for name, value in run.flags.items() if name not in NO_FLAGS}
    given |= {name: value for name, value in run.results.get("inputs", {}).items() if name in INPUT_FLAGS}
    if run.launcher == "learn":
        given |= _learned(run)
    if run.launcher in NAMED_BY:
        flag, key = NAMED_BY[run.launcher]
        given.setdefault(flag, list(run.results.get(key, {})))
    taken = [setting["from"] for setting in run.results.get("settings", {}).values() if "from" in setting]
    return given | {"settings_from": taken[0] if taken else None}


def _learned(run: Run) -> dict[str, Any]:
    """What ``learn`` keeps in another form than its flags have."""
    files = [file["name"] for file in run.results.get("figures", {}).get("files", {}).values()]
    given: dict[str, Any] = {"files": [name for name in files if not name.startswith("stdin.")] or None}
    if run.flags.get("ask_itself"):
        given["question"] = None  # --ask_itself has its own
    if levels := run.flags.get("levels"):
        given["levels"] = ";".join(map(_level, levels))
    return given


def _level(fields: Mapping[str, Any]) -> str:
    """A level as --levels takes it."""
    joined = {"blocks": "+", "matrices": "+", "units": ".."}
    options = {
        key: joined[key].join(map(str, value)) if key in joined else value
        for key, value in fields.items()
        if key != "name" and value is not None
    }
    return f"{fields['name']}:{','.join(f'{key}={value}' for key, value in options.items())}"


def _words(name: str, value: Any) -> list[str]:
    """A flag with its value; none for one that was not given."""
    if value is None or isinstance(value, dict):
        return []
    if isinstance(value, bool):
        return [f"--{'' if value else 'no'}{name}"]
    if isinstance(value, list) and name in REPEATED:
        return [f"--{name}={item}" for item in value]
    if isinstance(value, list):
        value = CsvListSerializer(",").serialize(list(map(str, value)))
    return [f"--{name}={value}"]


def tables(run: Run) -> dict[str, Rows]:
    """The tables of a run by title, each with its header first."""
    if "subtasks" in run.results and "shown" in run.results:
        found = {name: rows_of(run.results, name) for name in run.results["subtasks"]}
        return {name: rows for name, rows in found.items() if len(rows) > 1}
    for key in ("models", "figures", "methods"):
        entries = run.results.get(key)
        if isinstance(entries, Mapping) and entries:
            return {key: _table({name: numbers_of(entry) for name, entry in entries.items()})}
    return {}


def numbers_of(entry: Any) -> dict[str, list[float]]:
    """The figures of an entry of results.json by name, a number for each seed; what is no number is left out."""
    if isinstance(entry, Mapping):
        found: dict[str, list[float]] = {}
        for name, value in entry.items():
            if _is_number(value):
                found[name] = [float(value)]
            elif isinstance(value, list) and value and all(map(_is_number, value)):
                found[name] = [float(number) for number in value]
            elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
                found |= numbers_of(value)
        return found
    if isinstance(entry, list) and entry and all(isinstance(item, Mapping) for item in entry):
        names = [name for name in entry[0] if all(_is_number(item.get(name)) for item in entry)]
        return {name: [float(item[name]) for item in entry] for name in names}
    return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _table(figures: Mapping[str, Mapping[str, list[float]]]) -> Rows:
    columns = list(dict.fromkeys(name for entry in figures.values() for name in entry))
    rows: Rows = [("", *(name.replace("_", " ") for name in columns))]
    for name, entry in figures.items():
        rows.append((name, *(mean_and_spread(entry[column]) if column in entry else "-" for column in columns)))
    return rows
