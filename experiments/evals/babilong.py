"""BABILong (Figure 9 of the paper): questions about facts that are hidden in a long text.

    python -m experiments.evals.babilong --workdir=runs/babilong
    python -m experiments.evals.babilong --workdir=runs/babilong_full --preset=full --models=hope,titans

Models are trained on stories of bAbI hidden in --length tokens of text, a subtask each, and tested at 1 and 16 times
the length and at --longest, in one stream, whose length costs no memory. The accuracy is that of greedy answers, in per
cent. The paper gives no figures in numbers.
"""

import functools
import sys

from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.hidden import babilong_subtasks, most_frequent_label
from experiments.eval_runs.long_text import NO_FORGETTING, SIZES, SMALL, data_of, define_text_flags, length_flags
from experiments.eval_runs.main import launcher_of
from nl_jax.tasks import LABELS

TIMES = {"x1": 1, "x16": 16}
SHOWN = (*TIMES, "longest")

EVALUATION = Evaluation(
    name="evals.babilong",
    models=("hope", "titans", "delta_net", "transformer", "transformer_conv"),
    names=tuple(LABELS),
    subtasks=functools.partial(babilong_subtasks, times=TIMES),
    score="sequences",
    shown={name: name for name in SHOWN},
    presets={
        "quick": SMALL
        | {"subtasks": ["qa1"], "models": ["hope", "transformer_conv"], "steps": 600, "samples": 16, "longest": 4096},
        "full": SIZES
        | {"subtasks": ["qa1"], "models": ["hope", "titans", "delta_net"], "longest": 131_072, "longest_samples": 4}
        | {"steps": 600, "learning_rates": ["3e-3"]},
    },
    own_flags=length_flags(longest=16_384),
    more_flags=define_text_flags,
    data=data_of,
    departures=(
        "small models are trained from scratch on each task, in rows of one, two or four texts as a curriculum",
        "a closed vocabulary of words, with one token for all others, in the place of GPT-2's tokens",
        "Python's documentation, repeated, in the place of books; question and answer count for the length",
        "own simulator of the stories: when qa3 asks is its own rule; fresh stories in training, not 10,000",
        "attention sees the last 16,384 tokens at most; Hope and Titans forget nothing (alpha=1.0)",
    ),
    variants=NO_FORGETTING,
    goal=0.999,
    references=functools.partial(most_frequent_label, figures=SHOWN),
)

define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
