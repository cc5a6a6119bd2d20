"""Measures speed, memory and gradients of training. The first argument says what:

    python -m experiments.benchmark mixers --workdir=runs/mixers
    python -m experiments.benchmark scaling --workdir=runs/scaling --models=hope
    python -m experiments.benchmark compile --workdir=runs/compile
    python -m experiments.benchmark gradients --workdir=runs/gradients --models=hope,titans

mixers   a training step (forward, backward, AdamW) and the forward pass alone: tokens/s, FLOPs, memory
scaling  time and memory of a training step, and the model's state, against sequence length, with fitted exponents
compile  time to trace and compile a training step, and until the first one is done, by number of layers
gradients  norm of the loss' gradient at the memories' initial weights against sequence length, on text of the default
         corpus, before training

Speeds of mixers are also given as ratios to two Transformers: ours, whose attention works in blocks, and jax_attention,
the same program with `jax.nn.dot_product_attention`, which holds all scores at once.

All models have the same embedding and one feed-forward block of the same size a layer, in float32, and train on random
tokens on one device. Models are measured in turn, round by round, so that ratios come from the same minutes; times are
medians over the rounds. FLOPs are those of matrix products, by the program, recomputation included; their peak is that
of the fastest product of two large matrices in the same rounds. Memory is what XLA allots to a step: arguments, outputs
and temporaries.

Into the workdir go config.json, results.json and a figure. The same command goes on where a stopped run was, and prints
the tables again when all is done; to measure again, take another workdir.
"""

import functools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from flax import nnx
from matplotlib.figure import Figure

from experiments import launcher
from experiments.competitors import COMPETITORS
from experiments.path_flags import define_path
from experiments.programs import Program, Sizes, Timing, Training, interleave, matrix_product, one_line, our_program
from experiments.record import Record
from nl_jax import InputError
from nl_jax.data import Packed, evaluation_batches, load_text_data
from nl_jax.models import MODEL_NAMES, LanguageModel, LanguageModelConfig, count_parameters, named_config
from nl_jax.training import use_cpu_cores
from nl_jax.training.metrics import save_figure
from nl_jax.training.step import mean_loss

NAME = "benchmark"
BASELINES = ("transformer", "jax_attention")  # the models that ratios are to, where they are measured
VOCAB_SIZE = 257
LENGTHS = {
    "mixers": ["1024:4", "8192:1"],
    "scaling": [f"{1024 * 2**i}:1" for i in range(6)],
    "compile": ["1024:4"],
    "gradients": [f"{64 * 2**i}:1" for i in range(7)],
}
# What scaling shows: key of the figures, title, unit.
QUANTITIES = {
    "step_seconds": ("seconds a step", 1),
    "peak_memory_bytes": ("MiB of memory", 2**20),
    "state_bytes": ("KiB of state", 2**10),
}
Figures = dict[str, Any]


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    lengths = "; ".join(f"{subject} {','.join(pairs)}" for subject, pairs in LENGTHS.items())
    define(define_path, "workdir", None, "Directory of the run; made if need be. Required.")
    define(flags.DEFINE_list, "models", list(MODEL_NAMES), "Models to measure.")
    define(flags.DEFINE_list, "competitors", list(COMPETITORS), "Others' programs, for mixers.")
    define(flags.DEFINE_list, "lengths", None, f"Sequence lengths and batch sizes. Without it {lengths}.")
    define(flags.DEFINE_integer, "width", 256, "Width of the models; a feed-forward block has twice as many units.")
    define(flags.DEFINE_integer, "num_heads", 4, "Heads of the mixers.")
    define(flags.DEFINE_integer, "num_layers", 2, "Layers, for mixers and scaling.")
    define(flags.DEFINE_list, "depths", ["2", "12"], "Numbers of layers, for compile.")
    define(flags.DEFINE_integer, "chunk_size", 64, "Tokens in a chunk of the memories.")
    define(flags.DEFINE_integer, "repeats", 5, "Rounds after one to warm up; compile measures once.")
    define(flags.DEFINE_float, "max_seconds", 60.0, "What takes longer to warm up is not repeated: that time counts.")
    define(flags.DEFINE_float, "memory_gib", None, "A step that needs more is not run. Without it 3/4 of the memory.")
    define(flags.DEFINE_integer, "matrix_size", 4096, "Rows of the square matrices whose product gives the peak.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run_subject(benchmark, SUBJECTS, define_flags(), __doc__, argv)


def benchmark(subject: str, values: flags.FlagValues) -> None:
    """Measures what is not yet measured, and prints the tables."""
    run = Run(subject, values)
    SUBJECTS[subject](run)
    run.record.report()


class Run:
    """What a subject gets: the flags, checked, and figures that are written as soon as they are measured.

    Attributes:
        values: the flags.
        workdir: where results go.
        record: the figures.
        lengths: sequence lengths in tokens, and their batch sizes.
        depths: numbers of layers.
        memory_limit: bytes that a step may need.
    """

    def __init__(self, subject: str, values: flags.FlagValues):
        self.values = values
        self.workdir = launcher.own_workdir(values)
        for name in ("width", "num_heads", "num_layers", "chunk_size", "repeats"):
            launcher.check_range(values, name, 1)
        launcher.check_range(values, "matrix_size", 1, 2**14)
        launcher.check_range(values, "max_seconds", 0)
        if values.memory_gib is not None:
            launcher.check_range(values, "memory_gib", 0)
        launcher.check_names("models", values.models, MODEL_NAMES, required=True)
        launcher.check_names("competitors", values.competitors, COMPETITORS)
        self.lengths = _parse_lengths(values.lengths or LENGTHS[subject])
        self.depths = _parse_depths(values.depths)
        use_cpu_cores()
        self.memory_limit = _device_memory() * 0.75 if values.memory_gib is None else values.memory_gib * 2**30

        configs = {name: self.config(name, max(self.lengths)[0], values.num_layers) for name in values.models}
        for name, config in configs.items():
            try:
                count_parameters(config)
            except ValueError as error:
                raise InputError(f"model {name!r} cannot be built: {error}") from error
        given = {"subject": subject, **values.flag_values_dict()}
        del given["workdir"]
        about = {"flags": given, "models": {name: config.to_json() for name, config in configs.items()}}
        self.record = Record(
            self.workdir,
            {"launcher": NAME, "data": {"tokens": "random"}, **about},
            {"versions": launcher.versions() | _competitor_versions()},
            written=(f"{subject}.png",),
        )
        self.figures = self.record.figures

    def config(self, model: str, length: int, num_layers: int) -> LanguageModelConfig:
        """Configuration of a model, the same for all but for the mixer."""
        values = self.values
        return named_config(
            model,
            "tiny",
            vocab_size=VOCAB_SIZE,
            width=values.width,
            num_heads=values.num_heads,
            num_layers=num_layers,
            mlp_hidden=2 * values.width,
            cms_periods=(1,),
            chunk_size=values.chunk_size,
            context_length=length,
        )


def mixers(run: Run) -> None:
    """Training step and forward pass of all models and competitors."""
    competitors = run.values.competitors
    measured = {
        (length, size): run.figures(
            f"{length}:{size}", functools.partial(measure, run, length, size, competitors=competitors, whole=True)
        )
        for length, size in run.lengths
    }
    figure = Figure(figsize=(6 * len(measured), 2 + 0.3 * len(run.values.models)), layout="constrained")
    panels = figure.subplots(ncols=len(measured), squeeze=False)[0]
    for axes, ((length, size), figures) in zip(panels, measured.items(), strict=True):
        title, models = f"{length:,} tokens, batch {size}", figures["models"]
        print(f"{title}; peak of matrix products {figures['peak_gflops']:,.1f} GFLOP/s")
        launcher.print_table(list(_mixer_rows(models, figures["peak_gflops"])))
        _print_problems(models)
        print()
        speeds = {name: row["tokens_per_second"] for name, row in models.items() if "parameters" in row}
        bars = axes.barh(list(speeds), list(speeds.values()))
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set(title=title, xlabel="training tokens/s")
    save_figure(figure, run.workdir / "mixers.png")


def _mixer_rows(models: Mapping[str, Figures], peak_gflops: float) -> Iterator[tuple[str, ...]]:
    """The header, then a row for each model."""
    speeds = {name: row["tokens_per_second"] for name, row in models.items() if "tokens_per_second" in row}
    baselines = [name for name in BASELINES if name in speeds]
    yield (
        "model",
        "parameters",
        "tokens/s",
        *(f"x {name}" for name in baselines),
        "step s",
        "forward s",
        "backward/forward",
        "MFLOP/token",
        "GFLOP/s",
        "of peak",
        "MiB",
    )
    for name, row in models.items():
        if "parameters" in row:
            step, forward, gflops = row["step_seconds"], row["forward_seconds"], row["gflops"]
            yield (
                name,
                _cell(row["parameters"], ","),
                _cell(speeds[name], ",.0f"),
                *(_cell(speeds[name] / speeds[baseline], ".2f") for baseline in baselines),
                _cell(step, ".3f"),
                _cell(forward, ".3f"),
                _cell(forward and (step - forward) / forward, ".2f"),
                _cell(row["matrix_flops_per_token"], ",.2f", 1e6),
                _cell(gflops, ",.1f"),
                _cell(gflops and gflops / peak_gflops, ".0%"),
                _cell(row["peak_memory_bytes"], ",.0f", 2**20),
            )


def scaling(run: Run) -> None:
    """Training step and state against sequence length."""
    size = run.lengths[0][1]
    if len(run.lengths) < 2 or any(batch_size != size for _, batch_size in run.lengths):
        raise InputError(f"--lengths={','.join(run.values.lengths)}: expected two or more lengths at one batch size")
    measured = {
        length: run.figures(f"{length}:{size}", functools.partial(measure, run, length, size, whole=False))
        for length, _ in run.lengths
    }
    exponents: dict[str, Figures] = {}
    figure = Figure(figsize=(5 * len(QUANTITIES), 5), layout="constrained")
    for axes, (key, (title, unit)) in zip(figure.subplots(ncols=len(QUANTITIES)), QUANTITIES.items(), strict=True):
        exponents[key] = {}
        rows = [(title, *(f"{length:,}" for length in measured), "exponent")]
        for name in run.values.models:
            models = {length: figures["models"][name] for length, figures in measured.items()}
            curve = {length: row[key] / unit for length, row in models.items() if key in row}
            exponents[key][name] = slope = exponent(curve)
            rows.append((name, *(_cell(curve.get(length), ",.4g") for length in measured), _cell(slope, ".3f")))
            axes.loglog(list(curve), list(curve.values()), marker="o", label=f"{name} ({_cell(slope, '.2f')})")
        axes.set_xticks(list(measured), [f"{length:,}" for length in measured])
        axes.minorticks_off()
        axes.set(xlabel=f"tokens, batch {size}", ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend(title="exponent")
        launcher.print_table(rows)
        print()
    for length, figures in measured.items():
        _print_problems(figures["models"], f" at {length:,} tokens")
    run.record.keep("exponents", exponents)
    save_figure(figure, run.workdir / "scaling.png")


def compile_times(run: Run) -> None:
    """Time to compile a training step at several depths, and to have run the first one."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    if cache:
        raise InputError(f"compilation cache {cache!r} is set; expected none")
    length, size = run.lengths[0]
    rows = [("model", "layers", "compile s", "first step s")]
    models = {}
    for num_layers in run.depths:
        for name in run.values.models:
            title, config = f"{name}, {num_layers} layers", run.config(name, length, num_layers)
            time_it = functools.partial(compile_time, title, config, size, length, run.memory_limit)
            models[title] = figures = run.figures(title, time_it)
            if "problem" not in figures:
                seconds = (figures["compile_seconds"], figures["first_step_seconds"])
                rows.append((name, str(num_layers), *(f"{value:.2f}" for value in seconds)))
    launcher.print_table(rows)
    _print_problems(models)


def gradients(run: Run) -> None:
    """Norm of the meta-gradient against sequence length."""
    text = load_text_data().validation
    measured = {
        length: run.figures(f"{length}:{size}", functools.partial(gradient_norms, run, length, size, text))
        for length, size in run.lengths
    }
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    rows = [("gradient's norm", *(f"{length:,}" for length in measured))]
    for name in run.values.models:
        curve = {length: norms[name] for length, norms in measured.items() if name in norms}
        rows.append((name, *(_cell(curve.get(length), ".3g") for length in measured)))
        axes.loglog(list(curve), list(curve.values()), marker="o", label=name)
    axes.set_xticks(list(measured), [f"{length:,}" for length in measured])
    axes.minorticks_off()
    axes.set(xlabel="tokens", ylabel="norm of the gradient at the memories' initial weights")
    axes.grid(alpha=0.3)
    axes.legend()
    launcher.print_table(rows)
    save_figure(figure, run.workdir / "gradients.png")


def gradient_norms(run: Run, length: int, batch_size: int, text: Packed) -> Figures:
    """Mean norm over the rounds' texts, for every model that has memories to learn the start of."""
    batches = evaluation_batches(text, batch_size=batch_size, seq_len=length, max_tokens=run.values.repeats * length)
    norms = {}
    for name in run.values.models:
        _progress(f"{length}:{batch_size} gradient of {name}")
        model = LanguageModel(run.config(name, length, run.values.num_layers), rngs=nnx.Rngs(0))
        if getattr(model.blocks.mixer, "memories", None) is None:
            continue
        gradient = jax.jit(jax.grad(mean_loss))
        found = [optax.tree.norm(gradient(model, batch).blocks.mixer.memories) for batch in batches.batches]
        norms[name] = statistics.fmean(float(norm) for norm in found)
    return norms


# A subject measures by `Run.figures`, prints its tables, and draws a figure into the workdir.
SUBJECTS: dict[str, Callable[[Run], None]] = {
    "mixers": mixers,
    "scaling": scaling,
    "compile": compile_times,
    "gradients": gradients,
}


def measure(run: Run, length: int, batch_size: int, *, competitors: Sequence[str] = (), whole: bool) -> Figures:
    """Builds and times all models at one length and batch size.

    Args:
        run: flags and memory limit.
        length: tokens in a sequence.
        batch_size: sequences.
        competitors: those of ``COMPETITORS`` to measure too.
        whole: with the forward pass alone, and FLOPs.

    Returns:
        ``peak_gflops``, and ``models``: for each what `figures_of` gives, or a ``problem`` where it was not built.
    """
    values = run.values
    shape = VOCAB_SIZE, values.width, values.num_heads, values.num_layers, 2 * values.width
    sizes = Sizes(*shape, batch_size, length, run.memory_limit)
    builders: dict[str, Callable[[], Program]] = {}
    for name in values.models:
        config = run.config(name, length, values.num_layers)
        limit = run.memory_limit
        builders[name] = functools.partial(our_program, config, batch_size, length, memory_limit=limit, whole=whole)
    for name in competitors:
        builders[name] = functools.partial(COMPETITORS[name], sizes)

    programs: dict[str, Program] = {}
    problems: dict[str, Figures] = {}
    for name, build in builders.items():
        _progress(f"{length}:{batch_size} building {name}")
        try:
            programs[name] = build()
        except Exception as error:  # whatever it is, the others go on
            problems[name] = {"problem": one_line(error)}
    calls = {("", "peak"): matrix_product(values.matrix_size)}
    for name, program in programs.items():
        calls[name, "step"] = program.step
        if program.forward:
            calls[name, "forward"] = program.forward
    _progress(f"{length}:{batch_size} measuring")
    timings = interleave(calls, values.repeats, values.max_seconds)
    peak = 2 * values.matrix_size**3 / min(timings["", "peak"].seconds)
    for name, program in programs.items():
        step, forward = timings[name, "step"], timings.get((name, "forward"), Timing([]))
        problems[name] = figures_of(program, step, forward, length * batch_size)
    return {"peak_gflops": peak / 1e9, "models": {name: problems[name] for name in builders}}


def figures_of(program: Program, step: Timing, forward: Timing, num_tokens: int) -> Figures:
    """Figures of one model, None where unknown, from its timings on ``num_tokens`` tokens.

    With a ``problem`` where there was one, and nothing else if no step came to its end.
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
    """Seconds to trace and compile a training step, with empty caches, and until it has run once."""
    _progress(f"compiling {title}")
    jax.clear_caches()
    start = time.perf_counter()
    try:
        training = Training(config, batch_size, length)
        compiled = time.perf_counter() - start
        training.check_memory(memory_limit)
        training.start()
        training.step()
    except Exception as error:  # whatever it is, the others go on
        return {"problem": one_line(error)}
    return {"compile_seconds": compiled, "first_step_seconds": time.perf_counter() - start}


def exponent(curve: Mapping[int, float]) -> float | None:
    """The p of the power law y = a·xᵖ that fits best, by least squares of logarithms; None without two points."""
    if len(curve) < 2:
        return None
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def _parse_lengths(pairs: Sequence[str]) -> list[tuple[int, int]]:
    if len(set(pairs)) < len(pairs) or not all(re.fullmatch("[1-9][0-9]{0,8}:[1-9][0-9]{0,8}", p) for p in pairs):
        raise InputError(f"--lengths={','.join(pairs)}: expected tokens:batch pairs, as 1024:4,8192:1, none twice")
    return [(int(length), int(batch_size)) for length, batch_size in (pair.split(":") for pair in pairs)]


def _parse_depths(depths: Sequence[str]) -> list[int]:
    if not depths or len(set(depths)) < len(depths) or not all(re.fullmatch("[1-9][0-9]{0,3}", d) for d in depths):
        raise InputError(f"--depths={','.join(depths)}: expected numbers of layers, as 2,12, none twice")
    return [int(depth) for depth in depths]


def _device_memory() -> int:
    """Bytes of the device's memory; of the machine's where the device does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _competitor_versions() -> dict[str, str]:
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {name: installed[name] for name in ("torch", "titans-pytorch", "nested-learning") if name in installed}


def _cell(value: float | None, spec: str, unit: float | None = None) -> str:
    if value is None:
        return "-"
    return format(value / unit if unit else value, spec)


def _print_problems(models: Mapping[str, Figures], where: str = "") -> None:
    for name, row in models.items():
        if "problem" in row:
            print(f"{name}{where}: {row['problem']}")


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
