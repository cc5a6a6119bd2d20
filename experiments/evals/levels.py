"""The effect of levels (Figure 7): one to four levels, and how slow the slowest one is.

    python -m experiments.evals.levels --workdir=runs/levels
    python -m experiments.evals.levels --workdir=runs/levels_full --preset=full

levels_1 is Hope whose CMS learns in pre-training alone; each further level is a CMS block that learns from what it
reads, once every 32, 128 and 512 tokens. lowest_64, lowest_256 and lowest_512 have two such blocks, the slower one once
in so many tokens (levels_3 is lowest_128). All have the same number of parameters. The presets have text alone;
--subtasks=language,parity,mk_1 has the parity of strings (with eigenvalues down to -1), and one of four needles.
"""

import sys

from absl import flags

from experiments.eval_runs import mixed
from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.hope_rows import LEVELS, LOWEST
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.mixed import HOUR, SMALL

VARIANTS = {**LEVELS, **LOWEST}


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name; raises `InputError` for lengths that levels cannot read."""
    mixed.check_lengths(values, VARIANTS)
    return mixed.mixed_subtasks(values, values.window)


EVALUATION = Evaluation(
    name="evals.levels",
    models=(*LEVELS, *LOWEST),
    names=mixed.MIXED,
    subtasks=subtasks,
    score="score",
    shown=mixed.SHOWN,
    presets={
        "quick": SMALL
        | {"subtasks": ["language"], "models": list(LEVELS), "steps": 15, "test_tokens": 8192, "seeds": 1},
        "full": HOUR | {"window": 2048},
    },
    own_flags={**mixed.FLAGS, "window": (1024, "Tokens of a window of text.")},
    variants=VARIANTS,
    more_flags=mixed.define_mixed_flags,
    data=mixed.data_of,
    departures=(
        "levels are trained from scratch, not stacked on a pre-trained model; periods are 16 times shorter",
        *mixed.DEPARTURES,
    ),
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
