"""Plots of the rows of ``metrics.jsonl``."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from nl_jax.plotting import GRAY, label_curves, new_figure, plot_band, save_figure
from nl_jax.training.metrics import ACCURACY, ACCURACY_PLOT, PLOT, VALIDATION, read_metrics


def plot_validation(workdir: Path, baselines: Mapping[str, float]) -> Path:
    """Plots validation bits per byte against tokens to ``validation.png``, with a line for each model.

    Args:
        workdir: the directory of ``metrics.jsonl``.
        baselines: bits per byte of each baseline by name, drawn as horizontal lines.

    Returns:
        The path of the plot.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.training import MetricsWriter, plot_validation
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsWriter(Path(folder), "hope") as writer:
        ...         writer.write(10, 640, {"validation_bits_per_byte": 2.5})
        ...     print(plot_validation(Path(folder), {"gzip": 2.1}).name)
        validation.png
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(workdir):
        if VALIDATION in row:
            curves.setdefault(row["model"], []).append((row["tokens"], row[VALIDATION]))
    figure, axes = new_figure()
    for model, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=model)
    for style, (name, value) in zip(("--", ":", "-."), baselines.items(), strict=False):
        axes.axhline(value, linestyle=style, color=GRAY, label=f"{name} (test)")
    axes.set(xlabel="training tokens", ylabel="validation bits per byte")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    label_curves(axes)
    return save_figure(figure, workdir / PLOT)


def plot_accuracy(workdir: Path) -> Path:
    """Plots accuracy against steps to ``accuracy.png``: the mean of each model over seeds, and a band from min to max.

    Args:
        workdir: the directory of ``metrics.jsonl``, read by `plot_seeds`.

    Returns:
        The path of the plot.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.training import MetricsWriter, plot_accuracy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsWriter(Path(folder), "hope/seed_0") as writer:
        ...         writer.write(10, 640, {"validation_accuracy": 0.5})
        ...     print(plot_accuracy(Path(folder)).name)
        accuracy.png
    """
    figure, axes = new_figure()
    plot_seeds(axes, workdir, ACCURACY, against="step")
    axes.set(xlabel="training steps", ylabel="validation accuracy", ylim=(0, 1.02))
    label_curves(axes)
    return save_figure(figure, workdir / ACCURACY_PLOT)


def plot_seeds(axes: Axes, workdir: Path, key: str, *, against: str) -> None:
    """Draws a value of ``metrics.jsonl``: the mean of each model over seeds, and a band from min to max.

    The model of a row is ``MODEL/seed_N``; rows of other runs do not count. A seed whose rows end before those of other
    seeds keeps its last value.

    Args:
        axes: where to draw.
        workdir: the directory of ``metrics.jsonl``.
        key: name of the value; rows without it do not count.
        against: name of the value on the x axis, "step" or "tokens".
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in read_metrics(workdir):
        model, _, run = row["model"].partition("/")
        if key in row and run.startswith("seed_"):
            curves.setdefault(model, {}).setdefault(run, []).append((row[against], row[key]))
    for model, seeds in curves.items():
        x = sorted({at for points in seeds.values() for at, _ in points})
        values = np.stack([np.interp(x, *np.transpose(points)) for points in seeds.values()])
        plot_band(axes, x, values, label=model)
