"""The claims of the paper's section 9, and what finished runs say about each."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.eval_runs.hope_rows import LEVELS, ROWS
from experiments.eval_runs.language_subtasks import PAPER_NAMES
from experiments.eval_runs.paper import MAD
from experiments.reporting.runs import Run
from experiments.reporting.verdicts import (
    FAILS,
    HOLDS,
    JOINT,
    OPEN,
    OURS,
    SEEDS,
    Comparison,
    Verdict,
    by_methods,
    by_models,
    by_reference,
    complete,
    from_comparisons,
    tests_of,
    undecided,
)

# Models of three kinds are named; all others are recurrent.
TRANSFORMERS = ("transformer", "transformer_conv", "attention", "sliding_window_attention")
HYBRIDS = ("sliding_window_memory",)  # attention and a memory
VARIANTS = ("hope_attention", "hope_frozen", "self_modifying_titans")  # of Hope, or a part of it: no rivals
NEEDLES = ("x1", "x2", "x4")  # lengths of the test, as multiples of that of training
BITS = "bits_per_byte"
FREQUENT = "most frequent label"
OUR_METHOD = {"features": "ours", "text": "levels"}  # by the form of the stream
OUR_VARIANTS = ("ours", "levels", "levels_no_slow", "levels_no_fast", "one_level")
UNTRAINED = ("zero_shot",)  # has learned nothing that it could forget


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


def is_rival(model: str) -> bool:
    """Whether a model is none of ours."""
    return model != OURS and model not in VARIANTS


def is_recurrent(model: str) -> bool:
    """Whether a model is none of ours and has no attention."""
    return is_rival(model) and model not in (*TRANSFORMERS, *HYBRIDS)


def models_text(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope has fewer bits per byte than each Transformer and each recurrent model, and there are both."""
    found = by_models(runs, BITS, is_rival, lower=True)
    kinds = {"a Transformer": TRANSFORMERS.__contains__, "a recurrent model": is_recurrent}
    missing = [kind for kind, belongs in kinds.items() if not any(belongs(c.rival) for c in found)]
    return complete(from_comparisons(found), missing)


def at_or_above_on_mad(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope is above all other models, or at the ceiling, on every task of the paper's table."""
    found = by_models(runs, "classes", is_rival)
    missing = [task for task in MAD[OURS] if task not in {c.where for c in found}]
    return complete(from_comparisons(found, full=0.99, at_or_above=True), missing)


def all_right(runs: Sequence[Run], keys: Sequence[str], subtasks: Sequence[str]) -> Verdict:
    """Holds if Hope has every sequence right in every seed, at least two, of all subtasks."""
    wrong: dict[str, list[float]] = {}
    decided = set()
    for run in runs:
        for subtask in subtasks:
            figures = {key: tests_of(run.results["subtasks"].get(subtask, {}), OURS, key) for key in keys}
            if min(map(len, figures.values())) >= SEEDS:
                decided.add(subtask)
                wrong |= {f"{subtask}, {key}": shares for key, shares in figures.items() if min(shares) < 1}
    if wrong:
        return Verdict(FAILS, "; ".join(f"{name} {statistics.fmean(shares):.3f}" for name, shares in wrong.items()))
    missing = [subtask for subtask in subtasks if subtask not in decided]
    if missing:
        return Verdict(OPEN, f"the runs lack {OURS} with two seeds on {', '.join(missing)}")
    return Verdict(HOLDS, f"all sequences of {len(keys) * len(subtasks)} test sets are right, in every seed")


def finds_needles(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope finds more needles than each recurrent model, at all lengths."""
    return from_comparisons([c for key in NEEDLES for c in by_models(runs, key, is_recurrent)], full=99.0)


def answers_questions(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope answers more questions about the longest text than each other model, and than one fixed answer."""
    models, fixed = by_models(runs, "longest", is_rival), by_reference(runs, "longest", FREQUENT)
    missing = [what for what, found in (("another model", models), (f"the {FREQUENT}", fixed)) if not found]
    return complete(from_comparisons([*fixed, *models], full=99.0), missing)


def learns_functions(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope's error is below 1, that of always saying 0, and below that of each other model."""
    models, nothing = by_models(runs, "error", is_rival, lower=True), []
    for run in runs:
        for subtask, cells in run.results["subtasks"].items():
            if errors := tests_of(cells, OURS, "error"):
                nothing.append(Comparison(subtask, OURS, "always 0", errors, [1.0] * len(errors), lower=True))
    return complete(from_comparisons([*nothing, *models]), [] if models else ["another model"])


def above_estimators(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope's error is below those of the estimators that do not know the class of functions either."""
    names = ("least_squares", "nearest_neighbours")
    return from_comparisons([c for name in names for c in by_reference(runs, "error", name, lower=True)])


def keeps_classes(runs: Sequence[Run], key: str, lower: bool = False, no_rivals: Sequence[str] = ()) -> Verdict:
    """Holds if our method is better than all others on the same stream; its variants and joint training are no rivals.

    Args:
        runs: streams of classes, as features or as texts.
        key: of the figure.
        lower: whether a lower figure is better.
        no_rivals: further methods that are none.
    """
    found = []
    for run in runs:
        ours = OUR_METHOD[run.flags.get("form", "features")]
        found += by_methods(run, key, ours, (*OUR_VARIANTS, *JOINT, *no_rivals), lower=lower)
    return from_comparisons(found)


def incorporates(runs: Sequence[Run]) -> Verdict:
    """Holds if levels answer more without the document than the model before, and than fine-tuning on it."""
    found = []
    for run in runs:
        shares = {
            name: [statistics.fmean(document["exact"]) for document in documents]
            for name, documents in run.results.get("figures", {}).items()
            if documents
        }
        if "levels" in shares:
            found += [
                Comparison(run.workdir.name, "levels", name, shares["levels"], shares[name])
                for name in ("without", "fine_tuned", "fine_tuned_text")
                if name in shares
            ]
    rivals = {c.rival for c in found}
    kinds = {"without": {"without"}, "fine_tuned": {"fine_tuned", "fine_tuned_text"}}
    return complete(from_comparisons(found), [kind for kind, names in kinds.items() if not names & rivals])


def each_part_helps(runs: Sequence[Run]) -> Verdict:
    """Holds if Hope as the paper has it has fewer bits per byte of text than without each of its parts."""
    full, *rows = ROWS
    found = by_models(runs, BITS, rows.__contains__, ours=full, lower=True, subtasks=("language",))
    return complete(from_comparisons(found), [row for row in rows if row not in {c.rival for c in found}])


def each_level_helps(runs: Sequence[Run]) -> Verdict:
    """Holds if each further level has fewer bits per byte of text than one level less."""
    found, missing = [], []
    for fewer, more in itertools.pairwise(LEVELS):
        pairs = by_models(runs, BITS, fewer.__eq__, ours=more, lower=True, subtasks=("language",))
        found += pairs
        missing += [] if pairs else [f"{more} against {fewer}"]
    return complete(from_comparisons(found), missing)


CLAIMS = (
    Claim(
        "Language modelling",
        "Hope has a lower perplexity than Transformers and recurrent models of its size (Table 2).",
        "evals.language",
        models_text,
    ),
    Claim(
        "Recall from the context",
        "Hope recalls better than other recurrent models (Table 3).",
        "evals.recall",
        lambda runs: from_comparisons(by_models(runs, "accuracy", is_recurrent), full=0.99),
    ),
    Claim(
        "Synthetic tasks of memory",
        "Hope is at or above all other models on the tasks of MAD (Table 4).",
        "evals.mad",
        at_or_above_on_mad,
    ),
    Claim(
        "State tracking",
        f"Hope has all {len(PAPER_NAMES)} formal languages right, also on strings longer than in training (Table 5).",
        "evals.formal_languages",
        lambda runs: all_right(runs, ("bin0", "bin1"), PAPER_NAMES),
    ),
    Claim(
        "Long contexts: needles",
        "Hope finds needles in long texts better than other recurrent models (Table 1).",
        "evals.niah",
        finds_needles,
    ),
    Claim(
        "Long contexts: reasoning",
        "Hope answers questions about facts that are spread over a very long text better than other models, and than "
        "always the most frequent answer (BABILong, Figure 9).",
        "evals.babilong",
        answers_questions,
    ),
    Claim(
        "Few-shot generalisation",
        "Hope learns functions from examples in its context: its error is below that of always saying 0, and of other "
        "models.",
        "evals.few_shot",
        learns_functions,
    ),
    Claim(
        "Few-shot generalisation: estimators",
        "Hope's error on functions in its context is below those of least squares and of the 3 nearest neighbours.",
        "evals.few_shot",
        above_estimators,
    ),
    Claim(
        "Continual learning: accuracy",
        "After a stream of classes our method (ours on features, levels on texts) has a higher accuracy over all of "
        "them than other methods, joint training aside (Figure 6).",
        "continual.class_incremental",
        lambda runs: keeps_classes(runs, "last_accuracy"),
    ),
    Claim(
        "Continual learning: forgetting",
        "On a stream of classes our method (ours on features, levels on texts) forgets less than other methods that "
        "learn (Figure 6).",
        "continual.class_incremental",
        lambda runs: keeps_classes(runs, "forgetting", lower=True, no_rivals=UNTRAINED),
    ),
    Claim(
        "Knowledge incorporation",
        "A model that has read a document through its levels answers more questions without it than before, and than "
        "after fine-tuning on it.",
        "continual.incorporate",
        incorporates,
    ),
    Claim(
        "Parts of Hope",
        "Each part of Hope lowers its perplexity (Table 6).",
        "evals.ablation",
        each_part_helps,
    ),
    Claim(
        "Levels",
        "Each further level lowers the perplexity (Figure 7).",
        "evals.levels",
        each_level_helps,
    ),
)


def verdict_of(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """What the runs say about a claim; a run that lacks seeds says nothing."""
    own = [run for run in runs if run.launcher == claim.command]
    if not own:
        return Verdict(OPEN, f"no run of experiments.{claim.command} was given")
    for run in own:
        if (why := undecided(run)) is not None:
            return Verdict(OPEN, why)
    return claim.judge(own)
