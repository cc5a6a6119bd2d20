"""Trains language models on text, each in turn with the same data, order and budget, and compares them.

    python -m experiments.language_model --workdir=runs/first
    python -m experiments.language_model --workdir=runs/mine --data=~/texts --models=hope,transformer --steps=2000

Several processes train together with --coordinator=HOST:PORT --num_processes=N --process_id=0 (to N - 1).

The same command resumes a stopped run, and prints the table of a finished run again. A run with --schedule=constant
can be given more --steps: it continues from its last step, and its figures so far are kept in results_STEPS.json. The
workdir gets config.json (the configuration), metrics.jsonl (every step), validation.png (bits per byte against tokens),
results.json (final figures), and for each model MODEL/checkpoints and MODEL/tensorboard.
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.text_runs import (
    Batches,
    baselines_of,
    batches_of,
    check,
    configurations,
    define_flags,
    fit_model,
    fixed_flags,
    run_config,
    schedule_of,
    summary_of,
    text_of,
)
from nl_jax.evaluation import evaluate
from nl_jax.models import LanguageModelConfig
from nl_jax.parallel.hosts import from_writer, is_writer
from nl_jax.training import plot_validation
from nl_jax.training.metrics import METRICS, PLOT

NAME = "language_model"


def main(argv: list[str] | None = None) -> int:
    return launcher.run(train, define_flags(), __doc__, argv)


def train(values: flags.FlagValues) -> None:
    """Trains the models that are not yet trained and prints the table. All checks come before any compilation."""
    workdir = launcher.own_workdir(values)
    mesh = check(values)
    given = fixed_flags(values)
    written = (PLOT, *values.models)
    stored = launcher.read_config(workdir, NAME, written=(RESULTS, METRICS, *written))
    if stored:
        launcher.check_flags(workdir, stored["flags"], given)
    data = text_of(values, workdir)
    configs = configurations(values, data)
    config = run_config(NAME, values, data, configs)
    if stored and launcher.same_flags(stored["flags"], given):
        launcher.check_workdir(workdir, config, written)
        results = from_writer(lambda: launcher.read_json(workdir / RESULTS) or {"models": {}})
        if set(results["models"]) == set(values.models):
            return report(workdir, results)
    batches = batches_of(values, data, mesh)
    results = launcher.claim_workdir(workdir, config, {}, written)
    finished = results.setdefault("models", {})
    launcher.say(summary_of(values, data))

    results |= {
        "baselines": from_writer(lambda: baselines_of(data)),
        "configuration": {name: config[name] for name in launcher.COMPARED},
        "data": data.fingerprint,
        "inputs": config["inputs"],
        "seed": values.seed,
        "versions": launcher.versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    schedules = results.setdefault("schedules", {})
    for name in values.models:
        if name not in finished:
            schedules[name] = schedule_of(configs[name], values)
            launcher.say(f"{name}:\n{schedules[name]}")
            finished[name] = train_model(name, configs[name], batches, values, workdir, mesh)
            if is_writer():
                plot_validation(workdir, results["baselines"])
            launcher.write_json(workdir / RESULTS, results)
    report(workdir, results)


def train_model(
    name: str,
    config: LanguageModelConfig,
    batches: Batches,
    values: flags.FlagValues,
    workdir: Path,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """Trains one model and returns its final figures."""
    state, progress = fit_model(name, config, batches, values, workdir, mesh, values.seed)
    launcher.say(f"{name}: scoring the test split")
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        "tokens": progress.tokens,
        "validation_bits_per_byte": progress.validation_bits_per_byte,
        "test_bits_per_byte": evaluate(state.model, batches.test, mesh),
        "tokens_per_second": progress.tokens_per_second,
        "peak_memory_bytes": progress.peak_memory_bytes,
        "skipped": progress.skipped,
    }


def report(workdir: Path, results: dict[str, Any]) -> None:
    """Prints the table of all models and baselines, and where everything is."""
    rows = [("model", "parameters", "tokens", "validation", "test", "tokens/s", "peak memory")]
    rows.append(("", "", "", "bits/byte", "bits/byte", "", "a device"))
    for name, figures in results["models"].items():
        rows.append(
            (
                name,
                f"{figures['parameters']:,}",
                f"{figures['tokens']:,}",
                f"{figures['validation_bits_per_byte']:.4f}",
                f"{figures['test_bits_per_byte']:.4f}",
                f"{figures['tokens_per_second']:,.0f}",
                f"{figures['peak_memory_bytes'] / 2**20:,.0f} MiB",
            )
        )
    rows += [(name, "", "", "", f"{value:.4f}", "", "") for name, value in results["baselines"].items()]
    launcher.print_table(rows)
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {PLOT}, MODEL/checkpoints, MODEL/tensorboard")


if __name__ == "__main__":
    sys.exit(main())
