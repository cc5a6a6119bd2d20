"""The subject speed: the time of an optimizer's update alone, by number of parameters (Figure 12)."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.common import launcher
from experiments.optimizer_comparison import update_speed
from experiments.optimizer_comparison.reports import plot_name, record_of, text_of
from experiments.optimizer_comparison.table import OPTIMIZERS
from nl_jax import InputError
from nl_jax.plotting import label_curves, new_figure, save_figure


def run(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Measures step time and size of the state for all optimizers at all sizes."""
    sizes = _parse_sizes(values.sizes)
    record = record_of("speed", workdir, values, names)
    optimizers = {name: OPTIMIZERS[name] for name in names}
    figure, axes = new_figure()
    curves: dict[str, list[tuple[int, float]]] = {}
    for text, size in sizes.items():
        print(f"{text} parameters", file=sys.stderr)
        measure = functools.partial(update_speed.measure, optimizers, size, values.rounds, values.max_seconds)
        measured = record.figures(text, measure)
        count, found = measured["parameters"], measured["optimizers"]
        rows = [(f"{count:,} parameters", "ms a step", "x muon", "state bytes a parameter")]
        muon = found.get("muon", {}).get("step_seconds")
        for name, row in found.items():
            time = row.get("step_seconds")
            if time:
                curves.setdefault(name, []).append((count, 1e3 * time))
            ratio = time / muon if time and muon else None
            cells = text_of(_milli(time), ",.2f"), text_of(ratio, ".2f"), f"{row['state_bytes'] / count:.2f}"
            rows.append((name, *cells))
        launcher.print_table(rows)
        if last := found.get("m3", {}).get("last_of_period_seconds"):
            print(f"m3: {1e3 * last:,.2f} ms for the last step of a period")
        for name, row in found.items():
            if "problem" in row:
                print(f"{name}: {row['problem']}")
        print()
    for name, points in curves.items():
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="parameters", ylabel="ms a step of the optimizer alone")
    label_curves(axes)
    save_figure(figure, workdir / plot_name("speed", values))
    record.report()


def _parse_sizes(texts: Sequence[str]) -> dict[str, float]:
    """Numbers of parameters, by the text of the flag."""
    try:
        sizes = {text: float(text) for text in texts}
    except ValueError:
        sizes = {}
    if not sizes or len(sizes) < len(texts) or not all(1 <= size <= 1e11 for size in sizes.values()):
        raise InputError(f"--sizes={','.join(texts)}: expected numbers of parameters, as 1e6,1e7, none twice")
    return sizes


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
