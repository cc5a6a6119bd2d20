"""Language modelling (the shape of Table 2, at the size of this machine) and loss by position (Figure 10).

    python -m experiments.evals.language --workdir=runs/language
    python -m experiments.evals.language --workdir=runs/language_full --preset=full

Models of equal numbers of parameters read equal numbers of tokens of the default corpus, in windows of 1,024 tokens, or
of 4,096 by --subtasks (--batch_size counts windows of 128), each at its best rate of the same grid. The test text gives
bits per byte, perplexity per token, and bits per token by position: a model that uses its context has fewer later on.
"""

import sys

from absl import flags

from experiments.eval_runs import text
from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.main import launcher_of

LENGTHS = {"1024": 1024, "4096": 4096}


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name."""
    data = text.text_of(values.data)
    return {name: text.text_subtask(data, values, LENGTHS[name], values.test_tokens) for name in values.subtasks}


EVALUATION = Evaluation(
    name="evals.language",
    models=("hope", "hope_attention", "titans", "delta_net", "transformer", "transformer_conv"),
    names=tuple(LENGTHS),
    subtasks=subtasks,
    score=text.BITS,
    lower=True,
    shown={"bits per byte": text.BITS, "perplexity": text.PERPLEXITY, "first 64 tokens": f"{text.UP_TO}64"},
    presets={
        "quick": text.TINY
        | {"subtasks": ["1024"], "models": ["hope", "hope_attention", "delta_net", "transformer_conv"]}
        | {"steps": 40, "test_tokens": 32_768, "seeds": 1, "learning_rates": ["3e-3"]},
        "full": text.TINY
        | {"subtasks": ["1024"], "steps": 100}
        | {"models": ["hope", "hope_attention", "titans", "gated_delta_net", "transformer", "transformer_conv"]},
    },
    own_flags={"test_tokens": (65_536, "Tokens of the test text that are scored.")},
    more_flags=text.define_data_flag,
    data=lambda values: text.text_of(values.data).fingerprint,
    departures=(
        "models, texts and tokens are thousands of times smaller than the paper's, tokens are bytes, and the "
        "common-sense tasks are left to experiments.evals.lm_eval",
    ),
    figure=text.draw_positions,
)


define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
