"""Tables and figures of the class-incremental comparison."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import launcher
from experiments.continual_methods.streams import full_matrix
from experiments.continual_methods.table import EXACT
from nl_jax.evaluation.continual import forgetting_beyond
from nl_jax.plotting import plot_band, plot_matrix, save_figure

MATRICES, CURVES = "accuracy_matrix.png", "forgetting.png"
Outcomes = Mapping[str, Sequence[dict[str, Any]]]
COLUMNS = {
    "last": "last_accuracy",
    "mean over tasks": "mean_last_accuracy",
    "incremental": "average_incremental_accuracy",
    "forgetting": "forgetting",
    "newest": "newest_accuracy",
    "shuffled": "shuffled",
    "top 3": "top_3",
}


def print_outcomes(outcomes: Outcomes) -> None:
    """Prints a row for each method: mean and spread over the orders of the classes, in %."""
    header = ("method", *COLUMNS, f"beyond {EXACT}", "state MB", "ms/example", "ms/answer")
    rows: list[tuple[str, ...]] = [header]
    for name, found in outcomes.items():
        cells = [_percent([outcome[key] for outcome in found if key in outcome]) for key in COLUMNS.values()]
        beyond = _beyond(found, outcomes.get(EXACT, ()))
        costs = [
            f"{found[0]['state_bytes'] / 1e6:.1f}",
            *(f"{1e3 * np.mean([o[key] for o in found]):.2f}" for key in ("seconds_per_example", "seconds_per_answer")),
        ]
        rows.append((name, *cells, _percent(beyond), *costs))
    launcher.print_table(rows)
    print("Accuracy in %, mean ± standard deviation over the orders of the classes; last: over all test texts.")


def _beyond(found: Sequence[dict[str, Any]], exact: Sequence[dict[str, Any]]) -> list[float]:
    """Forgetting minus that of exact least squares on the same stream."""
    pairs = [pair for pair in zip(found, exact, strict=False) if all("matrix" in outcome for outcome in pair)]
    return [forgetting_beyond(*(full_matrix(outcome["matrix"]) for outcome in pair)) for pair in pairs]


def _percent(figures: Sequence[float]) -> str:
    return launcher.mean_and_spread([100 * figure for figure in figures], digits=1) if figures else "-"


def draw(workdir: Path, outcomes: Outcomes) -> None:
    """Draws the accuracy matrix of each method for the first order, and accuracy against tasks learned."""
    with_tasks = {name: found for name, found in outcomes.items() if found and "matrix" in found[0]}
    if not with_tasks:
        return
    columns = min(5, len(with_tasks))
    rows = math.ceil(len(with_tasks) / columns)
    figure = Figure(figsize=(3 * columns, 2.8 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (name, found) in zip(panels, with_tasks.items(), strict=False):
        plot_matrix(axes, full_matrix(found[0]["matrix"]), title=name)
    for axes in panels[len(with_tasks) :]:
        axes.set_axis_off()
    save_figure(figure, workdir / MATRICES)

    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(ncols=2)
    for place, (name, found) in enumerate(with_tasks.items()):
        matrices = [full_matrix(outcome["matrix"]) for outcome in found]
        tasks = np.arange(1, len(matrices[0]) + 1)
        style = {"label": name, "linestyle": ("-", "--", ":")[place // 10 % 3]}
        plot_band(panels[0], tasks, np.array([np.nanmean(m, axis=1) for m in matrices]), alpha=0.1, **style)
        plot_band(panels[1], tasks, np.array([m[:, 0] for m in matrices]), alpha=0.1, **style)
    panels[0].set(ylabel="accuracy on all tasks so far")
    panels[1].set(ylabel="accuracy on the first task")
    for axes in panels:
        axes.set(xlabel="tasks learned", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, workdir / CURVES)
