"""Multi-query associative recall: do a model's memories learn from the sequence they read?

    python -m experiments.recall --workdir=runs/recall
    python -m experiments.recall --workdir=runs/attention --models=transformer --seeds=1
    python -m experiments.recall --workdir=runs/alive --models=hope,titans --other_text=64,65536

Every sequence has new pairs of key and value, and asks for each value by its key, so that the trained weights alone can
know only which symbols are values. Each model is trained anew for every seed, which decides initial parameters and
batches, until two evaluations in a row reach 0.99, or to the last step. All models have the same width, depth and
feed-forward size.

Attention learns the task in a sudden jump, whose moment differs between seeds. With the defaults all three seeds reach
0.99, after 300 to 330 steps. With --steps=600, where the learning rate warms up and falls faster, 2 of 3 reach it,
after 390 and 570 steps.

With --other_text the trained model is also evaluated on sequences that it reads after the given number of random
symbols: memories must neither fill up nor die.

The same command resumes after the last finished seed; a seed that was stopped in the middle starts again (it takes
minutes). The workdir gets config.json (the configuration), metrics.jsonl (every step), accuracy.png (validation
accuracy against steps), results.json (final figures), and MODEL/seed_N/tensorboard.
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import launcher, task_training
from experiments.common.task_training import VALIDATION_SEED
from nl_jax import Diverged, InputError
from nl_jax.evaluation import accuracy
from nl_jax.models import MODEL_NAMES, read
from nl_jax.models.reading import start
from nl_jax.tasks import recall_batch
from nl_jax.training.metrics import ACCURACY

# Hope and its control, whose memories never learn; attention without and with a convolution.
DEFAULT_MODELS = [name for name in ("hope", "hope_frozen", "transformer", "transformer_conv") if name in MODEL_NAMES]
GOAL = 0.99  # accuracy at which training stops
VALIDATION_SEQUENCES = 512  # smallest number of sequences
STREAMS = 16  # number of streams of other text
PART = 4096  # tokens of other text per call


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    sizes = {
        "pairs": (4, "Pairs of key and value in a sequence."),
        "seq_len": (32, "Tokens in a sequence; at least four times the pairs."),
        "vocab_size": (64, "Symbols: half of them keys, half values."),
    }
    values = task_training.define_flags(DEFAULT_MODELS, sizes, steps=1000, eval_every=30)
    text = "Numbers of random symbols, such as 64,65536, after which the trained model is evaluated too."
    flags.DEFINE_list("other_text", [], text, flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(functools.partial(task_training.train, TASK), define_flags(), __doc__, argv)


def sizes(values: flags.FlagValues) -> dict[str, int]:
    """Checks the lengths of other text and returns the sizes of the models; attention sees whole sequences."""
    for name in ("pairs", "seq_len", "vocab_size"):
        launcher.check_range(values, name, 1)
    if not all(length.isdecimal() and 0 < int(length) < 2**31 for length in values.other_text):
        raise InputError(f"--other_text={','.join(values.other_text)}: expected numbers from 1, as 64,65536")
    return {"vocab_size": values.vocab_size, "context_length": values.seq_len}


def batch_of(values: flags.FlagValues, seed: int, step: int) -> task_training.Batch:
    """The training batch of a seed and a step; raises `InputError` if the sizes in the flags do not fit together."""
    sizes: dict[str, Any] = {name: values[name].value for name in ("batch_size", "seq_len", "vocab_size", "pairs")}
    return recall_batch(seed, step, **sizes)


def validation(values: flags.FlagValues) -> list[task_training.Batch]:
    count = -(-VALIDATION_SEQUENCES // values.batch_size)
    return [batch_of(values, VALIDATION_SEED, step) for step in range(count)]


def score(model: Any, validation: Sequence[task_training.Batch], mesh: jax.sharding.Mesh) -> task_training.Scores:
    return {ACCURACY: accuracy(model, validation, mesh)}


@jax.jit
def _read(model: Any, tokens: Any, targets: Any, mask: Any, state: Any) -> Any:
    return read(model, tokens, state, targets=targets, mask=mask)[1]


@jax.jit
def _count_right(model: Any, rows: Any, state: Any) -> Any:
    """The number of right answers; NaN if logits are not finite."""
    logits, _ = read(model, rows["inputs"], state, targets=rows["targets"], mask=rows["mask"])
    right = jnp.sum((jnp.argmax(logits, axis=-1) == rows["targets"]) * rows["mask"])
    return jnp.where(jnp.all(jnp.isfinite(logits)), right, jnp.nan)


def after_other_text(values: flags.FlagValues, model: Any, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The accuracy on the validation sequences, each read after one of ``STREAMS`` streams of random symbols."""
    batches = validation(values)
    count = VALIDATION_SEQUENCES // STREAMS * STREAMS
    sequences = {key: np.concatenate([batch[key] for batch in batches])[:count] for key in batches[0]}
    figures = {}
    for length in map(int, values.other_text):
        random = np.random.default_rng((VALIDATION_SEED, length))
        text = random.integers(1, values.vocab_size, (STREAMS, length), dtype=np.int32)
        following, known = np.roll(text, -1, axis=1), np.ones(text.shape, np.float32)
        known[:, -1] = 0.0  # nothing follows the last symbol
        state = start(model, STREAMS)
        for first in range(0, length, PART):
            part = slice(first, first + PART)
            state = _read(model, text[:, part], following[:, part], known[:, part], state)
        right = 0.0
        for first in range(0, count, STREAMS):
            rows = {key: array[first : first + STREAMS] for key, array in sequences.items()}
            right += float(_count_right(model, rows, state))
        if math.isnan(right):
            raise Diverged(f"the model's logits after {length} tokens of other text are not finite", position=length)
        figures[f"accuracy_after_{length}"] = right / float(sequences["mask"].sum())
    return figures


def columns(values: flags.FlagValues) -> dict[str, str]:
    return {"accuracy": ACCURACY} | {f"after {length}": f"accuracy_after_{length}" for length in values.other_text}


TASK = task_training.Task(
    name="recall",
    data={"validation_seed": VALIDATION_SEED, "validation_sequences": VALIDATION_SEQUENCES},
    sizes=sizes,
    batch=batch_of,
    validation=validation,
    score=score,
    solved=lambda scores: scores[ACCURACY] >= GOAL,
    outcome=lambda scores: scores[-1],
    finish=after_other_text,
    goal=("steps_to_99", "steps to 0.99"),
    columns=columns,
    legend="Accuracy",
)


if __name__ == "__main__":
    sys.exit(main())
