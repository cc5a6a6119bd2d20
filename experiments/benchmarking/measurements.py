"""Single measurements: time and memory of a training step, compile time, and the norm of gradients."""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import optax
from flax import nnx

from experiments.benchmarking.competitors import COMPETITORS
from experiments.benchmarking.run import Figures, Run
from experiments.benchmarking.timed_programs import (
    Program,
    Timing,
    Training,
    interleave,
    matrix_product,
    one_line,
    our_program,
    sizes_of,
)
from nl_jax.data import Packed, evaluation_batches
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.losses import mean_loss


def measure(run: Run, length: int, batch_size: int, *, competitors: Sequence[str] = (), whole: bool) -> Figures:
    """Builds and times all models at one length and batch size.

    Args:
        run: flags and memory limit.
        length: number of tokens in a sequence.
        batch_size: number of sequences.
        competitors: names in ``COMPETITORS`` of the competitors to measure too.
        whole: whether to measure also the forward pass alone, and FLOPs.

    Returns:
        ``peak_gflops``, and ``models``: for each model the result of `figures_of`, or a ``problem`` if it could not be
        built.
    """
    values = run.values
    sizes = sizes_of(run.config("transformer", length), batch_size, run.memory_limit)
    builders: dict[str, Callable[[], Program]] = {}
    for name in values.models:
        config = run.config(name, length)
        limit = run.memory_limit
        builders[name] = functools.partial(our_program, config, batch_size, length, memory_limit=limit, whole=whole)
    for name in competitors:
        builders[name] = functools.partial(COMPETITORS[name], sizes)

    programs: dict[str, Program] = {}
    problems: dict[str, Figures] = {}
    for name, build in builders.items():
        progress(f"{length}:{batch_size} building {name}")
        try:
            programs[name] = build()
        except Exception as error:  # any error concerns this model only
            problems[name] = {"problem": one_line(error)}
    calls = {("", "peak"): matrix_product(values.matrix_size)}
    for name, program in programs.items():
        calls[name, "step"] = program.step
        if program.forward:
            calls[name, "forward"] = program.forward
    progress(f"{length}:{batch_size} measuring")
    timings = interleave(calls, values.repeats, values.max_seconds)
    peak = 2 * values.matrix_size**3 / min(timings["", "peak"].seconds)
    for name, program in programs.items():
        step, forward = timings[name, "step"], timings.get((name, "forward"), Timing([]))
        problems[name] = figures_of(program, step, forward, length * batch_size)
    return {"peak_gflops": peak / 1e9, "models": {name: problems[name] for name in builders}}


def figures_of(program: Program, step: Timing, forward: Timing, num_tokens: int) -> Figures:
    """Figures of one model, None if unknown, from its timings on ``num_tokens`` tokens.

    They include a ``problem`` if there was one, and nothing else if no step was completed.
    """
    problem = step.problem or forward.problem
    figures: Figures = {"problem": problem} if problem else {}
    if not step.seconds:
        return figures
    seconds, flops = statistics.median(step.seconds), program.flops
    return figures | {
        "parameters": program.parameters,
        "tokens_per_second": num_tokens / seconds,
        "step_seconds": seconds,
        "all_step_seconds": step.seconds,
        "forward_seconds": statistics.median(forward.seconds) if forward.seconds else None,
        "matrix_flops_per_token": flops and flops.matrix / num_tokens,
        "elementwise_flops_per_token": flops and flops.elementwise / num_tokens,
        "gflops": flops and flops.matrix / seconds / 1e9,
        "peak_memory_bytes": program.peak_memory_bytes,
        "state_bytes": program.state_bytes,
    }


def compile_time(title: str, config: LanguageModelConfig, batch_size: int, length: int, memory_limit: float) -> Figures:
    """Seconds to trace and to compile a training step with empty caches, and until it has run once."""
    progress(f"compiling {title}")
    jax.clear_caches()
    start = time.perf_counter()
    try:
        training = Training(config, batch_size, length)
        compiled = time.perf_counter() - start
        training.check_memory(memory_limit)
        training.start()
        training.step()
    except Exception as error:  # any error concerns this model only
        return {"problem": one_line(error)}
    return {"compile_seconds": compiled, "first_step_seconds": time.perf_counter() - start}


def remat_figures(title: str, config: LanguageModelConfig, batch_size: int, length: int) -> Figures:
    """Temporaries of a training step, in bytes a device, and its operations; it is compiled and not run."""
    progress(f"compiling {title}")
    try:
        training = Training(config, batch_size, length)
    except Exception as error:  # any error concerns this model only
        return {"problem": one_line(error)}
    flops = training.flops()
    per_token = flops and flops.matrix / (batch_size * length)
    return {"temporary_bytes": training.temporary_bytes, "matrix_flops_per_token": per_token}


def gradient_norms(run: Run, length: int, batch_size: int, text: Packed) -> Figures:
    """Mean norm, over the texts of the rounds, of the gradient at the memories' initial weights, by model."""
    batches = evaluation_batches(text, batch_size=batch_size, seq_len=length, max_tokens=run.values.repeats * length)
    norms = {}
    for name in run.values.models:
        progress(f"{length}:{batch_size} gradient of {name}")
        model = LanguageModel(run.config(name, length), rngs=nnx.Rngs(0))
        if getattr(model.blocks.mixer, "memories", None) is None:
            continue
        gradient = jax.jit(jax.grad(mean_loss))
        found = [optax.tree.norm(gradient(model, batch).blocks.mixer.memories) for batch in batches.batches]
        norms[name] = statistics.fmean(float(norm) for norm in found)
    return norms


def exponent(curve: Mapping[int, float]) -> float | None:
    """The exponent p of the power law y = a·xᵖ, fitted by least squares of logarithms; None with less than 2 points."""
    if len(curve) < 2:
        return None
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def progress(text: str) -> None:
    """Prints to stderr what is being done."""
    print(text, file=sys.stderr, flush=True)
