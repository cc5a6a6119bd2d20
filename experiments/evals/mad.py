"""MAD's six synthetic tasks (the paper's Table 4, and noisy recall): compression, recall, copying, memorization.

    python -m experiments.evals.mad --workdir=runs/mad
    python -m experiments.evals.mad --workdir=runs/mad_full --preset=full --models=hope,titans,transformer

The figure is MAD's accuracy, averaged over the ids that are targets, of each batch of 128 test sequences (macro);
beside it the accuracy of single targets and of whole sequences. The recall tasks are trained on every next token, and
tested on values whose key came before. Compression asks for every token of a sequence from the state after the last.
The paper's figures are in percent, of larger models: compare ranks.
"""

import sys

from experiments.eval_runs.evaluation import Evaluation
from experiments.eval_runs.mad_subtasks import FLAGS, TASKS, subtasks
from experiments.eval_runs.main import launcher_of
from experiments.eval_runs.paper import MAD

EVALUATION = Evaluation(
    name="evals.mad",
    models=("hope", "titans", "delta_net", "transformer", "transformer_conv"),
    names=tuple(TASKS),
    subtasks=subtasks,
    score="classes",
    shown={"macro": "classes", "targets": "accuracy", "sequences": "sequences"},
    presets={
        "quick": {"models": ["hope", "transformer", "transformer_conv"], "steps": 200, "seeds": 1}
        | {"learning_rates": ["3e-3"]}
        | {"seq_len": 32, "copying_len": 32, "width": 32, "chunk_size": 16},
        "full": {"steps": 500, "chunk_size": 32, "learning_rates": ["3e-3", "1e-2"]},
    },
    own_flags=FLAGS,
    paper=MAD,
    departures=(
        "fresh training batches of 32, not 200 epochs over 12,800 sequences (memorization: 256) in batches of 128",
        "shorter sequences of the recall tasks and of copying, which copies fewer symbols, unless flags say MAD's",
        "one setting of each task, not the mean over MAD's changes of one size at a time",
        "two blocks of a smaller width, with a tied head, and ids beyond the task's own in recall and copying",
        "rates are chosen on sequences of their own, not on those of tests, and fall by a cosine; weight decay is 0.1",
        "the probe of fuzzy recall always comes before the end, where MAD's code can leave it out",
    ),
    goal=0.999,
)

define_flags, main = launcher_of(EVALUATION, __doc__)

if __name__ == "__main__":
    sys.exit(main())
