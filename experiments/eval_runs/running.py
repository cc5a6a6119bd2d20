"""The runs of an evaluation: the learning rate is chosen on validation data, then each seed is trained and tested."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.common.programs import Program
from experiments.eval_runs.evaluation import Evaluation, Figures, Subtask
from experiments.eval_runs.flags import configurations, rates_of
from experiments.eval_runs.programs import Programs, set_rate_factor
from nl_jax import Diverged
from nl_jax.models import LanguageModelConfig
from nl_jax.training import MetricsWriter, finite_outputs, progress_bar
from nl_jax.training.divergence import check_finite

ALL = "all"  # in the place of a seed: no rate gave a finite run


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run leaves.

    Attributes:
        model: after the last step.
        best: after the evaluation with the best score.
        score, best_score: their scores on validation data, negative where a lower one is better.
        steps: number of steps trained.
        seconds: spent in steps.
        mesh: where the models are.
    """

    model: Any
    best: Any
    score: float
    best_score: float
    steps: int
    seconds: float
    mesh: jax.sharding.Mesh


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a subtask: one cell of the table.

    Attributes:
        subtask, model: their names.
        task: the subtask.
        config: of the model.
        seeds: number of runs that are tested.
    """

    subtask: str
    model: str
    task: Subtask
    config: LanguageModelConfig
    seeds: int

    def missing(self, found: Mapping[str, Any], rates: int) -> int:
        """An upper bound of the number of runs that are still to do."""
        left = len(self.seeds_left(found))
        return rates - len(found.get("rates", {})) + left if left else 0

    def seeds_left(self, found: Mapping[str, Any]) -> list[int]:
        """The seeds that are neither tested nor diverged; none if no rate gave a finite run."""
        done = {str(entry.get("seed", place)) for place, entry in enumerate(found.get("seeds", ()))}
        done |= found.get("diverged", {}).keys()
        return [seed for seed in range(self.seeds) if str(seed) not in done and ALL not in done]


def cells_of(evaluation: Evaluation, values: flags.FlagValues) -> list[Cell]:
    """All cells, those of a model one after the other: where it has one configuration, they share its program."""
    cells = [
        Cell(name, model, task, config, values.seeds)
        for name, task in evaluation.subtasks(values).items()
        for model, config in configurations(evaluation, values, task).items()
    ]
    return sorted(cells, key=lambda cell: list(values.models).index(cell.model))


class Runner:
    """Runs cells, and saves what each run gives by ``save()`` at once."""

    def __init__(self, evaluation: Evaluation, values: flags.FlagValues, workdir: Path, save: Callable[[], None]):
        self.evaluation, self.values, self.workdir, self.save = evaluation, values, workdir, save
        self.programs = Programs()
        self.rates = rates_of(values)

    def run(self, cell: Cell, found: dict[str, Any]) -> None:
        """Adds to ``found``, the entry of results.json, what is missing: ``rates``, ``learning_rate`` and ``seeds``.

        A seed that is not finite gets its message in ``diverged``, and the others go on.
        """
        tried, seeds = found.setdefault("rates", {}), found.setdefault("seeds", [])
        left = cell.seeds_left(found)
        if not left:
            return
        kept: tuple[str, Trained] | None = None
        for rate in self.rates:
            if repr(rate) in tried or self._reached(tried):
                continue
            trained = self._tried(cell, rate)
            tried[repr(rate)] = None if trained is None else trained.score
            if trained is not None and _best(tried) == repr(rate):
                kept = repr(rate), trained
            self.save()
        chosen = _best(tried)
        if tried[chosen] is None:
            found["diverged"] = {ALL: f"not finite at any of --learning_rates={','.join(tried)}"}
            self.save()
            return
        found["learning_rate"] = float(chosen)
        for seed in left:
            own = kept[1] if seed == 0 and kept is not None and kept[0] == chosen else None
            try:
                tested = self._tested(cell, own or self._train(cell, float(chosen), seed))
                seeds.append({"seed": seed} | tested)
            except Diverged as error:
                found.setdefault("diverged", {})[str(seed)] = str(error)
            self.save()

    def _reached(self, tried: Mapping[str, float | None]) -> bool:
        """Whether a rate has reached the goal, so that no other can be better."""
        goal = self.evaluation.goal
        return goal is not None and any(score is not None and score >= goal for score in tried.values())

    def _tried(self, cell: Cell, rate: float) -> Trained | None:
        """The run with seed 0 at a rate of the grid; None if it diverged."""
        try:
            return self._train(cell, rate, 0)
        except Diverged:
            return None

    def _tested(self, cell: Cell, trained: Trained) -> dict[str, Any]:
        """The entry of results.json of a seed."""
        last = _finite(cell, trained.steps, cell.task.test(trained.model, trained.mesh))
        best = last if trained.best is trained.model else _finite(cell, 0, cell.task.test(trained.best, trained.mesh))
        return {
            "score": trained.score,
            "best_score": trained.best_score,
            "steps": trained.steps,
            "seconds": trained.seconds,
            "test": last,
            "test_at_best": best,
        }

    def _train(self, cell: Cell, rate: float, seed: int) -> Trained:
        steps, build = cell.task.steps or self.values.steps, cell.task.build or self.evaluation.build
        program = self.programs(build, cell.config, steps, cell.task.batch(0, 1))
        directory, run = self.workdir / cell.subtask / cell.model, f"rate_{rate:g}/seed_{seed}"
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{cell.subtask}/{cell.model}/{run}"
        with MetricsWriter(directory, run) as metrics, progress_bar(name, steps) as bar:
            return self._take_steps(cell, program, (rate, seed, steps), name, metrics, bar)

    def _take_steps(
        self, cell: Cell, program: Program, run: tuple[float, int, int], name: str, metrics: Any, bar: Any
    ) -> Trained:
        rate, seed, steps = run
        state = set_rate_factor(program.init(jax.random.key(seed)), rate)
        scores: list[float] = []
        best: Any = None
        seconds = 0.0
        for step in range(1, steps + 1):
            batch = cell.task.batch(seed, step)
            started = time.perf_counter()
            state, outputs = program.take_step(state, batch)
            row = finite_outputs(name, step, outputs)
            seconds += time.perf_counter() - started
            if step == steps or step % self.values.eval_every == 0:
                figures = cell.task.validate(state.model, program.mesh)
                check_finite(name, step, figures, "the model after its last update")
                row |= figures
                scores.append(self.evaluation.value(figures))
                if scores[-1] >= max(scores):
                    best = jax.tree.map(jnp.copy, state.model)  # the next step takes its buffers
            metrics.write(step, step * batch["inputs"].size, row)
            shown = f", {self.evaluation.score} {abs(scores[-1]):.3f}" if scores else ""
            bar.set_postfix_str(f"loss {row['loss']:.3f}{shown}", refresh=False)
            bar.update()
            goal = self.evaluation.goal
            if goal is not None and len(scores) >= 2 and min(scores[-2:]) >= goal:
                break
        model = best if scores[-1] >= max(scores) else state.model
        return Trained(model, best, scores[-1], max(scores), step, seconds, program.mesh)


def _best(tried: Mapping[str, float | None]) -> str:
    """The rate with the highest score, the smallest of equals; a run that was not finite scored None."""
    scores = {rate: -math.inf if score is None else score for rate, score in tried.items()}
    return max(scores, key=lambda rate: (scores[rate], -float(rate)))


def _finite(cell: Cell, step: int, figures: Figures) -> Figures:
    check_finite(f"{cell.subtask}/{cell.model}", step, figures, "the trained model")
    return figures
