"""What ``--form=text`` of `experiments.continual.class_incremental` runs: methods that read labelled texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.continual_methods.text_comparison import TextComparison, choose_text_setting, text_outcome
from experiments.continual_methods.text_table import TEXT_METHODS
from nl_jax import InputError
from nl_jax.data.labelled import LabelledData
from nl_jax.files import local_path, reason
from nl_jax.pretrained import Pretrained
from nl_jax.training import progress_bar
from nl_jax.training.metrics import MetricsWriter


def seeds_of(name: str, seeds: int) -> int:
    """Number of orders that a method runs: all classes at once have one."""
    return 1 if TEXT_METHODS[name].shuffled else seeds


def run_texts(
    values: flags.FlagValues,
    given: dict[str, Any],
    data: LabelledData,
    pretrained: Pretrained,
    workdir: Path,
    results: dict[str, Any],
) -> None:
    """Chooses settings, then runs every method on every order that is missing, and writes its figures at once."""
    comparison = TextComparison(
        data,
        pretrained,
        values.order,
        given["tasks"],
        given["first_tasks"],
        given["train_per_class"],
        given["test_per_class"],
    )
    methods = given["methods"]
    figures, settings = results["figures"], results["settings"]
    settings |= {name: setting for name, setting in taken_settings(values, methods).items() if name not in settings}
    _choose(comparison, methods, values.quick, workdir, results)
    runs = [(name, seed) for seed in range(given["seeds"]) for name in methods]
    runs = [(name, seed) for name, seed in runs if seed < seeds_of(name, given["seeds"])]
    missing = [(name, seed) for name, seed in runs if len(figures.get(name, ())) <= seed]
    with progress_bar("streams", len(runs), len(runs) - len(missing)) as bar:
        for name, seed in missing:
            bar.set_postfix_str(f"{name}/order_{seed}")
            outcome = text_outcome(comparison, name, settings[name]["setting"], seed)
            figures.setdefault(name, []).append(outcome)
            launcher.write_json(workdir / RESULTS, results)
            with MetricsWriter(workdir, f"{name}/order_{seed}") as writer:
                for number, row in enumerate(outcome.get("matrix", ()), start=1):
                    writer.write(number, 0, {"accuracy": float(np.mean(row)), "newest_accuracy": row[-1]})
            bar.update()


def _choose(
    comparison: TextComparison, methods: Sequence[str], quick: bool, workdir: Path, results: dict[str, Any]
) -> None:
    """Chooses the setting of each method, and writes it."""
    settings = results["settings"]
    missing = [name for name in methods if name not in settings]
    if quick:
        for name in missing:
            like = TEXT_METHODS[name].like or name
            settings[name] = {"setting": TEXT_METHODS[like].settings[0]}
        return
    with progress_bar("settings", sum(len(TEXT_METHODS[name].settings) for name in missing)) as bar:
        for name in missing:
            bar.set_postfix_str(name)
            settings[name] = choose_text_setting(comparison, name, settings, bar.update)
            launcher.write_json(workdir / RESULTS, results)


def taken_settings(values: flags.FlagValues, methods: Sequence[str]) -> dict[str, Any]:
    """The settings of methods in the results of an earlier run that ``--settings_from`` names; none without it.

    Raises:
        InputError: if a method has none there.
    """
    if not values.settings_from:
        return {}
    file = local_path(values.settings_from)
    try:
        found = json.loads(file.read_text())["settings"]
        return {name: {"setting": found[name]["setting"], "from": str(file)} for name in methods}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--settings_from={file}: {reason(error)}; expected results.json with all methods") from error
