"""Measures the value of learning in context: bits per byte against position in a long context, with controls.

    python -m experiments.context --workdir=runs/context
    python -m experiments.context --workdir=runs/no_dgd --models=hope --mixer_option=delta=False
    python -m experiments.context --workdir=runs/levels --models=hope --start_from=runs/context --seq_len=16384 \
        --cms_levels=64,512 --cms_regime=meta

Each model is trained anew for every seed, which decides the initial parameters and the order of the data. All models
have the same number of parameters (to 3 %), tokens and optimizer. The controls of Hope are the same model with memories
that never learn in context (hope_frozen), and a Transformer with the same convolution (transformer_conv). The test
split is not used.

With --start_from every run starts from the final parameters of the same model and seed of another run of this launcher.
In this way a continuum memory that learns in context can start from blocks that were trained without learning in
context (level stacking, §7.3 of the paper). Parameters that the other run's model lacks are initialised as usual.

The same command resumes a stopped run. The workdir gets config.json (the configuration), metrics.jsonl (every step),
context.png (bits per token against position: the mean over seeds, and a band from min to max), results.json (final
figures of each seed), and MODEL/seed_N/checkpoints and tensorboard.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.path_flags import define_path
from experiments.common.restoring import restore, shapes_of
from experiments.common.text_runs import (
    batches_of,
    check,
    configurations,
    fit_model,
    flags_with_seeds,
    run_config,
    summary_of,
    text_of,
)
from nl_jax import InputError
from nl_jax.evaluation import bits_by_position, octaves
from nl_jax.files import local_path
from nl_jax.models import LanguageModelConfig
from nl_jax.parallel.hosts import is_writer
from nl_jax.plotting import bits_per_byte_against_context, save_figure
from nl_jax.training.loop import CHECKPOINTS
from nl_jax.training.metrics import METRICS
from nl_jax.trees import named_leaves

NAME = "context"
PLOT = "context.png"
DEFAULTS = {
    "optimizer": "adamw",
    "models": "hope,hope_frozen,transformer_conv",
    "steps": 200,
    "batch_size": 1,
    "seq_len": 4096,
    "eval_every": 100,
    "checkpoint_every": 100,
}


def define_flags() -> flags.FlagValues:
    """The flags of the language model's launcher with other defaults, and --seeds in place of --seed."""
    values = flags_with_seeds("Runs of each model", DEFAULTS)
    define_path("start_from", None, "Workdir of a finished run whose parameters to start from.", flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(train, define_flags(), __doc__, argv)


def train(values: flags.FlagValues) -> None:
    """Trains all runs that are missing, prints the table and draws the plot. All checks come first."""
    workdir = launcher.own_workdir(values)
    launcher.check_range(values, "seeds", 1)
    mesh = check(values)
    data = text_of(values, workdir)
    configs = configurations(values, data)
    config = run_config(NAME, values, data, configs)
    batches = batches_of(values, data, mesh)
    starts = starts_of(values, configs, data.tokenizer.digest)
    if values.start_from is not None:
        config["data"] = {**data.fingerprint, "start_from": digest_of(starts, values)}
    metadata: dict[str, Any] = {"models": {name: {} for name in values.models}, "inputs": config["inputs"]}
    results = launcher.claim_workdir(workdir, config, metadata, written=(PLOT, *values.models))
    launcher.say(summary_of(values, data))

    for seed in range(values.seeds):  # seed by seed, so that even a run that is stopped early compares all models
        for name in values.models:
            seeds = results["models"][name].setdefault("seeds", [])
            if len(seeds) > seed:
                continue
            state, progress = fit_model(
                f"{name}/seed_{seed}", configs[name], batches, values, workdir, mesh, seed, starts(name, seed)
            )
            bits = bits_by_position(state.model, batches.validation, mesh)
            results["models"][name] |= {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.model)),
                "tokens": progress.tokens,
            }
            seeds.append(
                {
                    "validation_bits_per_byte": progress.validation_bits_per_byte,
                    "tokens_per_second": progress.tokens_per_second,
                    "bits_by_position": {str(end): bits_of for end, bits_of in octaves(bits)},
                }
            )
            launcher.write_json(workdir / RESULTS, results)
            if is_writer():
                plot(workdir, results)
    report(workdir, results)


def starts_of(
    values: flags.FlagValues, configs: dict[str, LanguageModelConfig], tokenizer: str
) -> Callable[[str, int], Any]:
    """A function from model name and seed to the model of --start_from, or to None without the flag.

    Raises:
        InputError: if --start_from has no model that fits.
    """
    if values.start_from is None:
        return lambda name, seed: None
    directory, flag = local_path(values.start_from), f"--start_from={values.start_from}"
    source = launcher.read_config(directory, NAME, written=(RESULTS, METRICS))
    done = (launcher.read_json(directory / RESULTS) or {"models": {}})["models"]
    for name, config in configs.items():
        if source is None or len(done.get(name, {}).get("seeds", [])) < values.seeds:
            raise InputError(
                f"{flag}: expected a run of this launcher that has finished {values.seeds} seeds of {name}"
            )
        if source["data"].get("tokenizer", tokenizer) != tokenizer:  # earlier versions did not record it
            what = f"a run with the tokenizer of --tokenizer={values.tokenizer}"
            raise InputError(f"{flag}: trained with another tokenizer; expected {what}")
        shapes = [named_leaves(shapes_of(c)) for c in (config, LanguageModelConfig.from_json(source["models"][name]))]
        for path in shapes[0].keys() & shapes[1].keys():
            here, there = (leaves[path].shape for leaves in shapes)
            if here != there:
                raise InputError(f"{flag}: {path} of {name} has the shape {there} there, expected {here}")

    def start(name: str, seed: int) -> Any:
        assert source is not None
        return restore(directory / name / f"seed_{seed}" / CHECKPOINTS, source["models"][name])

    return start


def digest_of(starts: Callable[[str, int], Any], values: flags.FlagValues) -> str:
    """The SHA-256 of all parameters from which runs start."""
    digest = hashlib.sha256()
    for name in values.models:
        for seed in range(values.seeds):
            for path, leaf in named_leaves(starts(name, seed)).items():
                digest.update(f"{name} {seed} {path} {leaf.shape} {leaf.dtype}".encode())
                digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def plot(workdir: Path, results: dict[str, Any]) -> None:
    """Draws bits per token against position."""
    complete = {name: figures["seeds"] for name, figures in results["models"].items() if figures.get("seeds")}
    curves = {
        name: np.array([[*seed["bits_by_position"].values()] for seed in seeds]) for name, seeds in complete.items()
    }
    if curves:
        ends = [int(end) for end in next(iter(complete.values()))[0]["bits_by_position"]]
        figure = bits_per_byte_against_context(curves, ends, unit="validation bits per token")
        save_figure(figure, workdir / PLOT)


def report(workdir: Path, results: dict[str, Any]) -> None:
    """Prints the table, and where the results are."""
    rows = [("model", "parameters", "tokens", "validation bits/byte", "last octave", "tokens/s")]
    for name, figures in results["models"].items():
        seeds = figures["seeds"]
        rows.append(
            (
                name,
                f"{figures['parameters']:,}",
                f"{figures['tokens']:,}",
                launcher.mean_and_spread([seed["validation_bits_per_byte"] for seed in seeds]),
                launcher.mean_and_spread([list(seed["bits_by_position"].values())[-1] for seed in seeds]),
                f"{np.mean([seed['tokens_per_second'] for seed in seeds]):,.0f}",
            )
        )
    launcher.print_table(rows)
    print("Mean ± standard deviation over the seeds; last octave: bits per token in the last part of the context.")
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {PLOT}, MODEL/seed_N/checkpoints")


if __name__ == "__main__":
    sys.exit(main())
