"""Finished runs of any launcher, as tables."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.launcher import CONFIG, RESULTS, mean_and_spread, read_json
from experiments.eval_runs.table import rows_of
from nl_jax import InputError

Rows = list[tuple[str, ...]]


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
    def figures(self) -> list[Path]:
        """The pictures that the launcher drew."""
        return sorted(self.workdir.glob("*.png"))


def read_run(workdir: Path) -> Run:
    """The run in a workdir; raises `InputError` if there are no results of a launcher."""
    config, results = read_json(workdir / CONFIG), read_json(workdir / RESULTS)
    if config is None or results is None:
        missing = CONFIG if config is None else RESULTS
        raise InputError(f"{workdir}: no {missing} there; expected the workdir of a launcher that has results")
    return Run(workdir, str(config.get("launcher")), results)


def command_of(run: Run) -> str:
    """The command that made the run, with the flags that its configuration holds."""
    flags = run.results.get("configuration", {}).get("flags", {})
    given = {name: value for name, value in flags.items() if value not in (None, [], "", False) and name != "subject"}
    words = [f"--{name}={_flag(value)}" for name, value in given.items() if not isinstance(value, dict)]
    return " ".join(["python -m", f"experiments.{run.launcher}", f"--workdir={run.workdir.name}", *words])


def _flag(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"'{text}'" if " " in text else text


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
