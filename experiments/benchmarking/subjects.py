"""The subjects of ``experiments.benchmark``. Each measures missing figures, prints its table and draws its plot."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from experiments.benchmarking.gpu import gpu
from experiments.benchmarking.kernel import kernel
from experiments.benchmarking.measurements import compile_time, exponent, gradient_norms, measure, remat_figures
from experiments.benchmarking.pretrained_speed import pretrained
from experiments.benchmarking.run import Figures, Run
from experiments.common import launcher
from nl_jax import InputError
from nl_jax.data import load_text_data
from nl_jax.models.remat import POLICIES
from nl_jax.plotting import COLORS, label_curves, new_figure, save_figure

REFERENCES = ("transformer", "jax_attention")  # models to which ratios are given, if they were measured
# The quantities of the subject scaling: key of the figures, title and unit.
QUANTITIES = {
    "step_seconds": ("seconds a step", 1),
    "peak_memory_bytes": ("MiB of memory", 2**20),
    "state_bytes": ("KiB of state", 2**10),
}


def mixers(run: Run) -> None:
    """Measures the training step and the forward pass of all models and competitors."""
    competitors = run.values.competitors
    measured = {
        (length, size): run.figures(
            f"{length}:{size}", functools.partial(measure, run, length, size, competitors=competitors, whole=True)
        )
        for length, size in run.lengths
    }
    height = 1.2 + 0.3 * len(run.values.models)
    figure, panels = new_figure(rows=len(measured), height=height * len(measured), squeeze=False)
    for axes, ((length, size), figures) in zip(panels[:, 0], measured.items(), strict=True):
        title, models = f"{length:,} tokens, batch {size}", figures["models"]
        print(f"{title}; peak of matrix products {figures['peak_gflops']:,.1f} GFLOP/s")
        launcher.print_table(list(_mixer_rows(models, figures["peak_gflops"])))
        _print_problems(models)
        print()
        speeds = {name: row["tokens_per_second"] for name, row in models.items() if "parameters" in row}
        bars = axes.barh(list(speeds), list(speeds.values()), color=COLORS[0])
        axes.grid(False, axis="y")
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set(title=title, xlabel="training tokens/s")
    save_figure(figure, run.workdir / "mixers.png")


def _mixer_rows(models: Mapping[str, Figures], peak_gflops: float) -> Iterator[tuple[str, ...]]:
    """Yields the header, then a row for each model."""
    speeds = {name: row["tokens_per_second"] for name, row in models.items() if "tokens_per_second" in row}
    references = [name for name in REFERENCES if name in speeds]
    yield (
        "model",
        "parameters",
        "tokens/s",
        *(f"x {name}" for name in references),
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
                *(_cell(speeds[name] / speeds[reference], ".2f") for reference in references),
                _cell(step, ".3f"),
                _cell(forward, ".3f"),
                _cell(forward and (step - forward) / forward, ".2f"),
                _cell(row["matrix_flops_per_token"], ",.2f", 1e6),
                _cell(gflops, ",.1f"),
                _cell(gflops and gflops / peak_gflops, ".0%"),
                _cell(row["peak_memory_bytes"], ",.0f", 2**20),
            )


def scaling(run: Run) -> None:
    """Measures the training step and the size of the state against sequence length."""
    size = run.lengths[0][1]
    if len(run.lengths) < 2 or any(batch_size != size for _, batch_size in run.lengths):
        raise InputError(f"--lengths={','.join(run.values.lengths)}: expected two or more lengths at one batch size")
    measured = {
        length: run.figures(f"{length}:{size}", functools.partial(measure, run, length, size, whole=False))
        for length, _ in run.lengths
    }
    exponents: dict[str, Figures] = {}
    figure, panels = new_figure(rows=len(QUANTITIES), height=3.8 * len(QUANTITIES))
    for axes, (key, (title, unit)) in zip(panels, QUANTITIES.items(), strict=True):
        exponents[key] = {}
        rows = [(title, *(f"{length:,}" for length in measured), "exponent")]
        for name in run.values.models:
            models = {length: figures["models"][name] for length, figures in measured.items()}
            curve = {length: row[key] / unit for length, row in models.items() if key in row}
            exponents[key][name] = slope = exponent(curve)
            rows.append((name, *(_cell(curve.get(length), ",.4g") for length in measured), _cell(slope, ".3f")))
            axes.loglog(list(curve), list(curve.values()), marker="o", label=f"{name} ({_cell(slope, '.2f')})")
        _label_lengths(axes, measured)
        axes.set(xlabel=f"tokens, batch {size}", ylabel=title)
        launcher.print_table(rows)
        print()
    for length, figures in measured.items():
        _print_problems(figures["models"], f" at {length:,} tokens")
    run.record.keep("exponents", exponents)
    save_figure(figure, run.workdir / "scaling.png")


def compile_times(run: Run) -> None:
    """Measures the time to compile a training step at several depths, and the time until the first one is done."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    if cache:
        raise InputError(f"JAX_COMPILATION_CACHE_DIR={cache}: expected none, since programs in it are not compiled")
    length, size = run.only_length()
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


def remat(run: Run) -> None:
    """Measures the memory that each rematerialisation policy needs, and the operations that it repeats."""
    length, size = run.only_length()
    rows = [("model", "remat", "MiB of temporaries", "MFLOP/token", "x none")]
    measured = {}
    for name in run.values.models:
        for policy in POLICIES:
            title = f"{name}, {policy}"
            config = dataclasses.replace(run.config(name, length), remat=policy)
            measured[title] = figures = run.figures(
                title, functools.partial(remat_figures, title, config, size, length)
            )
            if "problem" not in figures:
                flops, base = (measured[f"{name}, {p}"].get("matrix_flops_per_token") for p in (policy, "none"))
                share = flops / base if flops and base else None
                memory = _cell(figures["temporary_bytes"], ",.0f", 2**20)
                rows.append((name, policy, memory, _cell(flops, ",.2f", 1e6), _cell(share, ".2f")))
    launcher.print_table(rows)
    _print_problems(measured)


def gradients(run: Run) -> None:
    """Measures the norm of the meta-gradient against sequence length."""
    text = load_text_data().validation
    measured = {
        length: run.figures(f"{length}:{size}", functools.partial(gradient_norms, run, length, size, text))
        for length, size in run.lengths
    }
    figure, axes = new_figure()
    rows = [("gradient's norm", *(f"{length:,}" for length in measured))]
    for name in run.values.models:
        curve = {length: norms[name] for length, norms in measured.items() if name in norms}
        rows.append((name, *(_cell(curve.get(length), ".3g") for length in measured)))
        axes.loglog(list(curve), list(curve.values()), marker="o", label=name)
    _label_lengths(axes, measured)
    axes.set(xlabel="tokens", ylabel="gradient of the initial memories (norm)")
    launcher.print_table(rows)
    save_figure(figure, run.workdir / "gradients.png")


def _label_lengths(axes: Axes, lengths: Collection[int]) -> None:
    """Labels curves over lengths of texts, and logarithmic axes of which one may have less than a power of ten."""
    axes.set_xticks(list(lengths), [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    label_curves(axes)


def _cell(value: float | None, spec: str, unit: float | None = None) -> str:
    if value is None:
        return "-"
    return format(value / unit if unit else value, spec)


def _print_problems(models: Mapping[str, Figures], where: str = "") -> None:
    for name, row in models.items():
        if "problem" in row:
            print(f"{name}{where}: {row['problem']}")


# A subject measures through `Run.figures`, prints its tables, and draws a plot into the workdir.
SUBJECTS: dict[str, Callable[[Run], None]] = {
    "mixers": mixers,
    "scaling": scaling,
    "compile": compile_times,
    "remat": remat,
    "gradients": gradients,
    "gpu": gpu,
    "kernel": kernel,
    "pretrained": pretrained,
}
