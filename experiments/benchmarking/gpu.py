"""The subject gpu: whole training steps of a preset's models on one accelerator, in a budget of minutes.

Programs are measured in the order of their importance, in waves. Those of a wave that are in JAX are compiled at the
same time, since compiling takes most of the minutes, and then measured one after the other. What is not compiled in
time goes on compiling, since nothing can stop it: figures measured meanwhile say so, and the process ends without it.
"""

import dataclasses
import functools
import gc
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarking import compiling
from experiments.benchmarking.measurements import figures_of, progress
from experiments.benchmarking.run import Figures, Run
from experiments.benchmarking.timed_programs import Program, Timing, Training, interleave, one_line, sizes_of
from experiments.benchmarking.torch_models import device_memory, torch_transformer
from experiments.common import launcher
from nl_jax.costs import CHIPS, forward_flops
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.ops import blockwise_attention

PEAK = "matrix product"
PYTORCH: dict[str, dict[str, Any]] = {"torch_transformer": {}, "torch_transformer compiled": {"compiled": True}}
CHUNKED = ("hope", "delta_net")  # the models that are also measured with other chunk sizes
CHUNK_SIZES = (128, 256)
POLICIES = ("none", "dots", "block")  # of rematerialisation, the first whose step fits into memory is measured
CHIP_OF = {"H100": "h100", "H200": "h100"}  # words in a device's name; an H200 has the H100's arithmetic
SHARE_OF_WAIT = 0.7  # of the minutes that are left, in which a wave must have compiled
DISTURBED = "compiling_meanwhile"  # key of the number of programs that were compiling while one was measured


class OutOfTime(Exception):
    """A program has not been compiled in the time that its wave had."""


class Row(NamedTuple):
    """A program in JAX to measure.

    Attributes:
        title: its name among the figures of its length.
        config: of the model, without rematerialisation.
        batch_size: number of sequences.
        in_blocks: whether attention is in blocks also where there is a faster one.
    """

    title: str
    config: LanguageModelConfig
    batch_size: int
    in_blocks: bool = False

    @property
    def key(self) -> str:
        """Name of the row's figures."""
        return key_of(self.title, self.config.context_length, self.batch_size)


class Compiled(NamedTuple):
    """A program in JAX that has not been started, and how it came about."""

    training: Training
    remat: str
    seconds: float
    need: int


def gpu(run: Run) -> None:
    """Measures what is missing until the minutes are over, and prints the table of each length."""
    # PyTorch comes first: JAX takes most of a GPU's memory with its first operation, and keeps it
    deadline = time.monotonic() + 60 * run.values.max_minutes
    if "torch_transformer" in run.values.competitors:
        for title, options in PYTORCH.items():
            for length, size in run.lengths:
                measure_torch(run, title, length, size, deadline, **options)
    if run.record.get(PEAK) is None:
        run.record.keep(PEAK, matrix_peak(run.values.matrix_size))
    for wave in waves_of(run):
        measure_wave(run, wave, deadline)
    report(run)


def key_of(title: str, length: int, batch_size: int) -> str:
    """Name of the figures of a program at one length and batch size."""
    return f"{title} {length}:{batch_size}"


def waves_of(run: Run) -> list[list[Row]]:
    """The programs in JAX: all models at the first length; then those at other lengths, and `other_settings`."""
    at_lengths = [[model_row(run, name, *where) for name in run.values.models] for where in run.lengths]
    first, *later = at_lengths
    return [first, [row for rows in later for row in rows] + other_settings(first)]


def model_row(run: Run, name: str, length: int, batch_size: int) -> Row:
    """A model at one length and batch size."""
    config = run.config(name, length)
    return Row(name, dataclasses.replace(config, remat="none"), batch_size)


def other_settings(rows: list[Row]) -> list[Row]:
    """Some of the models with other chunk sizes, and the Transformer with attention in blocks."""
    base = {row.title: row for row in rows}
    others = []
    for chunk_size in CHUNK_SIZES:
        for name in CHUNKED:
            if name in base and base[name].config.chunk_size != chunk_size:
                config = dataclasses.replace(base[name].config, chunk_size=chunk_size)
                others.append(base[name]._replace(title=f"{name} chunk {chunk_size}", config=config))
    if "transformer" in base:
        others.append(base["transformer"]._replace(title="transformer in blocks", in_blocks=True))
    return others


def matrix_peak(size: int, repeats: int = 10) -> Figures:
    """Operations in a second of the product of two random bfloat16 matrices [size, size]."""
    progress(f"measuring the product of two matrices of {size} rows")
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready([product(left, right) for _ in range(3)])
    start = time.perf_counter()
    jax.block_until_ready([product(left, right) for _ in range(repeats)])
    seconds = (time.perf_counter() - start) / repeats
    return {"size": size, "flops_per_second": 2 * size**3 / seconds, "device": jax.devices()[0].device_kind}


def measure_torch(run: Run, title: str, length: int, batch_size: int, deadline: float, **options: Any) -> None:
    """Builds PyTorch's Transformer of the sizes of this project's, times it and frees its memory."""
    key = key_of(title, length, batch_size)
    if run.record.get(key) is not None or time.monotonic() > deadline:
        return
    progress(f"measuring {key}")
    config = run.config("transformer", length)
    start = time.perf_counter()
    try:
        with device_memory() as peak:
            program = torch_transformer(sizes_of(config, batch_size), **options)
            program.step()
            seconds = time.perf_counter() - start
            figures = timed(run, program, config, batch_size, length)
            del program
        figures["peak_memory_bytes"] = peak()
    except Exception as error:  # any error concerns this program only
        figures = {"problem": one_line(error)}
    else:
        figures["compile_seconds"] = seconds
    run.record.keep(key, figures)


def measure_wave(run: Run, rows: list[Row], deadline: float) -> None:
    """Compiles all programs of a wave at the same time, and measures each; what is not compiled in time is left."""
    left = deadline - time.monotonic()
    missing = [row for row in rows if run.record.get(row.key) is None]
    if not missing or left <= 0:
        return
    progress(f"compiling {', '.join(row.key for row in missing)}")
    end = time.monotonic() + SHARE_OF_WAIT * left
    futures = compiling.start(build, [(row, run.memory_limit, end) for row in missing])
    wait(futures, timeout=SHARE_OF_WAIT * left)
    while missing:
        row, future = missing.pop(0), futures.pop(0)  # nothing else holds a program that has been measured
        if not future.done() or isinstance(future.exception(), OutOfTime):
            progress(f"not compiled in time: {row.key}")
        elif time.monotonic() < deadline:
            progress(f"measuring {row.key}")
            others = compiling.under_way()
            figures = measure_row(run, row, future)
            run.record.keep(row.key, figures | ({DISTURBED: others} if others else {}))
            del future
            gc.collect()


def build(row: Row, memory_limit: float, end: float = math.inf) -> Compiled:
    """Compiles the training step with the first policy of rematerialisation whose step fits into memory.

    Raises:
        MemoryError: no policy's step fits.
        OutOfTime: the clock `time.monotonic` was past ``end`` before a policy was tried.
    """
    start = time.perf_counter()
    for policy in POLICIES:
        if time.monotonic() > end:
            raise OutOfTime
        config = dataclasses.replace(row.config, remat=policy)
        init = functools.partial(with_blocks, config) if row.in_blocks else None
        training = Training(config, row.batch_size, config.context_length, init)
        try:
            need = training.check_memory(memory_limit)
        except MemoryError:
            if policy == POLICIES[-1]:
                raise
        else:
            return Compiled(training, policy, time.perf_counter() - start, need)
    raise AssertionError("the last policy returns or raises")


def with_blocks(config: LanguageModelConfig) -> LanguageModel:
    """A model whose attention is in blocks on every device."""
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    mixer: Any = model.blocks.mixer
    mixer.attend = blockwise_attention
    return model


def measure_row(run: Run, row: Row, future: "Future[Compiled]") -> Figures:
    """Figures of a program that has been compiled, or its problem in one line."""
    try:
        compiled = future.result()
        training = compiled.training
        training.start()
        program = Program(training.parameters, training.step, None, None, compiled.need, training.state_bytes)
        figures = timed(run, program, row.config, row.batch_size, row.config.context_length)
    except Exception as error:  # any error concerns this program only
        return {"problem": one_line(error)}
    return figures | {"compile_seconds": compiled.seconds, "remat": compiled.remat}


def timed(run: Run, program: Program, config: LanguageModelConfig, batch_size: int, length: int) -> Figures:
    """Figures of a program from the median of its steps, with the model's operations in a second."""
    timing = interleave({"step": program.step}, run.values.repeats, run.values.max_seconds)["step"]
    figures = figures_of(program, timing, Timing([]), batch_size * length)
    if "step_seconds" in figures:
        flops = 3 * sum(forward_flops(config, batch_size, length).values())
        figures["model_flops_per_second"] = flops / figures["step_seconds"]
    return figures


def report(run: Run) -> None:
    """Prints a table for each length, and what has a problem or has not been measured."""
    peak = run.record.get(PEAK)
    nominal = next((CHIPS[chip].flops for word, chip in CHIP_OF.items() if word in peak["device"]), None)
    known = f", {nominal / 1e12:,.0f} TFLOP/s by its maker" if nominal else ""
    print(f"{peak['device']}: {peak['flops_per_second'] / 1e12:,.3g} TFLOP/s of bfloat16 matrix products{known}\n")
    first = run.lengths[0]
    torch_rows = tuple(PYTORCH) if "torch_transformer" in run.values.competitors else ()
    for length, size in run.lengths:
        titles = [*torch_rows, *run.values.models]
        if (length, size) == first:
            titles += [row.title for row in other_settings(waves_of(run)[0])]
        found = {title: run.record.get(key_of(title, length, size)) for title in titles}
        print(f"{length:,} tokens, batch {size}")
        launcher.print_table(table(found, peak["flops_per_second"], nominal))
        for title, figures in found.items():
            print_remarks(title, figures)
        print()


def print_remarks(title: str, figures: Figures | None) -> None:
    """Prints why a program has no figures, or what disturbed its measurement."""
    if figures is None or "problem" in figures:
        print(f"{title}: {figures['problem'] if figures else 'not measured: the minutes were over'}")
    elif DISTURBED in figures:
        print(f"{title}: measured while others ({figures[DISTURBED]}) were still compiling, so it may be faster alone")


def table(found: Mapping[str, Figures | None], peak: float, nominal: float | None) -> list[tuple[str, ...]]:
    """The header, and a row for each program that was measured."""
    measured = {title: row for title, row in found.items() if row and "step_seconds" in row}
    references = [title for title in PYTORCH if title in measured]
    shares = ("of nominal", "of measured")
    times = tuple(f"x {title}" for title in references)
    rows: list[tuple[str, ...]] = [
        ("model", "parameters", "tokens/s", *times, "step ms", "TFLOP/s", *shares, "GiB", "compile s", "remat")
    ]
    for title, row in measured.items():
        speed, flops, memory = row["tokens_per_second"], row["model_flops_per_second"], row["peak_memory_bytes"]
        rows.append(
            (
                title,
                f"{row['parameters']:,}",
                f"{speed:,.0f}",
                *(f"{speed / measured[reference]['tokens_per_second']:.2f}" for reference in references),
                f"{1e3 * row['step_seconds']:,.1f}",
                f"{flops / 1e12:,.3g}",
                f"{flops / nominal:.1%}" if nominal else "-",
                f"{flops / peak:.1%}",
                f"{memory / 2**30:,.2f}" if memory else "-",
                f"{row['compile_seconds']:.0f}",
                row.get("remat", "-"),
            )
        )
    return rows
