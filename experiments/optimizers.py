"""Compares optimizers as memories of gradients, those of nl_jax.optim and optax's. The first argument says on what:

    python -m experiments.optimizers toy --workdir=runs/toy
    python -m experiments.optimizers continual --workdir=runs/continual
    python -m experiments.optimizers training --workdir=runs/vit --task=vit
    python -m experiments.optimizers training --workdir=runs/lm --task=lm
    python -m experiments.optimizers speed --workdir=runs/speed

toy        the paper's problem in two dimensions (Figure 4), at several settings: steps to a loss of 1e-3
continual  tasks with orthogonal gradients, one after the other: what each costs the ones before
training   a vision transformer on scikit-learn's digits or --images, or a small language model: losses against steps
           and seconds (Figure 11)
speed      time of a step of the optimizer alone, by number of parameters, and bytes of its state (Figure 12)

In toy and continual every optimizer takes the best of the same learning rates, all of which are tried; continual
chooses by a seed of its own.

In training every optimizer takes the best of the same number of learning rates, twice as large from one to the next,
by validation loss at the end, of one run each with a seed of its own. Where the best lies at the grid's edge, the grid
is extended until it does not, and the table says how many rates were tried. Then come the final runs, by seeds 0, 1,
..., whose curves are of the test split: they alone see it, once each, and nothing is chosen by it. All clip gradients
to norm 1, warm up, follow a cosine, and have the same weight decay, but for momentum, Delta Momentum and deep momentum,
which have none. Seconds are steps times the median time of a step, measured for all optimizers in turn, an interval of
a single run a time, when all runs are done. On an accelerator, runs are trained side by side.

speed times the update alone, from gradients to steps, of all optimizers in turn, round by round; medians. M3's step
time is the mean over a period of its slow memory.

Into the workdir go config.json, results.json and a figure. The same command goes on where a stopped run was, and prints
the tables again when all is done.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import launcher, optimizer_continual, optimizer_speed, optimizer_toy
from experiments.optimizer_table import OPTIMIZERS
from experiments.optimizer_tasks import TASKS, Task
from experiments.optimizer_training import Curves, Grid, Trainer, best_rate, compile_all, rate_name
from experiments.path_flags import define_path
from experiments.programs import interleave
from experiments.record import Record
from nl_jax import InputError
from nl_jax.models import MODEL_NAMES
from nl_jax.training import progress_bar
from nl_jax.training.metrics import plot_band, save_figure

NAME = "optimizers"
TUNING_SEED = 2**31 - 1  # no seed of a final run
# By subject: the optimizers that it has.
KNOWN: dict[str, Mapping[str, Any]] = {
    "toy": optimizer_toy.OPTIMIZERS,
    "continual": optimizer_continual.OPTIMIZERS,
    "training": OPTIMIZERS,
    "speed": OPTIMIZERS,
}
STEPS = {"vit": 300, "lm": 200}
BATCH_SIZES = {"vit": 32, "lm": 16}
# By subject: the flags that it looks at, beside --workdir and --optimizers.
FLAGS = {
    "toy": (),
    "continual": ("seeds", "num_tasks", "task_steps"),
    "training": (
        *("task", "images", "image_size", "data", "model", "seq_len", "steps", "batch_size", "eval_every"),
        *("weight_decay", "points", "seeds"),
    ),
    "speed": ("sizes", "rounds", "max_seconds"),
}


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        subjects = [subject for subject, names in FLAGS.items() if name in names]
        kind(name, default, text + (f" For {' and '.join(subjects)}." if subjects else ""), flag_values=values)

    def each(defaults: Mapping[str, int]) -> str:
        return ", ".join(f"{value} for {task}" for task, value in defaults.items())

    define(define_path, "workdir", None, "Directory of the run; made if need be. Required.")
    define(flags.DEFINE_list, "optimizers", None, f"To compare; without it all, in training {', '.join(OPTIMIZERS)}.")
    define(flags.DEFINE_integer, "num_tasks", 16, "Tasks, one after the other.")
    define(flags.DEFINE_integer, "task_steps", 100, "Steps on each task.")
    define(flags.DEFINE_string, "task", "vit", "What to train: vit, a vision transformer, or lm, a language model.")
    define(define_path, "images", None, "Directory with a sub-directory of images a class; else the digits.")
    define(flags.DEFINE_integer, "image_size", 32, "Pixels on each side that --images are scaled to.")
    define(define_path, "data", None, "Text file, directory or .jsonl; without it Python's standard library.")
    define(flags.DEFINE_string, "model", "transformer", f"Language model, of {', '.join(MODEL_NAMES)}.")
    define(flags.DEFINE_integer, "seq_len", 64, "Bytes in a sequence.")
    define(flags.DEFINE_integer, "steps", None, f"Steps of a run; without it {each(STEPS)}.")
    define(flags.DEFINE_integer, "batch_size", None, f"Images or sequences; without it {each(BATCH_SIZES)}.")
    define(flags.DEFINE_integer, "eval_every", 20, "Steps between evaluations; must divide the steps.")
    define(flags.DEFINE_float, "weight_decay", 0.1, "Decoupled; the learning rate times it is lost at each step.")
    define(flags.DEFINE_integer, "points", 5, "Learning rates that each optimizer tries before it extends its grid.")
    define(flags.DEFINE_integer, "seeds", 3, "Final runs of each optimizer, with seeds 0, 1, ...")
    define(flags.DEFINE_list, "sizes", ["1e6", "1e7", "1e8"], "Numbers of parameters, about.")
    define(flags.DEFINE_integer, "rounds", 5, "Times that a step is timed after one to warm up.")
    define(flags.DEFINE_float, "max_seconds", 20.0, "A step that takes longer to warm up is not repeated.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run_subject(compare, SUBJECTS, define_flags(), __doc__, argv)


def compare(subject: str, values: flags.FlagValues) -> None:
    """Runs what is not yet done, prints the tables and draws the figure. All checks come first."""
    workdir = launcher.own_workdir(values)
    known = KNOWN[subject]
    names = list(known) if values.optimizers is None else values.optimizers
    launcher.check_names("optimizers", names, known, required=True)
    for name in ("num_tasks", "points"):
        launcher.check_range(values, name, 2)
    for name in ("task_steps", "seq_len", "eval_every", "seeds", "rounds", "image_size"):
        launcher.check_range(values, name, 1)
    for name in ("weight_decay", "max_seconds"):
        launcher.check_range(values, name, 0)
    SUBJECTS[subject](workdir, values, names)


def record_of(
    subject: str, workdir: Path, values: flags.FlagValues, names: Sequence[str], about: Mapping[str, Any] | None = None
) -> Record:
    """The record of a run; ``about`` is what config.json says of data and models."""
    given = {name: values[name].value for name in FLAGS[subject] if name not in launcher.INPUT_FLAGS}
    return Record(
        workdir,
        {
            "launcher": NAME,
            "flags": {"subject": subject, "optimizers": list(names), **given},
            "data": {},
            "models": {},
            **(about or {}),
        },
        {"inputs": launcher.inputs_of(values)},
        written=(_figure(subject, values),),
    )


def _figure(subject: str, values: flags.FlagValues) -> str:
    """Name of the file of a subject's figure."""
    return f"{values.task if subject == 'training' else subject}.png"


def toy(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Steps to the goal of Eq. 53."""
    record = record_of("toy", workdir, values, names)
    with progress_bar("toy", len(names)) as bar:
        for name in names:
            record.figures(name, functools.partial(_toy, name))
            bar.update()
    settings = optimizer_toy.SETTINGS
    rows: list[tuple[str, ...]] = [("steps to 1e-3", *(f"k {k:g}, a {a:g}, ω {omega:g}" for k, a, omega in settings))]
    for name in names:
        rows.append((name, *(_text(path["steps"], "d", "never") for path in record.get(name))))
    if {"momentum", "delta_momentum"} <= set(names):
        steps = ([path["steps"] for path in record.get(name)] for name in ("delta_momentum", "momentum"))
        ratios = [delta / plain if delta and plain else None for delta, plain in zip(*steps, strict=True)]
        rows.append(("delta_momentum / momentum", *(_text(ratio, ".2f") for ratio in ratios)))
    launcher.print_table(rows)
    rates = len(optimizer_toy.RATES)
    print(f"Each at the best of {rates} learning rates, the same for all; {optimizer_toy.STEPS} steps at most.")
    figure = optimizer_toy.draw(settings[0], {name: record.get(name)[0] for name in names})
    save_figure(figure, workdir / _figure("toy", values))
    record.report()


def _toy(name: str) -> list[dict[str, Any]]:
    return [path._asdict() for path in optimizer_toy.descend(optimizer_toy.OPTIMIZERS[name], optimizer_toy.SETTINGS)]


def continual(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Forgetting against the number of tasks."""
    record = record_of("continual", workdir, values, names)
    with progress_bar("continual", len(names)) as bar:
        for name in names:
            record.figures(name, functools.partial(_continual, name, values))
            bar.update()
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(ncols=2)
    header = ("optimizer", "learning rate", "loss after own task", "forgetting", "loss after all tasks")
    rows: list[tuple[str, ...]] = [header]
    for name in names:
        found = record.get(name)
        forgetting, seen = (np.array(found[key]) for key in ("forgetting", "seen"))
        plot_band(panels[0], np.arange(2, values.num_tasks + 1), forgetting, label=name)
        plot_band(panels[1], np.arange(1, values.num_tasks + 1), seen, label=name)
        ends = (found["learned"], forgetting[:, -1].tolist(), seen[:, -1].tolist())
        rows.append((name, f"{found['rate']:.3g}", *(launcher.mean_and_spread(end, digits=4) for end in ends)))
    panels[0].axhline(0, color="gray", linewidth=0.5)
    panels[0].set(ylabel="loss that earlier tasks gained since they were trained")
    panels[0].set_yscale("symlog", linthresh=1e-3)
    panels[1].set(ylabel="mean loss of all tasks so far", yscale="log")
    panels[1].legend()
    for axes in panels:
        axes.set(xlabel="tasks so far")
        axes.grid(alpha=0.3)
    save_figure(figure, workdir / _figure("continual", values))
    launcher.print_table(rows)
    print("Losses of untrained weights are 1; mean ± standard deviation over the seeds.")
    record.report()


def _continual(name: str, values: flags.FlagValues) -> dict[str, Any]:
    """Tuned by one seed, then scored on the others."""
    make, rates = optimizer_continual.OPTIMIZERS[name], optimizer_continual.RATES
    sizes = {"num_tasks": values.num_tasks, "steps": values.task_steps}
    tuning = optimizer_continual.learn(make, rates, [TUNING_SEED], **sizes).final[:, 0]
    rate = float(rates[np.argmin(tuning)])
    outcome = optimizer_continual.learn(make, [rate], range(values.seeds), **sizes)
    return {
        "rate": rate,
        "learned": outcome.learned[0].mean(-1).tolist(),
        "forgetting": outcome.forgetting[0].tolist(),
        "seen": outcome.seen[0].tolist(),
        "tuning_losses": [loss if np.isfinite(loss) else None for loss in tuning.tolist()],
    }


def training(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Losses of tuned optimizers, and their time."""
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
    record = record_of("training", workdir, values, names, task.about)
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
    _report_training(record, values, names, seconds)
    print(f"The model has {task.parameters:,} parameters.")
    record.report()


def _lanes(values: flags.FlagValues) -> int:
    """Runs side by side: on a CPU they would only wait for each other."""
    return 1 if jax.default_backend() == "cpu" else max(values.points, values.seeds)


def _trainer(task: Task, name: str, values: flags.FlagValues, lanes: int) -> Trainer:
    def make(schedule):
        return OPTIMIZERS[name].make(schedule, values.weight_decay)

    return Trainer(task, make, steps=values.steps, interval=values.eval_every, lanes=lanes)


def _tune(
    trainer: Trainer,
    name: str,
    losses: dict[str, float | None],
    values: flags.FlagValues,
    task: Task,
    record: Record,
    bar: Any,
) -> None:
    """Fills ``losses``, by rate, until the best rate is not at the edge."""
    for rates in Grid(values.points).search(OPTIMIZERS[name].rate, losses):
        if len(losses) >= values.points:
            bar.total += len(rates) * values.steps // values.eval_every
        runs = trainer.runs(rates, [TUNING_SEED] * len(rates), task.validation, bar.update)
        for rate, curves in zip(rates, runs, strict=True):
            losses[rate_name(rate)] = curves["loss"][-1]
            record.keep(f"{name}: tuning", losses)


def _step_seconds(task: Task, trainers: Mapping[str, Trainer], values: flags.FlagValues) -> dict[str, float]:
    """Median time of a step of a single run, all optimizers in turn."""
    single = {name: t if t.lanes == 1 else _trainer(task, name, values, lanes=1) for name, t in trainers.items()}
    compile_all(list(single.values()))
    calls = {name: trainer.interval_call(OPTIMIZERS[name].rate) for name, trainer in single.items()}
    timings = interleave(calls, values.rounds)
    return {name: statistics.median(timings[name].seconds) / values.eval_every for name in calls}


def _report_training(
    record: Record, values: flags.FlagValues, names: Sequence[str], seconds: Mapping[str, float]
) -> None:
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
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
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
                _text(losses[rate_name(rate)], ".3f"),
                *(launcher.mean_and_spread(curves[key][:, -1].tolist()) for key in ("train_loss", "loss", *scores)),
                launcher.mean_and_spread(soonest),
                f"{1e3 * seconds[name]:.1f}",
            )
        )
    for row, label in zip(panels, ("training loss", "test loss"), strict=True):
        row[0].set(ylabel=f"{label}, nats", xlabel="steps")
        row[1].set(xlabel="seconds of training")
        for axes in row:
            axes.grid(alpha=0.3)
            if values.task == "vit":
                axes.set_yscale("log")
    panels[0, 0].legend()
    save_figure(figure, record.workdir / _figure("training", values))
    launcher.print_table(rows)
    print("Losses in nats at the end, mean ± standard deviation over the seeds; the rate by validation loss.")


def speed(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Step time and state of all optimizers at all sizes."""
    sizes = _parse_sizes(values.sizes)
    record = record_of("speed", workdir, values, names)
    optimizers = {name: OPTIMIZERS[name] for name in names}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[int, float]]] = {}
    for text, size in sizes.items():
        print(f"{text} parameters", file=sys.stderr)
        measure = functools.partial(optimizer_speed.measure, optimizers, size, values.rounds, values.max_seconds)
        measured = record.figures(text, measure)
        count, found = measured["parameters"], measured["optimizers"]
        rows = [(f"{count:,} parameters", "ms a step", "x muon", "state bytes a parameter")]
        muon = found.get("muon", {}).get("step_seconds")
        for name, row in found.items():
            time = row.get("step_seconds")
            if time:
                curves.setdefault(name, []).append((count, 1e3 * time))
            ratio = time / muon if time and muon else None
            cells = _text(_milli(time), ",.2f"), _text(ratio, ".2f"), f"{row['state_bytes'] / count:.2f}"
            rows.append((name, *cells))
        launcher.print_table(rows)
        if last := found.get("m3", {}).get("last_of_period_seconds"):
            print(f"m3: {1e3 * last:,.2f} ms for the last step of a period")
        for name, row in found.items():
            if "problem" in row:
                print(f"{name}: {row['problem']}")
        print()
    for name, points in curves.items():
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="parameters", ylabel="ms a step of the optimizer alone")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, workdir / _figure("speed", values))
    record.report()


# A subject runs what its record lacks, prints its tables, and draws a figure into the workdir.
SUBJECTS: dict[str, Callable[[Path, flags.FlagValues, Sequence[str]], None]] = {
    "toy": toy,
    "continual": continual,
    "training": training,
    "speed": speed,
}


def _parse_sizes(texts: Sequence[str]) -> dict[str, float]:
    """Numbers of parameters by how they were written."""
    try:
        sizes = {text: float(text) for text in texts}
    except ValueError:
        sizes = {}
    if not sizes or len(sizes) < len(texts) or not all(1 <= size <= 1e11 for size in sizes.values()):
        raise InputError(f"--sizes={','.join(texts)}: expected numbers of parameters, as 1e6,1e7, none twice")
    return sizes


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _text(value: float | None, spec: str, absent: str = "-") -> str:
    return absent if value is None else format(value, spec)


if __name__ == "__main__":
    sys.exit(main())
