"""How a verdict is made: figures of a model or method against those of another, seed by seed."""

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting.runs import Run, numbers_of

HOLDS, FAILS, OPEN = "holds", "does not hold at this size", "cannot be told"
OURS = "hope"
SEEDS = 2  # at least, of each figure that decides something
ROUNDING = 1e-9  # of a mean that should be the ceiling
JOINT = ("joint", "joint_levels", "joint_logistic", "joint_svm")  # all classes at once: upper bounds, of one run each


class Verdict(NamedTuple):
    """A verdict and the figures that it rests on."""

    word: str
    evidence: str


class Comparison(NamedTuple):
    """Ours against a rival, with the same figure of each seed.

    Attributes:
        where: the subtask or the run.
        name, rival: what is compared.
        ours, other: a figure for each seed; a reference has the same figure in all.
        lower: whether a lower figure is better.
    """

    where: str
    name: str
    rival: str
    ours: Sequence[float]
    other: Sequence[float]
    lower: bool = False

    def outcome(self, full: float | None = None, at_or_above: bool = False) -> str:
        """``better``, ``worse``, ``few``, ``level`` or ``unclear``.

        Args:
            full: the ceiling, where runs end; if both reach it they are ``level``.
            at_or_above: whether ours is ``level`` as soon as it has reached the ceiling itself.
        """
        if min(len(self.ours), len(self.other)) < SEEDS:
            return "few"
        ours, other = statistics.fmean(self.ours), statistics.fmean(self.other)
        if full is not None and min(ours, ours if at_or_above else other) >= full - ROUNDING:
            return "level"
        gain = other - ours if self.lower else ours - other
        if abs(gain) <= statistics.stdev(self.ours) + statistics.stdev(self.other):
            return "unclear"
        return "better" if gain > 0 else "worse"

    def __str__(self) -> str:
        """The comparison in words."""
        figures = f"{statistics.fmean(self.ours):.3f} against {statistics.fmean(self.other):.3f}"
        return f"{self.where}, {self.name} against {self.rival}: {figures}"


def from_comparisons(
    comparisons: Sequence[Comparison], full: float | None = None, at_or_above: bool = False
) -> Verdict:
    """Holds if ours is better in all; does not if it is worse in one; else it cannot be told.

    Args:
        comparisons: each with at least two seeds, or they decide nothing.
        full: the ceiling; where both reach it neither is better.
        at_or_above: whether the claim says no more than that ours is not below, so that the ceiling is enough.
    """
    if not comparisons:
        return Verdict(OPEN, "the runs have nothing to compare")
    found: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.outcome(full, at_or_above), []).append(comparison)

    def said(outcome: str, why: str) -> str:
        return f"{why} in {len(found[outcome])} of {len(comparisons)}: {found[outcome][0]}"

    if "worse" in found:
        return Verdict(FAILS, said("worse", "worse"))
    for outcome, why in (("few", "one seed only"), ("unclear", "within the spread of the seeds")):
        if outcome in found:
            return Verdict(OPEN, said(outcome, why))
    if "level" in found and not at_or_above:
        every = len(found["level"]) == len(comparisons)
        return Verdict(OPEN, f"all at the ceiling: {comparisons[0]}" if every else said("level", "both at the ceiling"))
    places = ", ".join(dict.fromkeys(comparison.where for comparison in comparisons))
    shown = found.get("better", comparisons)[0]
    return Verdict(HOLDS, f"in all {len(comparisons)} comparisons ({places}), such as {shown}")


def complete(verdict: Verdict, missing: Collection[str]) -> Verdict:
    """The verdict, which holds only if the runs lack nothing that the claim speaks of."""
    if verdict.word == HOLDS and missing:
        return Verdict(OPEN, f"the runs lack {', '.join(missing)}; so far {verdict.evidence}")
    return verdict


def by_models(
    runs: Sequence[Run],
    key: str,
    rivals: Callable[[str], bool],
    *,
    ours: str = OURS,
    lower: bool = False,
    subtasks: Collection[str] | None = None,
) -> list[Comparison]:
    """Test figures of a model against those of each rival, in the subtasks of evaluations.

    Args:
        runs: of an evaluation.
        key: of the figure.
        rivals: tells of a model's name whether it is one.
        ours: the model.
        lower: whether a lower figure is better.
        subtasks: those that count; None for all.
    """
    found = []
    for run in runs:
        for subtask, cells in run.results["subtasks"].items():
            seeds = {model: tests_of(cells, model, key) for model in cells}
            if seeds.get(ours) and (subtasks is None or subtask in subtasks):
                found += [
                    Comparison(subtask, ours, model, seeds[ours], other, lower)
                    for model, other in seeds.items()
                    if model != ours and rivals(model) and other
                ]
    return found


def by_reference(runs: Sequence[Run], key: str, reference: str, *, lower: bool = False) -> list[Comparison]:
    """Test figures of Hope against that of a reference, which is no model, in every subtask that has one."""
    found = []
    for run in runs:
        figures = run.results.get("references", {}).get(reference, {})
        for subtask, cells in run.results["subtasks"].items():
            ours, other = tests_of(cells, OURS, key), figures.get(subtask, {}).get(key)
            if ours and other is not None:
                found.append(Comparison(subtask, OURS, reference, ours, [other] * len(ours), lower))
    return found


def tests_of(cells: Mapping[str, Any], model: str, key: str) -> list[float]:
    """A test figure of each seed of a model."""
    return [seed["test"][key] for seed in cells.get(model, {}).get("seeds", ()) if key in seed["test"]]


def by_methods(run: Run, key: str, ours: str, no_rivals: Collection[str], *, lower: bool = False) -> list[Comparison]:
    """A method's figures against those of the other methods of a run, without some."""
    figures = {name: numbers_of(entry).get(key) for name, entry in run.results.get("figures", {}).items()}
    own = figures.get(ours)
    if not own:
        return []
    return [
        Comparison(run.workdir.name, ours, name, own, other, lower)
        for name, other in figures.items()
        if other and name != ours and name not in no_rivals
    ]


def undecided(run: Run) -> str | None:
    """Why a run decides nothing, in words: seeds that are still to come, or were not finite; None if it has all."""
    for subtask, cells in run.results.get("subtasks", {}).items():
        for model, cell in cells.items():
            if seeds := cell.get("diverged"):
                return f"a model was not finite: {run.workdir.name}, {subtask}, {model}, seed {', '.join(seeds)}"
    for name, wanted, done in _seeds(run):
        if done < wanted:
            return f"the run is not finished: {run.workdir.name}, {name} has {done} of {wanted} seeds"
    return None


def _seeds(run: Run) -> Iterator[tuple[str, int, int]]:
    """Every model or method of a run, with the number of seeds that it should have and that it has."""
    given = run.flags
    seeds = given.get("seeds") or 1  # what has none at all is unfinished also where the flag is not known
    subtasks, figures = run.results.get("subtasks", {}), run.results.get("figures", {})
    for subtask in {**dict.fromkeys(given.get("subtasks", ())), **subtasks}:
        cells = subtasks.get(subtask, {})
        for model in {**dict.fromkeys(given.get("models", ())), **cells}:
            yield f"{subtask}, {model}", seeds, len(cells.get(model, {}).get("seeds", ()))
    for name in {**dict.fromkeys(given.get("methods", ())), **figures}:
        yield name, 1 if name in JOINT else seeds, len(figures.get(name, ()))
