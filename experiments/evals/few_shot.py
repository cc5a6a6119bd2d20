"""In-context function classes: how well does a model learn a new function from examples in its context?

    python -m experiments.evals.few_shot --workdir=runs/few_shot
    python -m experiments.evals.few_shot --workdir=runs/few_shot_full --preset=full --models=hope,transformer

A sequence shows examples x_1, y_1, x_2, y_2, ... of one random function, and the model says y_i at x_i. A subtask is a
class of functions (Garg et al., 2022). The error is the mean square of the difference to the function without noise, on
test functions; 1 is that of always saying 0. Beside the models stand estimators that see the same examples: least
squares, ridge, Lasso, 3 nearest neighbours, and the Bayes-optimal one where it is known. The figure shows the error
against the number of examples.
"""

import sys

from absl import flags

from experiments.common import launcher
from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.functions import Functions, curves, references
from experiments.eval_runs.main import main as run
from nl_jax.models.regression import InContextRegressor
from nl_jax.tasks import FUNCTION_CLASSES

NOISE = 0.25  # of examples: what Garg et al. have in 16 dimensions, where values have mean square 1


def functions(values: flags.FlagValues) -> dict[str, Functions]:
    """The classes by name; raises `InputError` for sizes out of range."""
    launcher.check_range(values, "dimensions", 3)
    launcher.check_range(values, "examples", 1)
    sizes = {"dimensions": values.dimensions, "examples": values.examples + 1, "batch_size": values.batch_size}
    return {name: Functions(name, noise=NOISE, **sizes) for name in values.subtasks}


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name."""
    return {name: each.subtask() for name, each in functions(values).items()}


EVALUATION = Evaluation(
    name="evals.few_shot",
    models=("hope", "titans", "delta_net", "mesa", "transformer"),
    names=tuple(FUNCTION_CLASSES),
    subtasks=subtasks,
    score="score",
    shown={"error": "error", "mean error": "mean_error"},
    presets={
        "quick": {"subtasks": ["linear"], "steps": 300, "seeds": 1, "learning_rates": ["3e-3"]},
        "full": {"subtasks": ["linear", "sparse_linear"], "steps": 3000, "learning_rates": ["3e-3"]},
    },
    own_flags={
        "dimensions": (16, "Coordinates of an x."),
        "examples": (32, "Examples of the function before the x of which the error is that of the table."),
    },
    departures=("smaller models, fewer steps and 16 dimensions, in place of 500,000 steps and 20 dimensions",),
    build=InContextRegressor,
    references=lambda values: references(functions(values)),
    figure=curves,
)


if __name__ == "__main__":
    sys.exit(run(EVALUATION, __doc__))
