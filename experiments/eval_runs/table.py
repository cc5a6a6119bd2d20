"""The table and the figure of an evaluation, from its results.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.launcher import mean_and_spread
from nl_jax.plotting import new_figure

Results = Mapping[str, Any]


def rows_of(results: Results, subtask: str) -> list[tuple[str, ...]]:
    """The rows of a subtask's table, the header first: the last step's test figures, then those at the best score."""
    columns, published = results["shown"], results["paper"]
    headings = [*columns, *(f"{heading}, best" for heading in columns)]
    paper = any(subtask in figures for figures in published.values())
    rows: list[tuple[str, ...]] = [
        (subtask, "parameters", "rate", *headings, "steps", *(["paper"] if paper else [])),
    ]
    for name, figures in results.get("references", {}).items():
        if subtask in figures:
            shown = [_figure(figures[subtask].get(key)) for key in columns.values()]
            rows.append((name, "-", "-", *shown, *("-" for _ in shown), "-", *(["-"] if paper else [])))
    for model, cell in results["subtasks"].get(subtask, {}).items():
        if not cell["seeds"]:
            continue
        keys = [(part, key) for part in ("test", "test_at_best") for key in columns.values()]
        found = [[seed[part][key] for seed in cell["seeds"] if key in seed[part]] for part, key in keys]
        shown = [mean_and_spread(figures) if figures else "-" for figures in found]
        steps = f"{np.mean([seed['steps'] for seed in cell['seeds']]):.0f}"
        own = [published.get(model, {}).get(subtask, "-")] if paper else []
        rows.append((model, f"{cell['parameters']:,}", f"{cell['learning_rate']:g}", *shown, steps, *own))
    return rows


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def bars(results: Results) -> Figure:
    """The first figure shown of every model and subtask, as a bar of the mean over seeds with its spread."""
    heading, key = next(iter(results["shown"].items()))
    subtasks = list(results["subtasks"])
    models = list(dict.fromkeys(model for cells in results["subtasks"].values() for model in cells))
    figure, axes = new_figure(height=4.2)
    width = 0.8 / max(len(models), 1)
    for i, model in enumerate(models):
        means, spreads = [], []
        for cells in results["subtasks"].values():
            found = [seed["test"][key] for seed in cells.get(model, {}).get("seeds", ()) if key in seed["test"]]
            means.append(np.mean(found) if found else np.nan)
            spreads.append(np.std(found, ddof=1) if len(found) > 1 else 0.0)
        at = np.arange(len(subtasks)) + (i - (len(models) - 1) / 2) * width
        axes.bar(at, means, width, yerr=spreads, label=model, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(subtasks)), subtasks, rotation=30 if len(subtasks) > 6 else 0)
    axes.set(ylabel=heading)
    axes.grid(False, axis="x")
    if models:
        figure.legend(fontsize=10, ncols=min(len(models), 5), loc="outside lower center")
    return figure
