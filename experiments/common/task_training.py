"""Training on synthetic tasks, shared by their launchers: each model is trained anew for every seed until a goal.

A launcher defines its flags by `define_flags`, describes its task by a `Task`, and calls `train`, which keeps finished
seeds and prints a table.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.common.compute_flags import define_dtype_flag
from experiments.common.launcher import RESULTS
from experiments.common.mixer_options import configuration, define_mixer_option
from experiments.common.optimizer_flags import define_optimizer_flags, optimizer_arguments, set_default_rates
from experiments.common.path_flags import define_workdir
from experiments.common.programs import make_program
from nl_jax.models import MODEL_NAMES, LanguageModel, LanguageModelConfig, count_parameters
from nl_jax.training import (
    MetricsWriter,
    TrainState,
    finite_outputs,
    make_optimizer,
    plot_accuracy,
    progress_bar,
)
from nl_jax.training.divergence import check_finite
from nl_jax.training.metrics import ACCURACY_PLOT, METRICS

VALIDATION_SEED = 2**31 - 1  # never a training seed
STEPS = "steps"  # key in results.json of the number of steps trained, which each finished seed has

Batch = dict[str, np.ndarray]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts of training that differ from task to task.

    Attributes:
        name: name of the launcher.
        data: entries of config.json about the validation data, beside the flags.
        sizes: ``sizes(flags)`` returns the models' ``vocab_size`` and ``context_length``.
        batch: ``batch(flags, seed, step)`` returns a training batch.
        validation: ``validation(flags)`` returns the validation data; this or ``sizes`` raises `InputError` for flags
            that do not fit together.
        score: ``score(model, validation data, mesh)`` returns figures by name, including ``accuracy``.
        solved: ``solved(figures)`` tells whether they reach the goal.
        outcome: ``outcome(figures of every evaluation)`` returns the figures of a seed for results.json.
        finish: ``finish(flags, trained model, mesh)`` returns further figures for results.json.
        goal: key in results.json, and name in words, of the number of steps at the first evaluation that reached the
            goal.
        columns: ``columns(flags)`` returns the columns of the table, as headings and keys in results.json.
        legend: explains these columns in words.
    """

    name: str
    data: Mapping[str, Any]
    sizes: Callable[[flags.FlagValues], dict[str, int]]
    batch: Callable[[flags.FlagValues, int, int], Batch]
    validation: Callable[[flags.FlagValues], Any]
    score: Callable[[Any, Any, jax.sharding.Mesh], Scores]
    solved: Callable[[Scores], bool]
    outcome: Callable[[Sequence[Scores]], Scores]
    finish: Callable[[flags.FlagValues, Any, jax.sharding.Mesh], dict[str, Any]]
    goal: tuple[str, str]
    columns: Callable[[flags.FlagValues], Mapping[str, str]]
    legend: str


def define_flags(
    models: Sequence[str], sizes: Mapping[str, tuple[int, str]], *, steps: int, eval_every: int
) -> flags.FlagValues:
    """Defines the flags, without parsing them.

    Args:
        models: names of the models that are trained by default.
        sizes: integer flags of the task: default and help by name.
        steps, eval_every: defaults of these flags.
    """
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define_workdir(values)
    define(flags.DEFINE_list, "models", ",".join(models), f"Models to train, of {', '.join(MODEL_NAMES)}.")
    for name, (default, text) in sizes.items():
        define(flags.DEFINE_integer, name, default, text)
    define(flags.DEFINE_integer, "width", 64, "Width of the models; the feed-forward size is twice as much.")
    define(flags.DEFINE_integer, "num_heads", 2, "Heads of the mixers.")
    define(flags.DEFINE_integer, "num_layers", 2, "Blocks.")
    define(flags.DEFINE_integer, "chunk_size", 8, "Tokens between two boundaries of the memories (Hope).")
    define_mixer_option(values)
    define_dtype_flag(values)
    define(flags.DEFINE_integer, "batch_size", 32, "Sequences in a batch.")
    define_optimizer_flags(values)
    define(flags.DEFINE_integer, "steps", steps, "Largest number of optimizer steps of a run; the cosine ends there.")
    define(flags.DEFINE_integer, "eval_every", eval_every, "Steps between evaluations.")
    define(flags.DEFINE_integer, "seeds", 3, "Runs of each model, with seeds 0, 1, ...")
    return values


def train(task: Task, values: flags.FlagValues) -> None:
    """Trains all models that are not yet trained, and prints the table. All checks come before any compilation."""
    workdir = launcher.own_workdir(values)
    configs = check(task, values)
    parameters = {name: count_parameters(config) for name, config in configs.items()}
    validation = task.validation(values)
    config: dict[str, Any] = {
        "launcher": task.name,
        "flags": {name: value for name, value in values.flag_values_dict().items() if name != "workdir"},
        "data": task.data,
        "models": {name: config.to_json() for name, config in configs.items()},
    }
    metadata: dict[str, Any] = {"models": {}, "seeds": list(range(values.seeds))}
    results = launcher.claim_workdir(workdir, config, metadata, written=(ACCURACY_PLOT, *values.models))

    for name in values.models:
        figures = results["models"].setdefault(name, {"parameters": parameters[name]})
        done = len(figures.get(STEPS, []))
        for outcome in train_model(task, name, configs[name], validation, values, workdir, done):
            for key, value in outcome.items():
                figures.setdefault(key, []).append(value)
            plot_accuracy(workdir)
            launcher.write_json(workdir / RESULTS, results)
    report(task, workdir, results, task.columns(values))


def train_model(
    task: Task,
    name: str,
    config: LanguageModelConfig,
    validation: Any,
    values: flags.FlagValues,
    workdir: Path,
    done: int,
) -> Iterator[dict[str, Any]]:
    """Trains one model for every seed after the first ``done``, and yields their results; it compiles once."""
    if done == values.seeds:
        return
    optimizer = make_optimizer(**optimizer_arguments(values), cms_periods=config.optimizer_periods)
    program = make_program(LanguageModel, config, optimizer, task.batch(values, 0, 1))

    def score(model: Any) -> Scores:
        return task.score(model, validation, program.mesh)

    for seed in range(done, values.seeds):
        start = program.init(jax.random.key(seed))
        state, outcome = train_seed(task, name, seed, start, program.take_step, score, values, workdir)
        yield outcome | task.finish(values, state.model, program.mesh)


def train_seed(
    task: Task,
    name: str,
    seed: int,
    state: TrainState,
    take_step: jax.stages.Compiled,
    score: Callable[[Any], Scores],
    values: flags.FlagValues,
    workdir: Path,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains from the initial state until two evaluations in a row reach the goal, or to the last step.

    Returns:
        The last state, and the entries of results.json: the task's figures, the number of steps at the first evaluation
        that reached the goal, and the number of steps trained.
    """
    run = f"{name}/seed_{seed}"
    scores: list[Scores] = []
    steps_to_goal: int | None = None
    seconds = 0.0  # spent in training steps only
    with MetricsWriter(workdir, run) as metrics, progress_bar(run, values.steps) as bar:
        for step in range(1, values.steps + 1):
            batch = task.batch(values, seed, step)
            started = time.perf_counter()
            state, outputs = take_step(state, batch)
            row = finite_outputs(run, step, outputs)
            seconds += time.perf_counter() - started
            if step == values.steps or step % values.eval_every == 0:
                scores.append(score(state.model))
                check_finite(run, step, scores[-1], "the model after its last update")
                row |= scores[-1]
                if task.solved(scores[-1]) and steps_to_goal is None:
                    steps_to_goal = step
            tokens = step * batch["inputs"].size
            metrics.write(step, tokens, row)
            last = "".join(f"{key} {value:.3f}, " for key, value in scores[-1].items()) if scores else ""
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {last}{tokens / seconds:,.0f} tokens/s", refresh=False)
            bar.update()
            if len(scores) >= 2 and all(map(task.solved, scores[-2:])):
                break
    return state, {**task.outcome(scores), task.goal[0]: steps_to_goal, STEPS: step}


def check(task: Task, values: flags.FlagValues) -> dict[str, LanguageModelConfig]:
    """Checks the flags that the batches do not check, and returns the configurations of the models."""
    for name in ("width", "num_heads", "num_layers", "chunk_size", "batch_size", "steps", "eval_every", "seeds"):
        launcher.check_range(values, name, 1)
    set_default_rates(values)
    launcher.check_names("models", values.models, MODEL_NAMES, required=True)
    sizes = {name: values[name].value for name in ("width", "num_heads", "num_layers", "chunk_size")}
    sizes |= {"mlp_hidden": 2 * values.width, **task.sizes(values)}
    return {name: configuration(values, name, "tiny", **sizes) for name in values.models}


def report(task: Task, workdir: Path, results: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Prints the table of all models, and where the results are."""
    seeds = len(results["seeds"])
    key, goal = task.goal
    rows = [("model", "parameters", *columns, goal, "seeds that reach it")]
    for name, figures in results["models"].items():
        reached = [steps for steps in figures[key] if steps is not None]
        scores = [launcher.mean_and_spread(figures[column]) for column in columns.values()]
        mean = f"{np.mean(reached):.0f}" if reached else "-"
        rows.append((name, f"{figures['parameters']:,}", *scores, mean, f"{len(reached)} of {seeds}"))
    launcher.print_table(rows)
    print(f"{task.legend} at the end, mean ± standard deviation; {goal}, mean of the seeds that reach it.")
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {ACCURACY_PLOT}, MODEL/seed_N/tensorboard")
