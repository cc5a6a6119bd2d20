"""The subject continual: tasks are learned one after the other; how much of earlier tasks is forgotten?"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.optimizer_comparison import continual_tasks
from experiments.optimizer_comparison.reports import TUNING_SEED, plot_name, record_of
from nl_jax.plotting import GRAY, label_curves, new_figure, plot_band, save_figure
from nl_jax.training import progress_bar


def run(workdir: Path, values: flags.FlagValues, names: Sequence[str]) -> None:
    """Measures forgetting against the number of tasks."""
    record = record_of("continual", workdir, values, names)
    with progress_bar("continual", len(names)) as bar:
        for name in names:
            record.figures(name, functools.partial(_scores, name, values))
            bar.update()
    figure, panels = new_figure(columns=2)
    header = ("optimizer", "learning rate", "loss after own task", "forgetting", "loss after all tasks")
    rows: list[tuple[str, ...]] = [header]
    for name in names:
        found = record.get(name)
        forgetting, seen = (np.array(found[key]) for key in ("forgetting", "seen"))
        plot_band(panels[0], np.arange(2, values.num_tasks + 1), forgetting, label=name)
        plot_band(panels[1], np.arange(1, values.num_tasks + 1), seen, label=name)
        ends = (found["learned"], forgetting[:, -1].tolist(), seen[:, -1].tolist())
        rows.append((name, f"{found['rate']:.3g}", *(launcher.mean_and_spread(end, digits=4) for end in ends)))
    panels[0].axhline(0, color=GRAY, linewidth=0.5)
    panels[0].set(ylabel="loss that earlier tasks gained since")
    panels[0].set_yscale("symlog", linthresh=1e-3)
    panels[1].set(ylabel="mean loss of all tasks so far", yscale="log")
    for axes in panels:
        axes.set(xlabel="tasks so far")
    label_curves(panels[1])
    save_figure(figure, workdir / plot_name("continual", values))
    launcher.print_table(rows)
    print("Losses of untrained weights are 1; mean ± standard deviation over the seeds.")
    record.report()


def _scores(name: str, values: flags.FlagValues) -> dict[str, Any]:
    """The scores of an optimizer, tuned on one seed and measured on the others."""
    make, rates = continual_tasks.OPTIMIZERS[name], continual_tasks.RATES
    sizes = {"num_tasks": values.num_tasks, "steps": values.task_steps}
    tuning = continual_tasks.learn(make, rates, [TUNING_SEED], **sizes).final[:, 0]
    rate = float(rates[np.argmin(tuning)])
    outcome = continual_tasks.learn(make, [rate], range(values.seeds), **sizes)
    return {
        "rate": rate,
        "learned": outcome.learned[0].mean(-1).tolist(),
        "forgetting": outcome.forgetting[0].tolist(),
        "seen": outcome.seen[0].tolist(),
        "tuning_losses": [loss if np.isfinite(loss) else None for loss in tuning.tolist()],
    }
