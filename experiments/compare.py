"""Compares language models on text, each at its best learning rate: the same grid for all, then three seeds.

    python -m experiments.compare --workdir=runs/compare
    python -m experiments.compare --workdir=runs/adamw --optimizer=adamw --models=hope,transformer --points=5

Every model tries the optimizer's learning rates times the same factors, each twice the one before, with a separate
seed. The best factor is the one with the lowest bits per byte on validation text. If it is at the edge of the grid, the
grid is extended until it is not. Then each model is trained with its best factor for every seed, which decides the
initial parameters and the order of the data, and is evaluated on the test text once, at the end of each run. All models
have the same number of parameters (to 3 %), tokens and schedule.

The same command resumes a stopped run. A run with --schedule=constant can be given more --steps: every seed goes on
from its last step with the factor that was chosen before, so the factors are not tried again. The workdir gets
config.json (the configuration), metrics.jsonl (every step), compare.png (validation bits per byte against tokens: the
mean over seeds, and a band from min to max), results.json (figures of each factor and seed), and
MODEL/seed_N/checkpoints and tensorboard.
"""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.common.grid import Grid, best_rate, rate_name
from experiments.common.launcher import RESULTS
from experiments.common.more_steps import kept_results
from experiments.common.text_runs import (
    baselines_of,
    batches_of,
    check,
    configurations,
    fit_model,
    flags_with_seeds,
    run_config,
    summary_of,
    text_of,
)
from nl_jax.evaluation import evaluate
from nl_jax.parallel.hosts import from_writer, is_writer
from nl_jax.plotting import GRAY, label_curves, new_figure, save_figure
from nl_jax.training import TrainingDiverged
from nl_jax.training.metrics import METRICS, VALIDATION
from nl_jax.training.plots import plot_seeds

NAME = "compare"
PLOT = "compare.png"
TUNING_SEED = 2**31 - 1  # never the seed of a final run
TUNED_AT = "tuned_at_steps"  # key in results.json of the --steps with which the factors were tried, if they were others


def define_flags() -> flags.FlagValues:
    """The flags of the language model's launcher, with --seeds in place of --seed, and the size of the grid."""
    values = flags_with_seeds("Final runs of each model", {"models": "hope,transformer,transformer_conv"})
    flags.DEFINE_integer("points", 3, "Factors that each model tries before its grid is extended.", flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(compare, define_flags(), __doc__, argv)


def compare(values: flags.FlagValues) -> None:
    """Makes all runs that are missing, prints the table and draws the plot. All checks come first."""
    workdir = launcher.own_workdir(values)
    launcher.check_range(values, "seeds", 1)
    launcher.check_range(values, "points", 2)
    mesh = check(values)
    data = text_of(values, workdir)
    configs = configurations(values, data)
    config = run_config(NAME, values, data, configs)
    batches = batches_of(values, data, mesh)
    metadata: dict[str, Any] = {
        "models": {name: {"tuning": {}, "seeds": []} for name in values.models},
        "inputs": config["inputs"],
    }
    results = launcher.claim_workdir(workdir, config, metadata, written=(PLOT, *values.models))
    keep_factors(results, from_writer(lambda: factors_before(workdir, values)))
    launcher.say(summary_of(values, data))
    if "baselines" not in results:
        results["baselines"] = from_writer(lambda: baselines_of(data))

    def fit(name: str, seed: int, run: str, factor: float) -> Any:
        return fit_model(f"{name}/{run}", configs[name], batches, values, workdir, mesh, seed, rate_factor=factor)

    for name in values.models:
        losses = results["models"][name]["tuning"]
        for factors in Grid(values.points).search(1.0, losses):
            for factor in factors:
                losses[rate_name(factor)] = _validation(functools.partial(fit, name, TUNING_SEED), factor)
                launcher.write_json(workdir / RESULTS, results)
    for seed in range(values.seeds):  # seed by seed, so that even a run that is stopped early compares all models
        for name in values.models:
            figures = results["models"][name]
            if len(figures["seeds"]) > seed:
                continue
            state, progress = fit(name, seed, f"seed_{seed}", best_rate(figures["tuning"]))
            figures["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state.model))
            figures["tokens"] = progress.tokens
            figures["seeds"].append(
                {
                    "validation_bits_per_byte": progress.validation_bits_per_byte,
                    "test_bits_per_byte": evaluate(state.model, batches.test, mesh),
                    "tokens_per_second": progress.tokens_per_second,
                }
            )
            launcher.write_json(workdir / RESULTS, results)
            if is_writer():
                plot(workdir, results)
    report(workdir, values, results)


def factors_before(workdir: Path, values: flags.FlagValues) -> dict[str, Any]:
    """The tuning of the run before it was given other steps, and these steps; empty if it had not tried all factors.

    Only a run that has tried all factors can have trained seeds, and their checkpoints hold what these factors made.
    """
    for path in kept_results(workdir):
        earlier = launcher.read_json(path) or {}
        tuning = {name: earlier.get("models", {}).get(name, {}).get("tuning", {}) for name in values.models}
        if all(next(Grid(values.points).search(1.0, losses), None) is None for losses in tuning.values()):
            return {"tuning": tuning, TUNED_AT: earlier.get(TUNED_AT, earlier["configuration"]["flags"]["steps"])}
    return {}


def keep_factors(results: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Puts the result of `factors_before` into the results of a run of which no seed has ended yet."""
    if before and not any(figures["seeds"] for figures in results["models"].values()):
        results[TUNED_AT] = before[TUNED_AT]
        for name, losses in before["tuning"].items():
            results["models"][name]["tuning"] = losses


def _validation(fit: Any, factor: float) -> float | None:
    """Bits per byte on validation text after training with the learning rates times a factor; None if it diverged."""
    try:
        _, progress = fit(f"factor_{factor:g}", factor)
    except TrainingDiverged as error:
        launcher.say(str(error))
        return None
    return progress.validation_bits_per_byte


def plot(workdir: Path, results: dict[str, Any]) -> None:
    """Draws validation bits per byte against tokens."""
    figure, axes = new_figure()
    plot_seeds(axes, workdir, VALIDATION, against="tokens")
    gzip = results["baselines"]["gzip -9"]
    axes.axhline(gzip, linestyle="--", color=GRAY, label="gzip -9 (test)")
    axes.set(xlabel="training tokens", ylabel="validation bits per byte")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    label_curves(axes)
    save_figure(figure, workdir / PLOT)


def report(workdir: Path, values: flags.FlagValues, results: dict[str, Any]) -> None:
    """Prints the table, and where the results are."""
    rows = [("model", "parameters", "tokens", "rates times", "tried", "validation", "test", "tokens/s")]
    for name, figures in results["models"].items():
        seeds = {key: [seed[key] for seed in figures["seeds"]] for key in figures["seeds"][0]}
        rows.append(
            (
                name,
                f"{figures['parameters']:,}",
                f"{figures['tokens']:,}",
                f"{best_rate(figures['tuning']):g}",
                str(len(figures["tuning"])),
                launcher.mean_and_spread(seeds["validation_bits_per_byte"]),
                launcher.mean_and_spread(seeds["test_bits_per_byte"]),
                f"{np.mean(seeds['tokens_per_second']):,.0f}",
            )
        )
    rows += [(name, "", "", "", "", "", f"{value:.3f}", "") for name, value in results["baselines"].items()]
    launcher.print_table(rows)
    rates = f"{values.learning_rate:g} and {values.matrix_learning_rate:g} (hidden matrices)"
    print(f"Bits per byte, mean ± standard deviation over the seeds; rates times 1 are {rates}, by {values.optimizer}.")
    if TUNED_AT in results:
        print(f"The rates were chosen at --steps={results[TUNED_AT]}, before this run was given {values.steps}.")
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {PLOT}, MODEL/seed_N/checkpoints")


if __name__ == "__main__":
    sys.exit(main())
