"""Decides whether a run can continue with other --steps than it was started with, and finds its earlier results."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nl_jax import InputError
from nl_jax.training import learning_rate_schedule
from nl_jax.training.checkpoint import saved_steps
from nl_jax.training.loop import CHECKPOINTS

KEPT = "results_{}.json"  # the results of a run before it was given other steps, by the steps that it had
MAY_CHANGE = ("steps", "schedule")  # if the learning rates of the steps already taken stay the same


def continued(workdir: Path, stored: Mapping[str, Any], given: Mapping[str, Any], has_results: bool) -> dict[str, Any]:
    """The flags of a workdir's run with the given steps and schedule, if the run can continue with them.

    Args:
        workdir: workdir of the run.
        stored: flags of the run.
        given: flags of the command.
        has_results: whether a model of the run has taken all of its steps.

    Raises:
        InputError: if steps that the run has taken would have had other learning rates; the message says what to do.
    """
    if "schedule" not in given or all(stored.get(name) == given[name] for name in MAY_CHANGE):
        return dict(stored)
    done = max(_newest_checkpoint(workdir), stored["steps"] if has_results else 0)
    flag = f"--steps={given['steps']} --schedule={given['schedule']}"
    if given["steps"] < done:
        raise InputError(f"{flag}: the run in {workdir} has taken {done} steps; expected as many or more")
    changed = {**stored, **{name: given[name] for name in MAY_CHANGE}}
    if not np.array_equal(_rates(stored, done), _rates(changed, done)):
        raise InputError(
            f"{flag}: the {done} steps that the run in {workdir} has taken would have had other learning rates, since "
            f"those of --schedule={stored.get('schedule')} depend on --steps={stored['steps']}; expected --steps="
            f"{stored['steps']}, or a new workdir; a run with --schedule=constant can be given more steps"
        )
    return changed


def kept_results(workdir: Path) -> list[Path]:
    """The files with a run's results before it was given other steps, that of the most steps first."""
    found = {path: re.fullmatch(re.escape(KEPT).replace(r"\{\}", "([0-9]+)"), path.name) for path in workdir.glob("*")}
    steps = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _rates(values: Mapping[str, Any], steps: int) -> np.ndarray:
    """Learning rates of the first ``steps`` steps."""
    peak, warmup, kind = values["learning_rate"], values.get("warmup_steps"), values.get("schedule", "cosine")
    return np.asarray(learning_rate_schedule(peak, values["steps"], warmup, kind)(np.arange(steps)))


def _newest_checkpoint(workdir: Path) -> int:
    """The largest step of the checkpoints of all models and seeds; 0 if there is no checkpoint."""
    found = [path for depth in ("*", "*/*") for path in workdir.glob(f"{depth}/{CHECKPOINTS}")]
    return max((step for directory in found for step in saved_steps(directory)), default=0)
