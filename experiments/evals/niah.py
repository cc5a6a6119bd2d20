"""Needles in a haystack, by RULER's rules (Table 1 of the paper): find values by their keys in a long text.

    python -m experiments.evals.niah --workdir=runs/niah
    python -m experiments.evals.niah --workdir=runs/niah_full --preset=full --models=hope,titans,transformer

Models are trained on the task itself, a subtask each, at --length tokens, and tested at 1, 2 and 4 times the length and
at --longest. They answer by greedy sampling; the score is the share of the expected values in the answer, in per cent.
The paper's figures are at 4K, 8K and 16K tokens, of models trained on 50B tokens of text.
"""

import functools
import sys

from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.hidden import niah_subtasks
from experiments.eval_runs.long_text import LENGTHS, NO_FORGETTING, SIZES, SMALL, data_of, define_text_flags
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.paper import NIAH
from nl_jax.tasks import VARIANTS

TIMES = {"x1": 1, "x2": 2, "x4": 4}

EVALUATION = Evaluation(
    name="evals.niah",
    models=("hope", "titans", "delta_net", "transformer", "transformer_conv"),
    names=tuple(VARIANTS),
    subtasks=functools.partial(niah_subtasks, times=TIMES),
    score="accuracy",
    shown={name: name for name in (*TIMES, "longest")},
    presets={
        "quick": SMALL | {"subtasks": ["s_1"], "models": ["hope", "transformer_conv"], "steps": 300, "samples": 16},
        "full": SIZES | {"subtasks": ["s_1", "mk_1"], "longest": 16_384, "learning_rates": ["1e-3", "3e-3"]},
    },
    own_flags=LENGTHS,
    more_flags=define_text_flags,
    data=data_of,
    paper=NIAH,
    departures=(
        "small models are trained on the task itself, which the paper's are not, in rows of one, two or four texts",
        "Hope and Titans forget nothing (alpha=1.0): the default leaves 0.007 of a fact after 16,384 tokens",
        "other models keep their retention, unless --mixer_option gives all models another",
        "a closed vocabulary of words, with one token for all others; numbers and uuids in pairs of digits",
        "the answer has as many tokens as it needs, not 128; prompts are filled at their left to equal lengths",
        "own lists of adjectives and nouns; Python's documentation, repeated, in the place of Paul Graham's essays",
        "no two keys and no two values of a sample are equal; fewer than 500 samples",
    ),
    variants=NO_FORGETTING,
    goal=0.999,
)

define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
