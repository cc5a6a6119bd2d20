"""The subject kernel: training steps of models by a kernel and by XLA's scan, one beside the other."""

import dataclasses
import time

from experiments.benchmarking.gpu import Row, key_of, measure_wave, model_row, print_remarks
from experiments.benchmarking.run import Figures, Run
from experiments.common import launcher
from nl_jax import InputError
from nl_jax.models import count_parameters
from nl_jax.parallel.kernels import INTERPRETED, platform


def kernel(run: Run) -> None:
    """Measures what is missing until the minutes are over, and prints the table of each length."""
    deadline = time.monotonic() + 60 * run.values.max_minutes
    # a CPU has no kernels, and interprets them: right, and slow
    own = "pallas" if platform() in ("tpu", "gpu") else INTERPRETED[0]
    choices = ("xla", own)
    waves = [  # both programs of a model in one wave, so that their minutes are the same
        [with_kernel(model_row(run, name, length, size), choice) for choice in choices]
        for length, size in run.lengths
        for name in run.values.models
    ]
    for wave in waves:
        measure_wave(run, wave, deadline)
    for length, size in run.lengths:
        print(f"{length:,} tokens, batch {size}; the kernel is {own}")
        found = {
            name: [run.record.get(key_of(f"{name} {choice}", length, size)) for choice in choices]
            for name in run.values.models
        }
        launcher.print_table(table(found))
        for name, figures in found.items():
            for choice, row in zip(choices, figures, strict=True):
                print_remarks(f"{name} {choice}", row)
        print()


def with_kernel(row: Row, choice: str) -> Row:
    """The program with another kernel, which is part of its title.

    Raises:
        InputError: the model has no kernel.
    """
    config = dataclasses.replace(row.config, kernel=choice)
    if choice != "xla":
        try:
            count_parameters(dataclasses.replace(config, kernel="pallas"))
        except InputError as error:
            raise InputError(f"--models={row.title}: {error}") from error
    return row._replace(title=f"{row.title} {choice}", config=config)


def table(found: dict[str, list[Figures | None]]) -> list[tuple[str, ...]]:
    """The header, and a row for each model of which both programs were measured."""
    rows: list[tuple[str, ...]] = [
        ("model", "parameters", "xla", "kernel", "x xla", "xla", "kernel", "xla", "kernel"),
        ("", "", "tokens/s", "tokens/s", "", "GiB", "GiB", "compile s", "compile s"),
    ]
    for name, figures in found.items():
        measured = [row for row in figures if row and "step_seconds" in row]
        if len(measured) < len(figures):
            continue
        plain, own = measured
        speeds, memory, seconds = (
            [row[key] for row in measured] for key in ("tokens_per_second", "peak_memory_bytes", "compile_seconds")
        )
        rows.append(
            (
                name,
                f"{plain['parameters']:,}",
                *(f"{speed:,.0f}" for speed in speeds),
                f"{own['tokens_per_second'] / plain['tokens_per_second']:.2f}",
                *(f"{size / 2**30:,.2f}" if size else "-" for size in memory),
                *(f"{second:.0f}" for second in seconds),
            )
        )
    return rows
