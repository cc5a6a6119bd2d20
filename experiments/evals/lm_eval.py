"""Evaluates a model on tasks of EleutherAI's lm-eval: multiple choice, perplexity, generation.

    python -m experiments.evals.lm_eval --workdir=runs/first --tasks=wikitext
    python -m experiments.evals.lm_eval --model=default --tasks=mine --tasks_dir=my_tasks --output=runs/mine

The model is the newest checkpoint of a run of experiments.language_model, or a pre-trained one of the Llama family
(--model alone). The tasks are those that the package knows, and those of the YAML files in --tasks_dir; most of the
package's own need the network for their data. A model that learns in context learns from each text while it reads.

This needs the package: `pip install nl-jax[eval]`, without torch. With --output the same command resumes after the last
finished task, and more --tasks may be added. The directory gets config.json and results.json.
"""

import sys

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from experiments.common.restoring import define_tokenizer_flag
from experiments.eval_runs.harness import evaluate


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()
    text = "Directory of a run of experiments.language_model. Required without --model."
    define_path("workdir", None, text, flag_values=values)
    text = "Hugging Face directory or GGUF file of a pre-trained model, or 'default'; with --workdir one of its models."
    define_path("model", None, text, flag_values=values)
    define_tokenizer_flag(values)
    flags.DEFINE_list("tasks", [], "Tasks or groups of tasks by name. Required.", flag_values=values)
    define_path("tasks_dir", None, "Directory with YAML files of further tasks.", flag_values=values)
    text = "Examples of each task at most. Default: all."
    flags.DEFINE_integer("limit", None, text, flag_values=values)
    text = "Solved examples before each question. Default: what the task says."
    flags.DEFINE_integer("num_fewshot", None, text, flag_values=values)
    text = "Tokens of a text at most. Default: what the model was trained with."
    flags.DEFINE_integer("max_length", None, text, flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "Texts that are read together; no result depends on it.", flag_values=values)
    flags.DEFINE_boolean("chat", False, "Ask by the model's chat template, as a user.", flag_values=values)
    define_path("output", None, "Directory for the results, created if it does not exist.", flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(evaluate, define_flags(), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
