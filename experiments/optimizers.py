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

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from experiments.optimizer_comparison import continual, continual_tasks, speed, toy, toy_problem, training
from experiments.optimizer_comparison.reports import FLAGS
from experiments.optimizer_comparison.table import OPTIMIZERS
from experiments.optimizer_comparison.training import BATCH_SIZES, STEPS
from nl_jax.models import MODEL_NAMES

# By subject: the optimizers that it has.
KNOWN: dict[str, Mapping[str, Any]] = {
    "toy": toy_problem.OPTIMIZERS,
    "continual": continual_tasks.OPTIMIZERS,
    "training": OPTIMIZERS,
    "speed": OPTIMIZERS,
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


# A subject runs what its record lacks, prints its tables, and draws a figure into the workdir.
SUBJECTS: dict[str, Callable[[Path, flags.FlagValues, Sequence[str]], None]] = {
    "toy": toy.run,
    "continual": continual.run,
    "training": training.run,
    "speed": speed.run,
}


if __name__ == "__main__":
    sys.exit(main())
