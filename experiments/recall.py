"""Multi-query associative recall: do a model's memories learn from the sequence they read?

    python -m experiments.recall --workdir=runs/recall
    python -m experiments.recall --workdir=runs/attention --models=transformer --seeds=1

Every sequence brings new pairs of key and value and asks for each value by its key, so that weights alone know only
which symbols are values. Each model is trained anew for every seed, which decides initial parameters and batches, until
two evaluations in a row reach 0.99, or to the last step. All models have the same width, depth and feed-forward size.

Attention learns it in a sudden jump whose moment differs by seed: with the defaults all three seeds reach 0.99, after
300 to 330 steps; with --steps=600, whose learning rate warms up and falls faster, 2 of 3, after 390 and 570.

The same command goes on after the last seed that was finished: one that was stopped in the middle is begun again (it
takes minutes). Into the workdir go config.json (what the run is), metrics.jsonl (every step), accuracy.png (validation
accuracy against steps), results.json (final figures), and MODEL/seed_N/tensorboard.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import nnx

from experiments import launcher
from nl_jax import InputError
from nl_jax.data import recall_batch
from nl_jax.models import MODEL_NAMES, LanguageModel, LanguageModelConfig, count_parameters, named_config
from nl_jax.training import (
    MetricsWriter,
    TrainState,
    accuracy,
    check_finite,
    compile_step,
    init_state,
    make_optimizer,
    parameter_shardings,
    parse_mesh,
    plot_accuracy,
    progress_bar,
)
from nl_jax.training.metrics import ACCURACY, ACCURACY_FIGURE, METRICS

NAME = "recall"
RESULTS = "results.json"
# Each learning model beside its control: the same memories that never learn, attention with and without a convolution.
DEFAULT_MODELS = [name for name in ("hope", "hope_frozen", "transformer", "transformer_conv") if name in MODEL_NAMES]
GOAL = 0.99  # accuracy
VALIDATION_SEED = 2**31 - 1  # no training seed
VALIDATION_SEQUENCES = 512  # at least


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(flags.DEFINE_string, "workdir", None, "Directory of the run; made if need be. Required.")
    define(flags.DEFINE_list, "models", ",".join(DEFAULT_MODELS), f"Models to train, of {', '.join(MODEL_NAMES)}.")
    define(flags.DEFINE_integer, "pairs", 4, "Pairs of key and value in a sequence.")
    define(flags.DEFINE_integer, "seq_len", 32, "Tokens in a sequence; at least four times the pairs.")
    define(flags.DEFINE_integer, "vocab_size", 64, "Symbols: half of them keys, half values.")
    define(flags.DEFINE_integer, "width", 64, "Width of the models; the feed-forward size is twice as much.")
    define(flags.DEFINE_integer, "num_heads", 2, "Heads of the mixers.")
    define(flags.DEFINE_integer, "num_layers", 2, "Blocks.")
    define(flags.DEFINE_integer, "chunk_size", 8, "Tokens between two boundaries of the memories (Hope).")
    define(flags.DEFINE_integer, "batch_size", 32, "Sequences in a batch.")
    define(flags.DEFINE_float, "learning_rate", 3e-3, "Peak learning rate of AdamW.")
    define(flags.DEFINE_integer, "steps", 1000, "Optimizer steps of each run at most; the cosine ends there.")
    define(flags.DEFINE_integer, "eval_every", 30, "Steps between evaluations.")
    define(flags.DEFINE_integer, "seeds", 3, "Runs of each model, with seeds 0, 1, ...")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(train, define_flags(), __doc__, argv)


def train(values: flags.FlagValues) -> None:
    """Trains what is not yet trained and prints the table. All checks come first, before anything is compiled."""
    workdir = launcher.workdir_of(values)
    configs = check(values)
    parameters = {name: _count_parameters(name, config) for name, config in configs.items()}
    count = -(-VALIDATION_SEQUENCES // values.batch_size)
    validation = [batch_of(values, VALIDATION_SEED, step) for step in range(count)]
    config: dict[str, Any] = {
        "launcher": NAME,
        "flags": {name: value for name, value in values.flag_values_dict().items() if name != "workdir"},
        "data": {"validation_seed": VALIDATION_SEED, "validation_sequences": VALIDATION_SEQUENCES},
        "models": {name: dataclasses.asdict(config) for name, config in configs.items()},
    }
    stored = launcher.read_config(workdir, NAME, written=(RESULTS, METRICS))
    if stored:
        for what in ("flags", "data", "models"):
            launcher.check_same(workdir, what, stored[what], config[what])
    else:
        launcher.write_json(workdir / launcher.CONFIG, config)

    results = launcher.read_json(workdir / RESULTS) or {
        "models": {},
        "configuration": {name: config[name] for name in ("flags", "data", "models")},
        "seeds": list(range(values.seeds)),
        "versions": launcher.versions(),
        "device": jax.devices()[0].device_kind,
    }
    for name in values.models:
        empty: dict[str, Any] = {"parameters": parameters[name], "accuracy": [], "steps_to_99": [], "steps": []}
        figures = results["models"].setdefault(name, empty)
        for outcome in train_model(name, configs[name], validation, values, workdir, done=len(figures["steps"])):
            for key, value in outcome._asdict().items():
                figures[key].append(value)
            plot_accuracy(workdir)
            launcher.write_json(workdir / RESULTS, results)
    report(workdir, results)


class Outcome(NamedTuple):
    """One run's final figures: accuracy, steps at the first evaluation that reached the goal, steps trained."""

    accuracy: float
    steps_to_99: int | None
    steps: int


def batch_of(values: flags.FlagValues, seed: int, step: int) -> dict[str, np.ndarray]:
    """The batch by the flags; `InputError` where their sizes do not fit."""
    sizes: dict[str, Any] = {name: values[name].value for name in ("batch_size", "seq_len", "vocab_size", "pairs")}
    return recall_batch(seed, step, **sizes)


def train_model(
    name: str,
    config: LanguageModelConfig,
    validation: list[dict[str, np.ndarray]],
    values: flags.FlagValues,
    workdir: Path,
    done: int,
) -> Iterator[Outcome]:
    """Trains one model for every seed but the first ``done``; compiles once for all of them."""
    if done == values.seeds:
        return
    mesh = parse_mesh(devices=jax.devices()[:1])  # the models are small
    optimizer = make_optimizer(learning_rate=values.learning_rate, steps=values.steps, cms_periods=config.cms_periods)

    def make(key: jax.Array) -> TrainState:
        return init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(key)), optimizer)

    like = jax.eval_shape(make, jax.random.key(0))
    init = jax.jit(make, out_shardings=parameter_shardings(mesh, like))
    take_step = compile_step(optimizer, mesh, like, validation[0])
    score = functools.partial(accuracy, batches=validation, mesh=mesh)
    for seed in range(done, values.seeds):
        yield train_seed(name, seed, init(jax.random.key(seed)), take_step, score, values, workdir)


def train_seed(
    name: str,
    seed: int,
    state: TrainState,
    take_step: jax.stages.Compiled,
    score: Callable[[Any], float],
    values: flags.FlagValues,
    workdir: Path,
) -> Outcome:
    """Trains from the initial state until two evaluations in a row reach the goal, or to the last step."""
    run = f"{name}/seed_{seed}"
    scores: list[float] = []
    steps_to_goal: int | None = None
    seconds = 0.0  # in steps alone
    with MetricsWriter(workdir, run) as metrics, progress_bar(run, values.steps) as bar:
        for step in range(1, values.steps + 1):
            batch = batch_of(values, seed, step)
            started = time.perf_counter()
            state, outputs = take_step(state, batch)
            row = {key: float(value) for key, value in outputs.items()}  # waits for the device
            seconds += time.perf_counter() - started
            if step == values.steps or step % values.eval_every == 0:
                scores.append(score(state.model))
                row[ACCURACY] = scores[-1]
                if scores[-1] >= GOAL and steps_to_goal is None:
                    steps_to_goal = step
            check_finite(run, step, row)
            tokens = step * batch["inputs"].size
            metrics.write(step, tokens, row)
            last = f"accuracy {scores[-1]:.3f}, " if scores else ""
            bar.set_postfix_str(f"loss {row['loss']:.3f}, {last}{tokens / seconds:,.0f} tokens/s", refresh=False)
            bar.update()
            if len(scores) >= 2 and min(scores[-2:]) >= GOAL:
                break
    return Outcome(scores[-1], steps_to_goal, step)


def check(values: flags.FlagValues) -> dict[str, LanguageModelConfig]:
    """Checks the flags that the batches do not check, and makes the models' configurations."""
    for name in ("width", "num_heads", "num_layers", "chunk_size", "batch_size", "steps", "eval_every", "seeds"):
        launcher.check_range(values, name, 1)
    launcher.check_range(values, "learning_rate", 1e-12, 1e3)
    launcher.check_models(values)
    sizes = {name: values[name].value for name in ("vocab_size", "width", "num_heads", "num_layers", "chunk_size")}
    sizes |= {"mlp_hidden": 2 * values.width, "context_length": values.seq_len}
    return {name: named_config(name, "tiny", **sizes) for name in values.models}


def _count_parameters(name: str, config: LanguageModelConfig) -> int:
    try:
        return count_parameters(config)
    except ValueError as error:  # sizes that the model's modules refuse
        raise InputError(f"--models={name}: {error}") from error


def report(workdir: Path, results: dict[str, Any]) -> None:
    """Prints the table of all models, and where everything is."""
    seeds = len(results["seeds"])
    rows = [("model", "parameters", "accuracy", "steps to 0.99", "seeds that reach it")]
    for name, figures in results["models"].items():
        reached = [steps for steps in figures["steps_to_99"] if steps is not None]
        score = f"{np.mean(figures['accuracy']):.3f}"
        if seeds > 1:
            score += f" ± {np.std(figures['accuracy'], ddof=1):.3f}"
        mean = f"{np.mean(reached):.0f}" if reached else "-"
        rows.append((name, f"{figures['parameters']:,}", score, mean, f"{len(reached)} of {seeds}"))
    launcher.print_table(rows)
    print("Accuracy at the end, mean ± standard deviation; steps to 0.99, mean of the seeds that reach it.")
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {ACCURACY_FIGURE}, MODEL/seed_N/tensorboard")


if __name__ == "__main__":
    sys.exit(main())
