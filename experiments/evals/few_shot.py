"""In-context function classes: how well does a model learn a new function from examples in its context?

    python -m experiments.evals.few_shot --workdir=runs/few_shot
    python -m experiments.evals.few_shot --workdir=runs/few_shot_full --preset=full --models=hope,transformer

A sequence shows examples x_1, y_1, x_2, y_2, ... of one random function, and the model says y_i at x_i. A subtask is a
class of functions (Garg et al., 2022). The error is the mean square of the difference to the function without noise on
test functions; that of 0 is 1. Estimators from the same examples stand beside the models: least squares, ridge, Lasso,
3 nearest neighbours, and the Bayes-optimal where it is known. The figure has all numbers of examples.
"""

import sys

from absl import flags

from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.functions import Functions, curves, references
from experiments.eval_runs.main import launcher_of
from nl_jax.models.regression import InContextRegressor
from nl_jax.tasks import FUNCTION_CLASSES

SHARED = {"chunk_size": 65, "batch_size": 16}


def functions(values: flags.FlagValues) -> dict[str, Functions]:
    """The classes by name; their subtasks raise `InputError` for sizes out of range."""
    sizes = {"dimensions": values.dimensions, "examples": values.examples, "batch_size": values.batch_size}
    return {name: Functions(name, **sizes) for name in values.subtasks}


EVALUATION = Evaluation(
    name="evals.few_shot",
    models=("hope", "titans", "delta_net", "mesa", "transformer", "transformer_conv"),
    names=tuple(FUNCTION_CLASSES),
    subtasks=lambda values: {name: each.subtask() for name, each in functions(values).items()},
    score="mean_error",
    lower=True,
    shown={"error": "error", "mean error": "mean_error"},
    presets={  # a chunk of a whole sequence: a step of Hope takes 0.6 of what it takes with chunks of 16
        "quick": SHARED | {"subtasks": ["linear"], "steps": 300, "seeds": 1, "learning_rates": ["3e-3"]},
        "full": SHARED
        | {"subtasks": ["linear", "sparse_linear"], "models": ["hope", "delta_net", "transformer", "transformer_conv"]}
        | {"steps": 2400, "learning_rates": ["3e-3", "1e-2"]},
    },
    own_flags={
        "dimensions": (16, "Coordinates of an x."),
        "examples": (32, "Examples of a function before the x at which the table's error is measured."),
    },
    departures=("smaller models, 16 dimensions and fewer steps, in place of 20 dimensions and 500,000 steps",),
    build=InContextRegressor,
    references=lambda values: references(functions(values)),
    figure=curves,
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
