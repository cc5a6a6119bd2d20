"""What comparisons share: settings are chosen and runs are made where results lack them, and written at once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from nl_jax.training import progress_bar
from nl_jax.training.metrics import MetricsWriter

Run = tuple[str, int]  # name of a method, and a seed
Results = dict[str, Any]  # of results.json, with ``settings`` and ``figures`` by method


def runs_of(methods: Sequence[str], seeds: int) -> list[Run]:
    """Every method with the first seed, then with the second one, and so on."""
    return [(name, seed) for seed in range(seeds) for name in methods]


def missing_runs(runs: Sequence[Run], results: Results) -> list[Run]:
    """The runs of which results have no figures."""
    return [(name, seed) for name, seed in runs if len(results["figures"].get(name, ())) <= seed]


def make_runs(
    what: str, unit: str, runs: Sequence[Run], outcome_of: Callable[[str, int], Any], workdir: Path, results: Results
) -> None:
    """Makes the runs that are missing, and writes the figures of each at once.

    Args:
        what: words before the progress bar.
        unit: what a seed stands for, in the bar.
        runs: all runs of the comparison.
        outcome_of: the figures of a method with a seed.
        workdir: of the launcher.
        results: gets the figures.
    """
    missing = missing_runs(runs, results)
    with progress_bar(what, len(runs), len(runs) - len(missing)) as bar:
        for name, seed in missing:
            bar.set_postfix_str(f"{name}/{unit}_{seed}")
            results["figures"].setdefault(name, []).append(outcome_of(name, seed))
            launcher.write_json(workdir / RESULTS, results)
            bar.update()


def choose_settings(
    names: Sequence[str],
    settings_of: Callable[[str], Sequence[Any]],
    outcome_of: Callable[[str, Any], Any],
    preference: Callable[[Any], Any],
    workdir: Path,
    results: Results,
) -> None:
    """Chooses the setting of each method that has none, and writes the outcome of each setting at once.

    Args:
        names: of the methods.
        settings_of: the settings of a method that are tried; one alone is taken as it is.
        outcome_of: what a method reaches on validation data with a setting.
        preference: what is highest for the best outcome; the first of equals is taken.
        workdir: of the launcher.
        results: gets, by method, ``setting``, ``settings`` and the outcomes of these, ``validation``.
    """
    found = results["settings"]
    missing = [name for name in names if "setting" not in found.setdefault(name, {"validation": []})]
    total = sum(len(settings_of(name)) for name in missing)
    with progress_bar("settings", total, sum(len(found[name]["validation"]) for name in missing)) as bar:
        for name in missing:
            bar.set_postfix_str(name)
            settings, outcomes = settings_of(name), found[name]["validation"]
            for setting in settings[len(outcomes) :] if len(settings) > 1 else ():
                outcomes.append(outcome_of(name, setting))
                launcher.write_json(workdir / RESULTS, results)
                bar.update()
            best = max(range(len(outcomes)), key=lambda i: preference(outcomes[i]), default=0)
            found[name] |= {"setting": settings[best], "settings": list(settings)}
            launcher.write_json(workdir / RESULTS, results)


def tuned(methods: Mapping[str, Any], name: str) -> str:
    """The method whose chosen setting a method takes: that which it is ``like``, or itself."""
    return methods[name].like or name


def take_first_settings(names: Sequence[str], settings_of: Callable[[str], Sequence[Any]], results: Results) -> None:
    """Gives each method that has no setting the first of those that would be tried."""
    found = results["settings"]
    found |= {name: {"setting": settings_of(name)[0]} for name in names if name not in found}


def write_accuracies(workdir: Path, run: str, outcome: dict[str, Any]) -> None:
    """The accuracies after each task of a class-incremental stream, as metrics and TensorBoard events."""
    with MetricsWriter(workdir, run) as writer:
        for number, row in enumerate(outcome.get("matrix", ()), start=1):
            writer.write(number, 0, {"accuracy": float(np.mean(row)), "newest_accuracy": row[-1]})
