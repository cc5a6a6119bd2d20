"""The launcher of every evaluation: checks, runs, and reports what an `Evaluation` describes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.path_flags import INPUT_FLAGS
from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.flags import apply_preset, define_flags, rates_of
from experiments.eval_runs.running import Cell, cells_of
from experiments.eval_runs.table import bars, rows_of
from experiments.eval_runs.workers import Job, check_workers, run_jobs
from nl_jax import Diverged
from nl_jax.models import count_parameters
from nl_jax.plotting import save_figure
from nl_jax.training.metrics import METRICS

FIGURE = "results.png"
FREE_FLAGS = ("workdir", "workers", *INPUT_FLAGS)  # they change no result, or config.json has the contents


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
    check_workers(evaluation, values)
    cells = cells_of(evaluation, values)
    parameters = [count_parameters(cell.config, cell.task.build or evaluation.build) for cell in cells]
    results = launcher.claim_workdir(workdir, _configuration(values, evaluation, cells), {}, written=(FIGURE,))
    results["inputs"] = launcher.inputs_of(values)
    results["departures"], results["shown"] = list(evaluation.departures), dict(evaluation.shown)
    results["chosen_on"] = evaluation.chosen_on
    results["paper"] = {model: dict(figures) for model, figures in evaluation.paper.items()}
    table = results.setdefault("subtasks", {cell.subtask: {} for cell in cells})
    if "references" not in results:
        results["references"] = evaluation.references(values)

    def save() -> None:
        launcher.write_json(workdir / RESULTS, results)

    jobs, rates = [], len(rates_of(values))
    for cell, number in zip(cells, parameters, strict=True):
        entry = table[cell.subtask].setdefault(cell.model, {"parameters": number, "seeds": []})
        if left := cell.missing(entry, rates):
            jobs.append(Job(cell, entry, left))
    run_jobs(evaluation, values, workdir, jobs, save)
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


def _configuration(values: flags.FlagValues, evaluation: Evaluation, cells: Sequence[Cell]) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "launcher": evaluation.name,
        "flags": {name: value for name, value in values.flag_values_dict().items() if name not in FREE_FLAGS},
        "data": dict(evaluation.data(values)),
        "models": {f"{cell.subtask}/{cell.model}": cell.config.to_json() for cell in cells},
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
    print(
        f"Everything is in {values.workdir}: {RESULTS}, {FIGURE}, SUBTASK/MODEL/{METRICS}, "
        "SUBTASK/MODEL/rate_R/seed_N/tensorboard"
    )
