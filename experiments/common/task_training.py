"""What launchers of tasks share: each model trained anew for every seed until a goal, finished seeds kept, a table.

A launcher has flags by `define_flags`, a `Task` that says what is its own, and `train` for the rest.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.mixer_options import configuration, define_mixer_option
from experiments.common.optimizer_flags import define_optimizer_flags, optimizer_arguments, set_default_rates
from experiments.common.path_flags import define_path
from nl_jax.models import MODEL_NAMES, LanguageModel, LanguageModelConfig, count_parameters
from nl_jax.parallel import parameter_shardings, parse_mesh
from nl_jax.training import (
    MetricsWriter,
    TrainState,
    compile_step,
    finite_outputs,
    init_state,
    make_optimizer,
    plot_accuracy,
    progress_bar,
)
from nl_jax.training.loop import check_finite
from nl_jax.training.metrics import ACCURACY_FIGURE, METRICS

VALIDATION_SEED = 2**31 - 1  # no training seed
STEPS = "steps"  # trained, in results.json; each finished seed has one

Batch = dict[str, np.ndarray]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is a launcher's own.

    Attributes:
        name: of the launcher.
        data: what config.json says about the validation data, beside the flags.
        sizes: by the flags, the models' ``vocab_size`` and ``context_length``.
        batch: by the flags, the training batch of a seed and a step.
        validation: by the flags, what ``score`` takes; it or ``sizes`` raises `InputError` where flags do not fit.
        score: figures of a model on it, by name, ``accuracy`` among them; on a mesh.
        solved: whether these figures reach the goal.
        outcome: what results.json keeps of a seed, from the figures of each of its evaluations.
        finish: more figures that results.json keeps, of the flags, the trained model and its mesh.
        goal: the steps at the first evaluation that reached the goal: their key in results.json, their name in words.
        columns: of the table, by the flags: key in results.json by heading.
        legend: what these columns are, in words.
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
    """The flags, not yet parsed.

    Args:
        models: trained by default.
        sizes: the task's own flags, integers: default and help by name.
        steps, eval_every: defaults.
    """
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(define_path, "workdir", None, "Directory of the run; made if need be. Required.")
    define(flags.DEFINE_list, "models", ",".join(models), f"Models to train, of {', '.join(MODEL_NAMES)}.")
    for name, (default, text) in sizes.items():
        define(flags.DEFINE_integer, name, default, text)
    define(flags.DEFINE_integer, "width", 64, "Width of the models; the feed-forward size is twice as much.")
    define(flags.DEFINE_integer, "num_heads", 2, "Heads of the mixers.")
    define(flags.DEFINE_integer, "num_layers", 2, "Blocks.")
    define(flags.DEFINE_integer, "chunk_size", 8, "Tokens between two boundaries of the memories (Hope).")
    define_mixer_option(values)
    define(flags.DEFINE_integer, "batch_size", 32, "Sequences in a batch.")
    define_optimizer_flags(values)
    define(flags.DEFINE_integer, "steps", steps, "Optimizer steps of each run at most; the cosine ends there.")
    define(flags.DEFINE_integer, "eval_every", eval_every, "Steps between evaluations.")
    define(flags.DEFINE_integer, "seeds", 3, "Runs of each model, with seeds 0, 1, ...")
    return values


def train(task: Task, values: flags.FlagValues) -> None:
    """Trains what is not yet trained and prints the table. All checks come first, before anything is compiled."""
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
    results = launcher.claim_workdir(workdir, config, metadata, written=(ACCURACY_FIGURE, *values.models))

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
    """Trains one model for every seed but the first ``done``; compiles once for all of them."""
    if done == values.seeds:
        return
    mesh = parse_mesh(devices=jax.devices()[:1])  # the models are small
    optimizer = make_optimizer(**optimizer_arguments(values), cms_periods=config.optimizer_periods)

    def make(key: jax.Array) -> TrainState:
        return init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(key)), optimizer)

    template = jax.eval_shape(make, jax.random.key(0))
    init = jax.jit(make, out_shardings=parameter_shardings(mesh, template))
    take_step = compile_step(optimizer, mesh, template, task.batch(values, 0, 1))

    def score(model: Any) -> Scores:
        return task.score(model, validation, mesh)

    for seed in range(done, values.seeds):
        state, outcome = train_seed(task, name, seed, init(jax.random.key(seed)), take_step, score, values, workdir)
        yield outcome | task.finish(values, state.model, mesh)


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
        The last state, and what results.json keeps: the task's figures, steps at the first evaluation that reached the
        goal, steps trained.
    """
    run = f"{name}/seed_{seed}"
    scores: list[Scores] = []
    steps_to_goal: int | None = None
    seconds = 0.0  # in steps alone
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
    """Checks the flags that the batches do not check, and makes the models' configurations."""
    for name in ("width", "num_heads", "num_layers", "chunk_size", "batch_size", "steps", "eval_every", "seeds"):
        launcher.check_range(values, name, 1)
    set_default_rates(values)
    launcher.check_names("models", values.models, MODEL_NAMES, required=True)
    sizes = {name: values[name].value for name in ("width", "num_heads", "num_layers", "chunk_size")}
    sizes |= {"mlp_hidden": 2 * values.width, **task.sizes(values)}
    return {name: configuration(values, name, "tiny", **sizes) for name in values.models}


def report(task: Task, workdir: Path, results: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Prints the table of all models, and where everything is."""
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
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {ACCURACY_FIGURE}, MODEL/seed_N/tensorboard")
