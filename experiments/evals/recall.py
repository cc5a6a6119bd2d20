"""Multi-query associative recall (MQAR), in place of the paper's recall-intensive tasks (Table 3).

    python -m experiments.evals.recall --workdir=runs/recall
    python -m experiments.evals.recall --workdir=runs/recall_full --preset=full --models=hope,titans,transformer

A sequence has new pairs of key and value, then asks for each value by its key. A subtask is a length and a number of
pairs. The accuracy is that of single answers on test sequences, of another random stream than training and validation.
"""

import sys

from absl import flags

from experiments.eval_runs.batches import TEST_SEED, VALIDATION_SEED, accuracy_of
from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.main import launcher_of
from nl_jax.tasks import recall_batch

SETTINGS = {"32x4": (32, 4), "64x4": (64, 4), "128x8": (128, 8), "256x16": (256, 16)}  # tokens and pairs
TEST_BATCHES = 16


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name; raises `InputError` if the vocabulary is too small."""
    return {name: _subtask(values, *SETTINGS[name]) for name in values.subtasks}


def _subtask(values: flags.FlagValues, length: int, pairs: int) -> Subtask:
    def batch(seed: int, step: int) -> dict:
        sizes = {"batch_size": values.batch_size, "seq_len": length, "vocab_size": values.vocab_size, "pairs": pairs}
        return recall_batch(seed, step, **sizes)

    validation, test = ([batch(seed, step) for step in range(TEST_BATCHES)] for seed in (VALIDATION_SEED, TEST_SEED))
    sizes = {"vocab_size": values.vocab_size, "context_length": length}
    return Subtask(sizes, batch, accuracy_of(validation), accuracy_of(test))


EVALUATION = Evaluation(
    name="evals.recall",
    models=("hope", "titans", "delta_net", "transformer", "transformer_conv"),
    names=tuple(SETTINGS),
    subtasks=subtasks,
    score="accuracy",
    shown={"accuracy": "accuracy"},
    presets={
        "quick": {"subtasks": ["32x4"], "vocab_size": 64, "steps": 300, "eval_every": 50}
        | {"seeds": 1, "learning_rates": ["3e-3"]},
        "full": {"subtasks": ["64x4", "128x8"], "chunk_size": 16},
    },
    own_flags={"vocab_size": (512, "Symbols: half of them keys, half values.")},
    departures=("fewer ids than the 8,192 of Arora et al. (2024), and fresh batches, not 100,000 texts",),
    goal=0.99,
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
