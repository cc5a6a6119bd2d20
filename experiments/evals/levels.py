"""The effect of levels (Figure 7): one to four levels, and how slow the slowest one is.

    python -m experiments.evals.levels --workdir=runs/levels
    python -m experiments.evals.levels --workdir=runs/levels_full --preset=full

levels_1 is Hope whose CMS learns in pre-training alone; each further level is a CMS block that learns from what it
reads, once every 32, 128 and 512 tokens. lowest_64, lowest_256 and lowest_512 have two such blocks, the slower one once
in so many tokens (levels_3 is lowest_128). All have the same number of parameters.
"""

import sys

from absl import flags

from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.hope_rows import LEVELS, LOWEST
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.text import BITS, PERPLEXITY, TINY, define_data_flag, draw_positions, text_of, text_subtask

SMALL = TINY | {"chunk_size": 32, "learning_rates": ["3e-3"]}


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name."""
    data = text_of(values.data)
    return {"language": text_subtask(data, values, values.length, values.test_tokens)}


EVALUATION = Evaluation(
    name="evals.levels",
    models=(*LEVELS, *LOWEST),
    names=("language",),
    subtasks=subtasks,
    score=BITS,
    lower=True,
    shown={"bits per byte": BITS, "perplexity": PERPLEXITY},
    presets={
        "quick": SMALL | {"models": list(LEVELS), "steps": 20, "seeds": 1},
        "full": SMALL | {"steps": 100, "length": 2048},
    },
    own_flags={
        "length": (1024, "Tokens of a window."),
        "test_tokens": (65_536, "Tokens of the test text that are scored."),
    },
    variants={**LEVELS, **LOWEST},
    more_flags=define_data_flag,
    data=lambda values: text_of(values.data).fingerprint,
    departures=("levels are trained from scratch, not stacked on a pre-trained model; periods are 16 times shorter",),
    figure=draw_positions,
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
