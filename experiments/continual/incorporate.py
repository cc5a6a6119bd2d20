"""Knowledge incorporation: a model reads a document through its levels; is it still known when the document is gone?

    python -m experiments.continual.incorporate --workdir=runs/incorporate
    python -m experiments.continual.incorporate --workdir=runs/quick --quick
    python -m experiments.continual.incorporate --text=manual.txt --questions=questions.jsonl --workdir=runs/manual

By default the documents are generated: facts about invented people and places, which no model can know, each stated in
--statements sentences; the questions are in other words. --text takes plain text, and --questions rows with question
and answer.

What is learned as text is hardly found by a question, so the model first asks itself, while it sees a sentence,
what one could ask about it, and answers with the sentences around in view. It then learns these answers.

without             the model is asked without the document
in_context          the document stands before every question
levels              the model learns the answers to its own questions, --passes times in new orders; levels on the MLPs
                    of its middle blocks learn, by steps preconditioned by the covariance of inputs. Before that they
                    have seen other text, from which they learn nothing, so that steps avoid its inputs' directions
levels_unprotected  the same, without the other text
levels_text         as levels, but what is learned are the document's sentences
fine_tuned          Adam on all MLPs, the answers of levels, the same passes
fine_tuned_text     the same with the document's sentences

Each way is tuned alike: the learning rate is chosen of three on another generated document, for the largest share of
questions answered at no more than 2 % higher perplexity of other text. All ways get the same examples of questions
before every question, about other facts of the same kinds; the model asks itself with these examples, too, and sees
neither the exam's questions nor their answers. An answer is exact if greedy sampling gives it and nothing else;
"chosen" is the share of questions whose answer is likelier than all answers of its kind. Other text is documentation
of Python's standard library; that whose perplexity is measured is none that the levels have seen.

--quick takes 6 facts, one seed and the first learning rate: some minutes on 2 cores.

The same command resumes a stopped run. The workdir gets config.json, metrics.jsonl (each pass), results.json and
incorporation.png.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.path_flags import define_path, define_workdir
from experiments.common.pretrained_flag import define_pretrained, models_of, read_pretrained
from experiments.continual_methods.incorporation import (
    METHODS,
    VALIDATION_SEED,
    Document,
    Exam,
    OtherText,
    Pair,
    asked_itself,
    generated,
    read_document,
    read_document_by,
)
from experiments.continual_methods.runs import (
    choose_settings,
    make_runs,
    missing_runs,
    runs_of,
    take_first_settings,
    tuned,
)
from nl_jax import InputError
from nl_jax.data.corpus import fingerprint
from nl_jax.data.reading import Document as File
from nl_jax.models import LanguageModel
from nl_jax.plotting import GRAY, new_figure, save_figure
from nl_jax.pretrained import Pretrained
from nl_jax.training.metrics import MetricsWriter

NAME = "continual.incorporate"
FIGURE = "incorporation.png"
NAMES = ("without", "in_context", *METHODS)
DEFAULTS = {"facts": 12, "passes": 4, "seeds": 3, "other_texts": 4}
QUICK = {"facts": 6, "passes": 4, "seeds": 1, "other_texts": 2}
TICKS = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100, 1000, 10000)  # of the figure, in %
ALLOWED = 0.02  # rise of the perplexity of other text
COLUMNS = {"answered": "answered", "of in_context": "of_in_context", "chosen": "chosen", "rise": "perplexity_rise"}


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define_workdir(values)
    define_pretrained(values)
    define(define_path, "text", None, "File of plain text to read instead of a generated document.")
    define(define_path, "questions", None, "JSONL file with question and answer in each row, about --text.")
    for name, text in (
        ("facts", "Facts of a generated document."),
        ("passes", "Times that a document is read."),
        ("seeds", "Documents, or orders of reading for --text."),
        ("other_texts", "Texts whose perplexity is measured; twice as many are protected."),
    ):
        define(flags.DEFINE_integer, name, None, f"{text} Default: {DEFAULTS[name]}.")
    define(flags.DEFINE_integer, "statements", 2, "Sentences that state each fact, 1 to 3.")
    define(flags.DEFINE_list, "methods", list(NAMES), "Rows of the table.")
    define(flags.DEFINE_bool, "quick", False, "A small comparison, without a choice of learning rates.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(compare, define_flags(), __doc__, argv)


class Comparison:
    """One run: the model, documents, and what is measured; ``results`` are written after each outcome."""

    def __init__(self, values: flags.FlagValues, given: dict[str, Any], document: Document | None, workdir: Path):
        self.values, self.given, self.document, self.workdir = values, given, document, workdir

    def documents(self, seed: int) -> Document:
        """The document of a seed."""
        return self.document or generated(seed, self.given["facts"], self.given["statements"])

    def run(self, pretrained: Pretrained, results: dict[str, Any]) -> None:
        """Measures all that is missing."""
        runs = runs_of(self.given["methods"], self.given["seeds"])
        if not missing_runs(runs, results):
            return
        other = OtherText(self.given["other_texts"])
        if "perplexity" not in results:
            results["perplexity"] = other.perplexity(pretrained, pretrained.model)
        self._choose(pretrained, other, results)

        def outcome_of(name: str, seed: int) -> dict[str, Any]:
            setting = results["settings"][tuned(METHODS, name)]["setting"] if name in METHODS else None
            return self._outcome(pretrained, other, self.documents(seed), name, setting, seed, results)

        make_runs("documents", "document", runs, outcome_of, self.workdir, results)

    def _choose(self, pretrained: Pretrained, other: OtherText, results: dict[str, Any]) -> None:
        """Chooses the setting of each method on a document of its own."""
        names = list(dict.fromkeys(tuned(METHODS, name) for name in self.given["methods"] if name in METHODS))
        if self.given["quick"]:
            take_first_settings(names, _settings, results)
            return
        document = generated(VALIDATION_SEED, self.given["facts"], self.given["statements"])

        def outcome_of(name: str, setting: dict[str, Any]) -> dict[str, Any]:
            return self._outcome(pretrained, other, document, name, setting, None, results)

        choose_settings(names, _settings, outcome_of, _preference, self.workdir, results)

    def _outcome(
        self,
        pretrained: Pretrained,
        other: OtherText,
        document: Document,
        name: str,
        setting: dict[str, Any] | None,
        seed: int | None,
        results: dict[str, Any],
    ) -> dict[str, Any]:
        """What a model answers after it has taken up a document; ``seed`` is None on the validation document."""
        exam = Exam(pretrained, document)
        if name not in METHODS:
            return exam.answers(pretrained.model, name == "in_context") | {"perplexity_rise": 0.0, "seconds": 0.0}
        model, seconds = self._read(pretrained, other, document, name, setting or {}, seed, results)
        rise = other.perplexity(pretrained, model) / results["perplexity"] - 1.0
        return exam.answers(model) | {"perplexity_rise": rise, "seconds": seconds}

    def _read(
        self,
        pretrained: Pretrained,
        other: OtherText,
        document: Document,
        name: str,
        setting: dict[str, Any],
        seed: int | None,
        results: dict[str, Any],
    ) -> tuple[LanguageModel, float]:
        asks = METHODS[name].asks
        learned = self._asked(pretrained, document, seed, results) if asks else document.texts
        given = name, setting, pretrained, learned, other, self.given["passes"]
        if seed is None:
            return read_document_by(*given, 0, lambda *_: None)
        with MetricsWriter(self.workdir, f"{name}/document_{seed}") as writer:
            return read_document_by(*given, seed, lambda number, row: writer.write(number, 0, row))

    def _asked(
        self, pretrained: Pretrained, document: Document, seed: int | None, results: dict[str, Any]
    ) -> list[Pair]:
        """What the model asks itself about a document: once, and then from the results."""
        key = "validation" if seed is None else str(seed)
        if key not in results["asked"]:
            results["asked"][key] = asked_itself(pretrained, document, seed or 0)
            launcher.write_json(self.workdir / RESULTS, results)
        return [(question, answer) for question, answer in results["asked"][key]]


def _settings(name: str) -> Sequence[dict[str, Any]]:
    return METHODS[name].settings


def _preference(outcome: dict[str, Any]) -> tuple[bool, float, float]:
    """What makes one setting better than another."""
    allowed = outcome["perplexity_rise"] <= ALLOWED
    return allowed, float(np.mean(outcome["exact"])) if allowed else -outcome["perplexity_rise"], -outcome["nats"]


def compare(values: flags.FlagValues) -> None:
    """Runs all that is missing, prints the table and draws the figure. All checks come first."""
    workdir = launcher.own_workdir(values)
    given = _checked(values)
    document = read_document(values.text, values.questions) if values.text else None
    pretrained = read_pretrained(values.pretrained)
    if document is not None and "in_context" in values.methods:
        tokens, most = Exam(pretrained, document).tokens_in_context(), pretrained.model.config.context_length
        if tokens > most:
            raise InputError(
                f"--text={values.text}: {tokens:,} tokens with a question; the model sees {most:,}; expected a shorter "
                "text, or --methods without in_context"
            )
    files = [File(path, Path(path).read_bytes()) for path in (values.text, values.questions) if path]
    config = {
        "launcher": NAME,
        "flags": given,
        "data": fingerprint(files) if files else {},
        "models": models_of(pretrained),
    }
    metadata = {"inputs": launcher.inputs_of(values), "settings": {}, "figures": {}, "asked": {}}
    results = launcher.claim_workdir(workdir, config, metadata, (FIGURE,))
    Comparison(values, given, document, workdir).run(pretrained, results)
    outcomes = _figures(results["figures"], given["methods"])
    _print(outcomes, given["passes"], results["asked"])
    _draw(outcomes, workdir)
    print(f"Everything is in {workdir}: {RESULTS}, {FIGURE}")


def _checked(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that a run keeps, with their defaults filled in; raises `InputError` for a bad one."""
    launcher.check_names("methods", values.methods, NAMES, required=True)
    if bool(values.text) != bool(values.questions):
        missing, other = ("questions", "text") if values.text else ("text", "questions")
        raise InputError(f"--{missing}: missing; expected it with --{other}")
    given: dict[str, Any] = dict(QUICK if values.quick else DEFAULTS)
    for name, high in (("facts", 576), ("passes", np.inf), ("seeds", np.inf), ("other_texts", 12)):
        if values[name].value is not None:
            launcher.check_range(values, name, 1, high)
            given[name] = values[name].value
    launcher.check_range(values, "statements", 1, 3)
    return given | {name: values[name].value for name in ("statements", "methods", "quick")}


def _figures(found: dict[str, Any], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Each outcome with its shares; of the questions that the model answers in context, how many are answered."""
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        outcomes[name] = []
        for seed, outcome in enumerate(found[name]):
            exact, known = np.array(outcome["exact"]), found.get("in_context", [])
            shares = {"answered": float(exact.mean()), "chosen": float(np.mean(outcome["chosen"]))}
            if len(known) > seed and np.any(known[seed]["exact"]):
                shares["of_in_context"] = float(exact[np.array(known[seed]["exact"])].mean())
            outcomes[name].append(outcome | shares)
    return outcomes


def _print(outcomes: dict[str, list[dict[str, Any]]], passes: int, asked: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = [("way", "passes", *COLUMNS, "nats", "seconds")]
    for name, found in outcomes.items():
        cells = [_percent([outcome[key] for outcome in found if key in outcome]) for key in COLUMNS.values()]
        numbers = [launcher.mean_and_spread([o[key] for o in found], 1) for key in ("nats", "seconds")]
        rows.append((name, str(passes) if name in METHODS else "-", *cells, *numbers))
    launcher.print_table(rows)
    counts = [str(len(pairs)) for key, pairs in asked.items() if key != "validation"]
    if counts:
        print(f"Questions that the model asked itself about each document: {', '.join(counts)}.")
    print("In %, mean ± standard deviation over documents; rise: of the perplexity of other text; nats: of an answer.")


def _percent(figures: Sequence[float]) -> str:
    return launcher.mean_and_spread([100 * figure for figure in figures], digits=1) if figures else "-"


def _draw(outcomes: dict[str, list[dict[str, Any]]], workdir: Path) -> None:
    """Draws what was learned against what it cost."""
    figure, axes = new_figure(height=5)
    for name, found in outcomes.items():
        x, y = ([100 * outcome[key] for outcome in found] for key in ("perplexity_rise", "answered"))
        axes.plot(x, y, marker="o", linestyle="", label=name)
    axes.axvline(100 * ALLOWED, color=GRAY, linestyle=":")
    axes.set(xlabel="rise of the perplexity of other text (%)", ylabel="questions answered (%)", ylim=(-3, 103))
    axes.set_xscale("symlog", linthresh=2.0)
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    save_figure(figure, workdir / FIGURE)


if __name__ == "__main__":
    sys.exit(main())
