"""The launcher of every evaluation: checks, runs, and reports what an `Evaluation` describes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.path_flags import INPUT_FLAGS
from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.flags import apply_preset, configurations, define_flags
from experiments.eval_runs.running import Cell, Runner
from experiments.eval_runs.table import bars, rows_of
from nl_jax import Diverged
from nl_jax.models import count_parameters
from nl_jax.plotting import save_figure
from nl_jax.training.metrics import METRICS

FIGURE = "results.png"
FREE_FLAGS = ("workdir", *INPUT_FLAGS)  # paths of inputs, which config.json identifies by contents


def launcher_of(evaluation: Evaluation, description: str | None) -> tuple[Callable[[], Any], Callable[..., int]]:
    """``define_flags`` and ``main`` of the launcher of an evaluation; ``description`` is its docstring."""
    return functools.partial(define_flags, evaluation), functools.partial(main, evaluation, description)


def main(evaluation: Evaluation, description: str | None, argv: list[str] | None = None) -> int:
    """Runs the evaluation for the flags of the command line; returns the exit code."""
    return launcher.run(functools.partial(evaluate, evaluation), define_flags(evaluation), description, argv)


def evaluate(evaluation: Evaluation, values: flags.FlagValues) -> None:
    """Runs what is missing in the workdir, and prints the tables. All checks come before any compilation."""
    workdir = launcher.own_workdir(values)
    apply_preset(evaluation, values)
    subtasks = evaluation.subtasks(values)
    configs = {name: configurations(evaluation, values, task) for name, task in subtasks.items()}
    cells = [
        Cell(name, model, task, config, values.seeds)
        for name, task in subtasks.items()
        for model, config in configs[name].items()
    ]
    # a model of one configuration keeps its program from subtask to subtask
    cells.sort(key=lambda cell: list(values.models).index(cell.model))
    parameters = [count_parameters(cell.config, cell.task.build or evaluation.build) for cell in cells]
    results = launcher.claim_workdir(workdir, _configuration(values, evaluation, configs), {}, written=(FIGURE,))
    results["inputs"] = launcher.inputs_of(values)
    results["departures"], results["shown"] = list(evaluation.departures), dict(evaluation.shown)
    results["chosen_on"] = evaluation.chosen_on
    results["paper"] = {model: dict(figures) for model, figures in evaluation.paper.items()}
    table = results.setdefault("subtasks", {name: {} for name in subtasks})
    if "references" not in results:
        results["references"] = evaluation.references(values)

    def save() -> None:
        launcher.write_json(workdir / RESULTS, results)

    runner = Runner(evaluation, values, workdir, save)
    entries = [
        table[cell.subtask].setdefault(cell.model, {"parameters": number, "seeds": []})
        for cell, number in zip(cells, parameters, strict=True)
    ]
    for i, (cell, entry) in enumerate(zip(cells, entries, strict=True)):
        left = sum(cell.missing(entry, len(runner.rates)) for cell, entry in zip(cells[i:], entries[i:], strict=True))
        if left:
            launcher.say(f"{cell.subtask}, {cell.model}: at most {left} runs are left")
        runner.run(cell, entry)
    save()
    draw = evaluation.figure or bars
    save_figure(draw(results), workdir / FIGURE)
    report(values, results)
    check_diverged(results)


def check_diverged(results: Mapping[str, Any]) -> None:
    """Raises `Diverged` if some runs were not finite; all others are done, and in the table."""
    diverged = [
        f"{subtask}, {model}, seed {seed}: {message}"
        for subtask, cells in results["subtasks"].items()
        for model, cell in cells.items()
        for seed, message in cell.get("diverged", {}).items()
    ]
    if diverged:
        raise Diverged(f"the table lacks {len(diverged)} runs; {diverged[0]}")


def _configuration(values: flags.FlagValues, evaluation: Evaluation, configs: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "launcher": evaluation.name,
        "flags": {name: value for name, value in values.flag_values_dict().items() if name not in FREE_FLAGS},
        "data": dict(evaluation.data(values)),
        "models": {
            f"{name}/{model}": config.to_json() for name, models in configs.items() for model, config in models.items()
        },
    }


def report(values: flags.FlagValues, results: dict[str, Any]) -> None:
    """Prints a table for each subtask, the departures from the task's rules, and where the results are."""
    for subtask in results["subtasks"]:
        launcher.print_table(rows_of(results, subtask))
        print()
    print(
        "Mean ± standard deviation over seeds of test figures after the last step and, as best, at the best score on "
        f"{results['chosen_on']}; rate: the learning rate, chosen on the same; paper: the paper's figure."
    )
    for departure in results["departures"]:
        print(f"Departure: {departure}.")
    print(f"Everything is in {values.workdir}: {RESULTS}, {FIGURE}, {METRICS}, SUBTASK/MODEL/rate_R/seed_N/tensorboard")
