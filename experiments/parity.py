"""Parity: can a model keep one bit of state on strings longer than those it was trained on?

    python -m experiments.parity --workdir=runs/parity
    python -m experiments.parity --workdir=runs/negative --mixer_option=allow_neg_eigval=True
    python -m experiments.parity --workdir=runs/hope --models=hope --mixer_option=allow_neg_eigval=True \
        --mixer_option=delta=True

After each symbol of a string of 0s and 1s the model says whether the number of 1s so far is even. It is trained on
fresh strings of 2 to 50 symbols, and evaluated on 500 different strings of 2 to 50 symbols and on 500 of 51 to 100. A
string is right if all of its positions are right. The share of right positions is given too; guessing gives 0.5. Each
model is trained anew for every seed, which decides initial parameters and batches, until every string is right in two
evaluations in a row, or to the last step. All models have the same width, depth and feed-forward size.

The memory of a delta rule is multiplied by I - beta k k' at every symbol. It can change its sign at every 1 only if
beta is above 1, so that the eigenvalue is negative; the second command allows this in all models of its run.
Self-modifying Titans, and so Hope, also need Delta Gradient Descent to keep the bit on longer strings (the third
command): without it the inner layers of their memories keep changing.

The best figures are those of the evaluation with most strings right in both sets. So they are selected on the data on
which they are reported, as in Irie et al., 2023. Training also sees the shortest strings of the validation set of 2 to
50 symbols, since there are few of them.

The same command resumes after the last finished seed. The workdir gets config.json (the configuration), metrics.jsonl
(every step), accuracy.png (right positions of the longer strings against steps), results.json (last and best figures of
each seed), and MODEL/seed_N/tensorboard.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments.common import launcher, task_training
from experiments.common.task_training import VALIDATION_SEED
from experiments.eval_runs.batches import split
from nl_jax.evaluation import accuracies
from nl_jax.tasks import PARITY_VOCABULARY, parity_batch
from nl_jax.training.metrics import ACCURACY

DEFAULT_MODELS = ("delta_net", "hope")
ACCURACY_SHORT, SHORT, LONG = "accuracy_short", "sequences_short", "sequences_long"


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    sizes = {
        "min_length": (2, "Smallest number of symbols of a string."),
        "max_length": (50, "Largest number of symbols of a string in training and in the shorter validation set."),
        "long_length": (100, "Largest number of symbols of a string in the longer validation set."),
        "validation_sequences": (500, "Strings of each validation set."),
    }
    return task_training.define_flags(DEFAULT_MODELS, sizes, steps=2000, eval_every=100)


def main(argv: list[str] | None = None) -> int:
    return launcher.run(functools.partial(task_training.train, TASK), define_flags(), __doc__, argv)


def sizes(values: flags.FlagValues) -> dict[str, int]:
    """Checks the lengths and returns the sizes of the models; attention sees whole strings."""
    launcher.check_range(values, "min_length", 1)
    launcher.check_range(values, "max_length", values.min_length)
    launcher.check_range(values, "long_length", values.max_length + 1)
    launcher.check_range(values, "validation_sequences", 1)
    return {"vocab_size": PARITY_VOCABULARY, "context_length": values.long_length}


def batch_of(values: flags.FlagValues, seed: int, step: int) -> task_training.Batch:
    lengths = {"min_length": values.min_length, "max_length": values.max_length}
    return parity_batch(seed, step, batch_size=values.batch_size, **lengths)


def validation(values: flags.FlagValues) -> list[list[task_training.Batch]]:
    """The batches of the shorter and of the longer set; raises `InputError` if too few distinct strings exist."""
    windows = ((values.min_length, values.max_length), (values.max_length + 1, values.long_length))
    count = values.validation_sequences
    sets = [
        parity_batch(VALIDATION_SEED, step, batch_size=count, min_length=low, max_length=high, distinct=True)
        for step, (low, high) in enumerate(windows)
    ]
    return [list(split(strings, values.batch_size)) for strings in sets]


def score(
    model: Any, validation: Sequence[Sequence[task_training.Batch]], mesh: jax.sharding.Mesh
) -> task_training.Scores:
    short, long = (accuracies(model, batches, mesh) for batches in validation)
    return {ACCURACY: long.positions, ACCURACY_SHORT: short.positions, SHORT: short.sequences, LONG: long.sequences}


def outcome(scores: Sequence[task_training.Scores]) -> task_training.Scores:
    """The last figures and the best ones: those of the first evaluation with most strings right in both sets."""
    best = max(scores, key=lambda scores: scores[SHORT] + scores[LONG])
    return scores[-1] | {f"best_{name}": value for name, value in best.items()}


TASK = task_training.Task(
    name="parity",
    data={"validation_seed": VALIDATION_SEED},
    sizes=sizes,
    batch=batch_of,
    validation=validation,
    score=score,
    solved=lambda scores: min(scores[SHORT], scores[LONG]) == 1,
    outcome=outcome,
    finish=lambda values, model, mesh: {},
    goal=("steps_to_all_right", "steps to all right"),
    columns=lambda values: {
        "short strings": SHORT,
        "long strings": LONG,
        "their positions": ACCURACY,
    },
    legend="Shares of strings, and of the long ones' positions, that are right",
)


if __name__ == "__main__":
    sys.exit(main())
