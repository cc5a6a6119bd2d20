"""Tables and figures of the class-incremental comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import launcher
from experiments.continual_methods.streams import full_matrix
from experiments.continual_methods.table import EXACT
from nl_jax.evaluation.continual import forgetting_beyond
from nl_jax.plotting import accuracy_heat_map, forgetting_curves, save_figure

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
    first = {name: full_matrix(found[0]["matrix"]) for name, found in with_tasks.items()}
    save_figure(accuracy_heat_map(first), workdir / MATRICES)
    every = {name: [full_matrix(outcome["matrix"]) for outcome in found] for name, found in with_tasks.items()}
    save_figure(forgetting_curves(every), workdir / CURVES)
