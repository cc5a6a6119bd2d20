"""The claims of the paper's section 9, and what finished runs say about each."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from experiments.reporting.runs import Run, numbers_of

HOLDS, FAILS, OPEN = "holds", "does not hold at this size", "cannot be told"
OURS = "hope"
NEEDLES = ("x1", "x2", "x4")  # lengths of the test, as multiples of that of training


class Verdict(NamedTuple):
    """A verdict and the figures that it rests on."""

    word: str
    evidence: str


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
        title: what it is about.
        text: the claim.
        command: the launcher whose runs decide.
        judge: ``judge(runs of that launcher)`` returns the verdict.
    """

    title: str
    text: str
    command: str
    judge: Callable[[Sequence[Run]], Verdict]


class Comparison(NamedTuple):
    """Ours against another, with the same figure of each seed."""

    what: str
    ours: Sequence[float]
    other: Sequence[float]
    lower: bool = False

    @property
    def outcome(self) -> str:
        """``better``, ``worse``, or ``unclear`` if the means differ by no more than both standard deviations."""
        if min(len(self.ours), len(self.other)) < 2:
            return "unclear"
        gain = statistics.fmean(self.ours) - statistics.fmean(self.other)
        gain = -gain if self.lower else gain
        spread = statistics.stdev(self.ours) + statistics.stdev(self.other)
        if abs(gain) <= spread:
            return "unclear"
        return "better" if gain > 0 else "worse"

    def __str__(self) -> str:
        """The comparison in words."""
        return f"{self.what}: {statistics.fmean(self.ours):.3f} against {statistics.fmean(self.other):.3f}"


def from_comparisons(comparisons: Sequence[Comparison], full: float | None = None) -> Verdict:
    """Holds if ours is better in all; does not if it is worse in one; else it cannot be told.

    Where both reach ``full``, the best figure that there is, nothing speaks against the claim.
    """
    if not comparisons:
        return Verdict(OPEN, "the runs have no model to compare with")
    counted = [c for c in comparisons if full is None or statistics.fmean(c.ours) < full - 1e-9]
    by_outcome = {word: [c for c in counted if c.outcome == word] for word in ("worse", "unclear", "better")}
    if by_outcome["worse"]:
        return Verdict(FAILS, f"worse in {len(by_outcome['worse'])} of {len(comparisons)}: {by_outcome['worse'][0]}")
    if by_outcome["unclear"]:
        few = any(len(c.ours) < 2 or len(c.other) < 2 for c in by_outcome["unclear"])
        why = "one seed only" if few else "within the spread of the seeds"
        return Verdict(OPEN, f"{why} in {len(by_outcome['unclear'])} of {len(comparisons)}: {by_outcome['unclear'][0]}")
    shown = (by_outcome["better"] or list(comparisons))[0]
    return Verdict(HOLDS, f"in all {len(comparisons)} comparisons; {shown}")


def by_models(runs: Sequence[Run], key: str, ours: str = OURS, lower: bool = False) -> list[Comparison]:
    """Test figures of a model against those of each other model, in every subtask of evaluations."""
    found = []
    for run in runs:
        for subtask, cells in run.results["subtasks"].items():
            seeds = {
                model: [seed["test"][key] for seed in cell["seeds"] if key in seed["test"]]
                for model, cell in cells.items()
            }
            if seeds.get(ours):
                found += [
                    Comparison(f"{subtask}, {ours} against {model}", seeds[ours], other, lower)
                    for model, other in seeds.items()
                    if model != ours and other
                ]
    return found


def all_right(runs: Sequence[Run], keys: Sequence[str]) -> Verdict:
    """Holds if ours has every sequence right, in every subtask and seed."""
    found = {
        f"{subtask}, {key}": [seed["test"][key] for seed in cells[OURS]["seeds"]]
        for run in runs
        for subtask, cells in run.results["subtasks"].items()
        if cells.get(OURS, {}).get("seeds")
        for key in keys
    }
    if not found:
        return Verdict(OPEN, f"the runs have no {OURS}")
    wrong = {name: statistics.fmean(shares) for name, shares in found.items() if min(shares) < 1}
    if wrong:
        return Verdict(FAILS, "; ".join(f"{name} {share:.3f}" for name, share in wrong.items()))
    return Verdict(HOLDS, f"all sequences of {len(found)} test sets are right, in every seed")


def each_part_helps(runs: Sequence[Run], key: str) -> Verdict:
    """Holds if Hope as the paper has it is better than Hope without any one part."""
    found = [*by_models(runs, key, "hope_paper", lower=True), *by_models(runs, "both", "hope_paper")]
    found += by_models(runs, NEEDLES[0], "hope_paper")
    return from_comparisons([comparison for comparison in found if "without" in comparison.what])


def each_level_helps(runs: Sequence[Run], key: str) -> Verdict:
    """Holds if each further level is better than one level less."""
    pairs = [("levels_2", "levels_1"), ("levels_3", "levels_2"), ("levels_4", "levels_3")]
    found = [c for more, fewer in pairs for c in by_models(runs, key, more, True) if c.what.endswith(f" {fewer}")]
    return from_comparisons(found)


def _methods(runs: Sequence[Run], ours: str, key: str) -> Iterator[Comparison]:
    """A method's figures against those of the other methods that see no more than it does."""
    for run in runs:
        figures = {name: numbers_of(entry) for name, entry in run.results.get("figures", {}).items()}
        for name, entry in figures.items():
            if name != ours and not name.startswith("joint") and key in entry and key in figures.get(ours, {}):
                yield Comparison(f"{run.workdir.name}, {ours} against {name}", figures[ours][key], entry[key])


def keeps_classes(runs: Sequence[Run]) -> Verdict:
    """Holds if our memory ends above all other methods on the same stream, joint training aside."""
    return from_comparisons([c for ours in ("ours", "one_level") for c in _methods(runs, ours, "last_accuracy")])


def incorporates(runs: Sequence[Run]) -> Verdict:
    """Holds if levels answer more without the document than the model before, and than fine-tuning on it."""
    found = []
    for run in runs:
        shares = {
            name: [statistics.fmean(document["exact"]) for document in documents]
            for name, documents in run.results.get("figures", {}).items()
            if documents
        }
        others = [
            name for name in ("without", "fine_tuned", "fine_tuned_text") if name in shares and "levels" in shares
        ]
        found += [Comparison(f"levels against {name}", shares["levels"], shares[name]) for name in others]
    return from_comparisons(found)


CLAIMS = (
    Claim(
        "Language modelling",
        "Hope has a lower perplexity than Transformers and recurrent models of its size (Table 2).",
        "evals.language",
        lambda runs: from_comparisons(by_models(runs, "bits_per_byte", lower=True)),
    ),
    Claim(
        "Recall from the context",
        "Hope recalls better than all models but Transformers (Table 3).",
        "evals.recall",
        lambda runs: from_comparisons(
            [c for c in by_models(runs, "accuracy") if "transformer" not in c.what], full=0.99
        ),
    ),
    Claim(
        "Synthetic tasks of memory",
        "Hope is at or above all other models on the tasks of MAD (Table 4).",
        "evals.mad",
        lambda runs: from_comparisons(by_models(runs, "classes"), full=0.99),
    ),
    Claim(
        "State tracking",
        "Hope has all formal languages right, also on strings longer than in training (Table 5).",
        "evals.formal_languages",
        lambda runs: all_right(runs, ("bin0", "bin1")),
    ),
    Claim(
        "Long contexts: needles",
        "Hope finds needles in long texts better than other recurrent models (Table 1).",
        "evals.niah",
        lambda runs: from_comparisons(
            [c for key in NEEDLES for c in by_models(runs, key) if "transformer" not in c.what], full=99.0
        ),
    ),
    Claim(
        "Long contexts: reasoning",
        "Hope answers questions about facts that are spread over a very long text (BABILong).",
        "evals.babilong",
        lambda runs: from_comparisons(by_models(runs, "longest"), full=99.0),
    ),
    Claim(
        "Few-shot generalisation",
        "Hope learns functions from examples in its context.",
        "evals.few_shot",
        lambda runs: from_comparisons(by_models(runs, "error", lower=True)),
    ),
    Claim(
        "Continual learning",
        "Levels of memory learn a stream of classes with less forgetting (Figure 6).",
        "continual.class_incremental",
        keeps_classes,
    ),
    Claim(
        "Knowledge incorporation",
        "A model that has read a document through its levels answers questions without it.",
        "continual.incorporate",
        incorporates,
    ),
    Claim(
        "Parts of Hope",
        "Each part of Hope lowers its perplexity (Table 6).",
        "evals.ablation",
        lambda runs: each_part_helps(runs, "bits_per_byte"),
    ),
    Claim(
        "Levels",
        "More levels are better (Figure 7).",
        "evals.levels",
        lambda runs: each_level_helps(runs, "bits_per_byte"),
    ),
)


def verdict_of(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """What the runs say about a claim."""
    own = [run for run in runs if run.launcher == claim.command]
    return claim.judge(own) if own else Verdict(OPEN, f"no run of experiments.{claim.command} was given")
