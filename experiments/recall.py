"""Multi-query associative recall: do a model's memories learn from the sequence they read?

    python -m experiments.recall --workdir=runs/recall
    python -m experiments.recall --workdir=runs/attention --models=transformer --seeds=1

Every sequence brings new pairs of key and value and asks for each value by its key, so that weights alone know only
which symbols are values. Each model is trained anew for every seed, which decides initial parameters and batches, until
two evaluations in a row reach 0.99, or to the last step. All models have the same width, depth and feed-forward size.

Attention learns it in a sudden jump whose moment differs by seed: with the defaults all three seeds reach 0.99, after
300 to 330 steps; with --steps=600, whose learning rate warms up and falls faster, 2 of 3, after 390 and 570.

The same command goes on after the last seed that was finished: one that was stopped in the middle is begun again (it
takes minutes). Into the workdir go config.json (what the run is), metrics.jsonl (every step), accuracy.png (validation
accuracy against steps), results.json (final figures), and MODEL/seed_N/tensorboard.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import launcher, tasks
from experiments.tasks import VALIDATION_SEED
from nl_jax.data import recall_batch
from nl_jax.models import MODEL_NAMES
from nl_jax.training import accuracy
from nl_jax.training.metrics import ACCURACY

# Each learning model beside its control: the same memories that never learn, attention with and without a convolution.
DEFAULT_MODELS = [name for name in ("hope", "hope_frozen", "transformer", "transformer_conv") if name in MODEL_NAMES]
GOAL = 0.99  # accuracy
VALIDATION_SEQUENCES = 512  # at least


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    sizes = {
        "pairs": (4, "Pairs of key and value in a sequence."),
        "seq_len": (32, "Tokens in a sequence; at least four times the pairs."),
        "vocab_size": (64, "Symbols: half of them keys, half values."),
    }
    return tasks.define_flags(DEFAULT_MODELS, sizes, steps=1000, eval_every=30)


def main(argv: list[str] | None = None) -> int:
    return launcher.run(functools.partial(tasks.train, TASK), define_flags(), __doc__, argv)


def sizes(values: flags.FlagValues) -> dict[str, int]:
    return {"vocab_size": values.vocab_size, "context_length": values.seq_len}


def batch_of(values: flags.FlagValues, seed: int, step: int) -> tasks.Batch:
    """The batch by the flags; `InputError` where their sizes do not fit."""
    sizes: dict[str, Any] = {name: values[name].value for name in ("batch_size", "seq_len", "vocab_size", "pairs")}
    return recall_batch(seed, step, **sizes)


def validation(values: flags.FlagValues) -> list[tasks.Batch]:
    count = -(-VALIDATION_SEQUENCES // values.batch_size)
    return [batch_of(values, VALIDATION_SEED, step) for step in range(count)]


def score(model: Any, validation: Sequence[tasks.Batch], mesh: jax.sharding.Mesh) -> tasks.Scores:
    return {ACCURACY: accuracy(model, validation, mesh)}


TASK = tasks.Task(
    name="recall",
    data={"validation_seed": VALIDATION_SEED, "validation_sequences": VALIDATION_SEQUENCES},
    sizes=sizes,
    batch=batch_of,
    validation=validation,
    score=score,
    solved=lambda scores: scores[ACCURACY] >= GOAL,
    outcome=lambda scores: scores[-1],
    goal=("steps_to_99", "steps to 0.99"),
    columns={"accuracy": ACCURACY},
    legend="Accuracy",
)


if __name__ == "__main__":
    sys.exit(main())
