"""What each part of Hope is worth: the eight rows of the paper's ablation (Table 6).

    python -m experiments.evals.ablation --workdir=runs/ablation
    python -m experiments.evals.ablation --workdir=runs/ablation_full --preset=full

Every row is Hope as the paper has it (Delta Gradient Descent, momentum, retention, a CMS of two levels, and memories
that make keys, values and queries) without one part. Without a memory for keys, values or queries the projection is an
ordinary trained weight. Hope as this project has it by default is beside them. All have the same number of parameters.
The presets have text alone; --subtasks=language,parity,mk_1 has the parity of strings (with eigenvalues down to -1),
and one of four needles in a haystack.
"""

import sys

from absl import flags

from experiments.eval_runs import mixed
from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.hope_rows import ROWS, TABLE_6
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.mixed import HOUR, SMALL


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name."""
    return mixed.mixed_subtasks(values, 1024)


EVALUATION = Evaluation(
    name="evals.ablation",
    models=(*ROWS, "hope"),
    names=mixed.MIXED,
    subtasks=subtasks,
    score="score",
    shown=mixed.SHOWN,
    presets={
        "quick": SMALL | {"subtasks": ["language"], "steps": 20, "test_tokens": 16_384, "seeds": 1},
        "full": HOUR,
    },
    own_flags=mixed.FLAGS,
    variants=ROWS,
    paper={name: {"language": figure} for name, figure in zip(ROWS, TABLE_6, strict=True)},
    more_flags=mixed.define_mixed_flags,
    data=mixed.data_of,
    departures=("the paper's perplexities are of 760M parameters and words, these of bytes", *mixed.DEPARTURES),
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
