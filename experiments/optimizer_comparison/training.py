"""The subject training: the losses of tuned optimizers against steps and seconds (Figure 11)."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.benchmarking.timed_programs import interleave
from experiments.common import launcher
from experiments.common.grid import Grid, best_rate, rate_name
from experiments.common.record import Record
from experiments.optimizer_comparison.reports import TUNING_SEED, plot_name, record_of, text_of
from experiments.optimizer_comparison.table import OPTIMIZERS
from experiments.optimizer_comparison.tasks import TASKS, ComparisonTask
from experiments.optimizer_comparison.training_runs import Curves, Trainer, compile_all
from nl_jax import InputError
from nl_jax.models import MODEL_NAMES
from nl_jax.plotting import label_curves, new_figure, plot_band, save_figure
from nl_jax.training import progress_bar

STEPS = {"vit": 300, "lm": 200}
BATCH_SIZES = {"vit": 32, "lm": 16}


def run(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Measures the losses of tuned optimizers, and their time."""
    if values.task not in TASKS:
        raise InputError(f"--task={values.task}: expected one of {', '.join(TASKS)}")
    if values.model not in MODEL_NAMES:
        raise InputError(f"--model={values.model}: expected one of {', '.join(MODEL_NAMES)}")
    for name, defaults in (("steps", STEPS), ("batch_size", BATCH_SIZES)):
        if values[name].value is None:
            values[name].value = defaults[values.task]
        launcher.check_range(values, name, 1)
    if values.steps % values.eval_every:
        raise InputError(f"--eval_every={values.eval_every}: expected a divisor of the {values.steps} steps")
    task = TASKS[values.task](values)
    record = record_of("training", workdir, values, names, task.metadata)
    trainers = {name: _trainer(task, name, values, _lanes(values)) for name in names}
    if any(len(record.get(f"{name}: final") or []) < values.seeds for name in names):
        print("compiling", file=sys.stderr)
        compile_all(list(trainers.values()))
    each = values.steps // values.eval_every
    total = len(names) * (values.points + values.seeds) * each
    with progress_bar(f"{values.task}, evaluations of all runs", total) as bar:
        for name in names:
            trainer = trainers[name]
            losses = record.get(f"{name}: tuning") or {}
            finals = record.get(f"{name}: final") or []
            bar.total += max(0, len(losses) - values.points) * each
            bar.update((len(losses) + len(finals)) * each)
            _tune(trainer, name, losses, values, task, record, bar)
            rate = best_rate(losses)
            seeds = range(len(finals), values.seeds)
            for curves in trainer.runs([rate] * len(seeds), seeds, task.test, bar.update):
                finals.append(curves)
                record.keep(f"{name}: final", finals)
    seconds = record.figures("step seconds", lambda: _step_seconds(task, trainers, values))
    _report(record, values, names, seconds)
    print(f"The model has {task.parameters:,} parameters.")
    record.report()


def _lanes(values: flags.FlagValues) -> int:
    """Number of runs trained side by side: one on a CPU, where they would only wait for each other."""
    return 1 if jax.default_backend() == "cpu" else max(values.points, values.seeds)


def _trainer(task: ComparisonTask, name: str, values: flags.FlagValues, lanes: int) -> Trainer:
    def make(schedule):
        return OPTIMIZERS[name].make(schedule, values.weight_decay)

    return Trainer(task, make, steps=values.steps, interval=values.eval_every, lanes=lanes)


def _tune(
    trainer: Trainer,
    name: str,
    losses: dict[str, float | None],
    values: flags.FlagValues,
    task: ComparisonTask,
    record: Record,
    bar: Any,
) -> None:
    """Fills in ``losses``, by learning rate, until the best rate is not at an edge of the grid."""
    for rates in Grid(values.points).search(OPTIMIZERS[name].rate, losses):
        if len(losses) >= values.points:
            bar.total += len(rates) * values.steps // values.eval_every
        runs = trainer.runs(rates, [TUNING_SEED] * len(rates), task.validation, bar.update)
        for rate, curves in zip(rates, runs, strict=True):
            losses[rate_name(rate)] = curves["loss"][-1]
            record.keep(f"{name}: tuning", losses)


def _step_seconds(task: ComparisonTask, trainers: Mapping[str, Trainer], values: flags.FlagValues) -> dict[str, float]:
    """Median time of a step of a single run by optimizer, measured for all optimizers in turn."""
    single = {name: t if t.lanes == 1 else _trainer(task, name, values, lanes=1) for name, t in trainers.items()}
    compile_all(list(single.values()))
    calls = {name: trainer.interval_call(OPTIMIZERS[name].rate) for name, trainer in single.items()}
    timings = interleave(calls, values.rounds)
    return {name: statistics.median(timings[name].seconds) / values.eval_every for name in calls}


def _report(record: Record, values: flags.FlagValues, names: Sequence[str], seconds: Mapping[str, float]) -> None:
    runs: dict[str, list[Curves]] = {name: record.get(f"{name}: final") for name in names}
    scores = [key for key in runs[names[0]][0] if key not in ("train_loss", "loss")]
    steps = np.arange(values.eval_every, values.steps + 1, values.eval_every)
    times = {name: steps * seconds[name] for name in names}
    quickest = min(time[-1] for time in times.values())

    rows: list[tuple[str, ...]] = [
        (
            *("optimizer", "rate", "rates tried", "validation", "train loss", "test loss"),
            *(f"test {score}" for score in scores),
            *(f"test loss at {quickest:.3g} s", "ms a step"),
        )
    ]
    figure, panels = new_figure(2, 2, height=7, sharey="row")
    for name in names:
        losses = record.get(f"{name}: tuning")
        rate = best_rate(losses)
        curves = {key: np.array([run[key] for run in runs[name]], float) for key in runs[name][0]}
        for row, key in zip(panels, ("train_loss", "loss"), strict=True):
            for axes, x in zip(row, (steps, times[name]), strict=True):
                plot_band(axes, x, curves[key], label=name)
        soonest = [float(np.interp(quickest, times[name], curve)) for curve in curves["loss"]]
        edge = "" if min(map(float, losses)) < rate < max(map(float, losses)) else ", best at the edge"
        rows.append(
            (
                name,
                f"{rate:.3g}",
                f"{len(losses)}{edge}",
                text_of(losses[rate_name(rate)], ".3f"),
                *(launcher.mean_and_spread(curves[key][:, -1].tolist()) for key in ("train_loss", "loss", *scores)),
                launcher.mean_and_spread(soonest),
                f"{1e3 * seconds[name]:.1f}",
            )
        )
    for row, label in zip(panels, ("training loss", "test loss"), strict=True):
        row[0].set(ylabel=f"{label}, nats", xlabel="steps")
        row[1].set(xlabel="seconds of training")
        for axes in row:
            if values.task == "vit":
                axes.set_yscale("log")
    label_curves(panels[0, 1], size=9)
    save_figure(figure, record.workdir / plot_name("training", values))
    launcher.print_table(rows)
    print("Losses in nats at the end, mean ± standard deviation over the seeds; the rate by validation loss.")
