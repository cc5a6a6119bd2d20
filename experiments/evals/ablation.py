"""What each part of Hope is worth: the eight rows of the paper's ablation (Table 6).

    python -m experiments.evals.ablation --workdir=runs/ablation
    python -m experiments.evals.ablation --workdir=runs/ablation_full --preset=full

Every row is Hope as the paper has it (Delta Gradient Descent, momentum, retention, a CMS of two levels, and memories
that make keys, values and queries) without one part. Without a memory for keys, values or queries the projection is an
ordinary trained weight. Hope as this project has it by default is beside them. All have the same number of parameters.
"""

import sys

from absl import flags

from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.hope_rows import ROWS, TABLE_6
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.text import BITS, PERPLEXITY, TINY, define_data_flag, text_of, text_subtask


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name."""
    return {"language": text_subtask(text_of(values.data), values, 1024, values.test_tokens)}


EVALUATION = Evaluation(
    name="evals.ablation",
    models=(*ROWS, "hope"),
    names=("language",),
    subtasks=subtasks,
    score=BITS,
    lower=True,
    shown={"bits per byte": BITS, "perplexity": PERPLEXITY},
    presets={
        "quick": TINY | {"steps": 30, "seeds": 1, "learning_rates": ["3e-3"]},
        "full": TINY | {"steps": 150, "learning_rates": ["2e-3", "4e-3"]},
    },
    own_flags={"test_tokens": (65_536, "Tokens of the test text that are scored.")},
    variants=ROWS,
    paper={name: {"language": figure} for name, figure in zip(ROWS, TABLE_6, strict=True)},
    more_flags=define_data_flag,
    data=lambda values: text_of(values.data).fingerprint,
    departures=("the paper's perplexities are of 760M parameters and words, these of bytes",),
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
