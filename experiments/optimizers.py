"""Compares optimizers as memories of gradients, from nl_jax.optim and optax. The first argument is the subject:

    python -m experiments.optimizers toy --workdir=runs/toy
    python -m experiments.optimizers continual --workdir=runs/continual
    python -m experiments.optimizers training --workdir=runs/vit --task=vit
    python -m experiments.optimizers training --workdir=runs/lm --task=lm
    python -m experiments.optimizers speed --workdir=runs/speed

toy        the paper's problem in two dimensions (Figure 4) at several settings: steps to a loss of 1e-3
continual  tasks with orthogonal gradients, one after the other: forgetting of earlier tasks
training   a vision transformer on scikit-learn's digits or --images, or a small language model: losses against steps
           and seconds (Figure 11)
speed      time of a step of the optimizer alone, by number of parameters, and bytes of its state (Figure 12)

In toy and continual all optimizers try the same learning rates, and each uses its best one. continual chooses the rate
with a separate seed.

In training every optimizer tries the same number of learning rates, each twice the one before, and uses the one with
the lowest validation loss at the end of a run with a separate seed. If the best rate is at the edge of the grid, the
grid is extended until it is not, and the table says how many rates were tried. Then come the final runs with seeds 0,
1, ..., whose curves are losses on the test split. Only these runs use the test split, once each, and nothing is chosen
by it. All runs clip gradients to norm 1, warm up, follow a cosine, and have the same weight decay, except that
momentum, Delta Momentum and deep momentum have none. Seconds are the number of steps times the median time of a step,
which is measured when all runs are done, for all optimizers in turn, one interval of a single run at a time. On an
accelerator, runs are trained side by side.

speed times the update alone, from gradients to steps, for all optimizers in turn, round by round, and reports medians.
The step time of M3 is the mean over a period of its slow memory.

The workdir gets config.json, results.json and a plot. The same command resumes a stopped run, and prints the tables
again when everything is done.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path, define_workdir
from experiments.optimizer_comparison import continual, continual_tasks, speed, toy, toy_problem, training
from experiments.optimizer_comparison.reports import FLAGS
from experiments.optimizer_comparison.table import OPTIMIZERS
from experiments.optimizer_comparison.training import BATCH_SIZES, STEPS
from nl_jax.models import MODEL_NAMES

# By subject: its optimizers.
KNOWN: dict[str, Mapping[str, Any]] = {
    "toy": toy_problem.OPTIMIZERS,
    "continual": continual_tasks.OPTIMIZERS,
    "training": OPTIMIZERS,
    "speed": OPTIMIZERS,
}


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        subjects = [subject for subject, names in FLAGS.items() if name in names]
        kind(name, default, text + (f" For {' and '.join(subjects)}." if subjects else ""), flag_values=values)

    def each(defaults: Mapping[str, int]) -> str:
        return ", ".join(f"{value} for {task}" for task, value in defaults.items())

    define_workdir(values)
    define(
        flags.DEFINE_list,
        "optimizers",
        None,
        f"Optimizers to compare. Default: all, in training {', '.join(OPTIMIZERS)}.",
    )
    define(flags.DEFINE_integer, "num_tasks", 16, "Tasks, one after the other.")
    define(flags.DEFINE_integer, "task_steps", 100, "Steps on each task.")
    define(flags.DEFINE_string, "task", "vit", "What to train: vit, a vision transformer, or lm, a language model.")
    define(define_path, "images", None, "Directory with a sub-directory of images for each class. Default: digits.")
    define(flags.DEFINE_integer, "image_size", 32, "Pixels on each side to which --images are resized.")
    define(define_path, "data", None, "Text file, directory or .jsonl. Default: Python's standard library.")
    define(flags.DEFINE_string, "model", "transformer", f"Language model, of {', '.join(MODEL_NAMES)}.")
    define(flags.DEFINE_integer, "seq_len", 64, "Bytes in a sequence.")
    define(flags.DEFINE_integer, "steps", None, f"Optimizer steps of a run. Default: {each(STEPS)}.")
    define(flags.DEFINE_integer, "batch_size", None, f"Images or sequences in a batch. Default: {each(BATCH_SIZES)}.")
    define(flags.DEFINE_integer, "eval_every", 20, "Steps between evaluations; must divide --steps.")
    define(flags.DEFINE_float, "weight_decay", 0.1, "Decoupled weight decay; multiplied by the learning rate.")
    define(flags.DEFINE_integer, "points", 5, "Learning rates that each optimizer tries before its grid is extended.")
    define(flags.DEFINE_integer, "seeds", 3, "Final runs of each optimizer, with seeds 0, 1, ...")
    define(flags.DEFINE_list, "sizes", ["1e6", "1e7", "1e8"], "Numbers of parameters, about.")
    define(flags.DEFINE_integer, "rounds", 5, "Number of timed rounds after one to warm up.")
    define(flags.DEFINE_float, "max_seconds", 20.0, "A step whose warm-up takes longer is timed by its warm-up alone.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run_subject(compare, SUBJECTS, define_flags(), __doc__, argv)


def compare(subject: str, values: flags.FlagValues) -> None:
    """Runs everything that is missing, prints the tables and draws the plot. All checks come first."""
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


# A subject runs everything that its record lacks, prints its tables, and draws a plot into the workdir.
SUBJECTS: dict[str, Callable[[Path, flags.FlagValues, Sequence[str]], None]] = {
    "toy": toy.run,
    "continual": continual.run,
    "training": training.run,
    "speed": speed.run,
}


if __name__ == "__main__":
    sys.exit(main())
