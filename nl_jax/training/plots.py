"""Plots of the rows of ``metrics.jsonl``."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nl_jax.plotting import plot_band, save_figure
from nl_jax.training.metrics import ACCURACY, ACCURACY_PLOT, PLOT, VALIDATION, read_metrics


def plot_validation(workdir: Path, baselines: Mapping[str, float]) -> Path:
    """Plots validation bits per byte against tokens to ``validation.png``, with a line for each model.

    Args:
        workdir: the directory of ``metrics.jsonl``.
        baselines: bits per byte of each baseline by name, drawn as horizontal lines.

    Returns:
        The path of the plot.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(workdir):
        if VALIDATION in row:
            curves.setdefault(row["model"], []).append((row["tokens"], row[VALIDATION]))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=model)
    for style, (name, value) in zip(("--", ":", "-."), baselines.items(), strict=False):
        axes.axhline(value, linestyle=style, color="gray", label=f"{name} (test)")
    axes.set(xlabel="training tokens", ylabel="validation bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, workdir / PLOT)


def plot_accuracy(workdir: Path) -> Path:
    """Plots accuracy against steps to ``accuracy.png``: the mean of each model over seeds, and a band from min to max.

    Args:
        workdir: the directory of ``metrics.jsonl``, in which the model of each row is ``MODEL/SEED``. A seed whose rows
            end before those of other seeds keeps its last accuracy.

    Returns:
        The path of the plot.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in read_metrics(workdir):
        if ACCURACY in row:
            model, _, seed = row["model"].partition("/")
            curves.setdefault(model, {}).setdefault(seed, []).append((row["step"], row[ACCURACY]))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, seeds in curves.items():
        steps = sorted({step for points in seeds.values() for step, _ in points})
        accuracies = np.stack([np.interp(steps, *np.transpose(points)) for points in seeds.values()])
        plot_band(axes, steps, accuracies, label=model)
    axes.set(xlabel="training steps", ylabel="validation accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, workdir / ACCURACY_PLOT)
