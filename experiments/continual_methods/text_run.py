"""What ``--form=text`` of `experiments.continual.class_incremental` runs: methods that read labelled texts."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.continual_methods.runs import (
    choose_settings,
    make_runs,
    runs_of,
    take_first_settings,
    tuned,
    write_accuracies,
)
from experiments.continual_methods.text_comparison import TextComparison, text_outcome, text_validation_accuracy
from experiments.continual_methods.text_table import TEXT_METHODS
from nl_jax import InputError
from nl_jax.data.labelled import LabelledData
from nl_jax.files import local_path, reason
from nl_jax.pretrained import Pretrained


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
    settings = results["settings"]
    settings |= {name: setting for name, setting in taken_settings(values, methods).items() if name not in settings}
    _choose(comparison, methods, values.quick, workdir, results)
    runs = [(name, seed) for name, seed in runs_of(methods, given["seeds"]) if seed < seeds_of(name, given["seeds"])]

    def outcome_of(name: str, seed: int) -> dict[str, Any]:
        outcome = text_outcome(comparison, name, settings[name]["setting"], seed)
        write_accuracies(workdir, f"{name}/order_{seed}", outcome)
        return outcome

    make_runs("streams", "order", runs, outcome_of, workdir, results)


def _choose(
    comparison: TextComparison, methods: Sequence[str], quick: bool, workdir: Path, results: dict[str, Any]
) -> None:
    """Chooses the setting of each method, or takes that of the method which it is like, and writes it."""
    settings = results["settings"]
    missing = [name for name in methods if "setting" not in settings.get(name, {})]
    names = list(dict.fromkeys(tuned(TEXT_METHODS, name) for name in missing))

    def settings_of(name: str) -> Sequence[Any]:
        return TEXT_METHODS[name].settings

    if quick:
        take_first_settings(names, settings_of, results)
    else:
        accuracy = functools.partial(text_validation_accuracy, comparison)
        choose_settings(names, settings_of, accuracy, float, workdir, results)
    for name in missing:
        like = tuned(TEXT_METHODS, name)
        settings.setdefault(name, {"setting": settings[like]["setting"], "like": like})


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
