"""The subject toy: the paper's problem in two dimensions (Figure 4)."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.optimizer_comparison import toy_problem
from experiments.optimizer_comparison.reports import plot_name, record_of, text_of
from nl_jax.plotting import save_figure
from nl_jax.training import progress_bar


def run(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Measures the number of steps to the goal on Eq. 53."""
    record = record_of("toy", workdir, values, names)
    with progress_bar("toy", len(names)) as bar:
        for name in names:
            record.figures(name, functools.partial(_paths, name))
            bar.update()
    settings = toy_problem.SETTINGS
    rows: list[tuple[str, ...]] = [("steps to 1e-3", *(f"k {k:g}, a {a:g}, ω {omega:g}" for k, a, omega in settings))]
    for name in names:
        rows.append((name, *(text_of(path["steps"], "d", "never") for path in record.get(name))))
    if {"momentum", "delta_momentum"} <= set(names):
        steps = ([path["steps"] for path in record.get(name)] for name in ("delta_momentum", "momentum"))
        ratios = [delta / plain if delta and plain else None for delta, plain in zip(*steps, strict=True)]
        rows.append(("delta_momentum / momentum", *(text_of(ratio, ".2f") for ratio in ratios)))
    launcher.print_table(rows)
    rates = len(toy_problem.RATES)
    print(f"Each at the best of {rates} learning rates, the same for all; {toy_problem.STEPS} steps at most.")
    figure = toy_problem.draw(settings[0], {name: record.get(name)[0] for name in names})
    save_figure(figure, workdir / plot_name("toy", values))
    record.report()


def _paths(name: str) -> list[dict[str, Any]]:
    return [path._asdict() for path in toy_problem.descend(toy_problem.OPTIMIZERS[name], toy_problem.SETTINGS)]
