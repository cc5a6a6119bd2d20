"""The effect of levels (Figure 7): one to four levels, and how slow the slowest one is.

    python -m experiments.evals.levels --workdir=runs/levels
    python -m experiments.evals.levels --workdir=runs/levels_full --preset=full

levels_1 is Hope whose CMS learns in pre-training alone; each further level is a CMS block that learns from what it
reads, once every 32, 128 and 512 tokens. lowest_64, lowest_256 and lowest_512 have two such blocks, the slower one once
in so many tokens (levels_3 is lowest_128). All have the same number of parameters. They model text, tell the parity of
strings (with eigenvalues down to -1) and find one of four needles in a haystack.
"""

import sys

from absl import flags

from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.hope_rows import LEVELS, LOWEST
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.mixed import FLAGS, HOUR, MIXED, SHOWN, SMALL, data_of, define_mixed_flags, mixed_subtasks


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name."""
    return mixed_subtasks(values, values.window)


EVALUATION = Evaluation(
    name="evals.levels",
    models=(*LEVELS, *LOWEST),
    names=MIXED,
    subtasks=subtasks,
    score="score",
    shown=SHOWN,
    presets={
        "quick": SMALL
        | {"subtasks": ["language"], "models": list(LEVELS), "steps": 15, "test_tokens": 8192, "seeds": 1},
        "full": HOUR | {"window": 2048},
    },
    own_flags={**FLAGS, "window": (1024, "Tokens of a window of text.")},
    variants={**LEVELS, **LOWEST},
    more_flags=define_mixed_flags,
    data=data_of,
    departures=("levels are trained from scratch, not stacked on a pre-trained model; periods are 16 times shorter",),
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
