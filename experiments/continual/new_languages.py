"""Two new languages, one after the other: does a model still translate the first when it has learned the second?

    python -m experiments.continual.new_languages --workdir=runs/languages
    python -m experiments.continual.new_languages --workdir=runs/quick --quick
    python -m experiments.continual.new_languages --pairs_a=a.tsv --pairs_b=b.tsv --workdir=runs/real

By default the languages are invented: --words roots, a word order, and affixes for plural, object and past, all drawn
by seed; English is their translation. --pairs_a and --pairs_b take real text, in each line a sentence, a tab and its
English. Sentences that are tested are never learned. No question says which language it is in.

guess             random English sentences of those that are learned: what knowing only English reaches
without           the model as it is, before it learns
in_context        the sentences, the last that fit into --window tokens, stand before every question
levels_1          the sentences are learned --passes times by one level on all MLPs, by Adam: this is fine-tuning
levels_2          two levels, each on half of the hidden units, which are updated after 1 and 4 batches
levels_3          three levels, after 1, 4 and 16 batches
levels_1_protected, levels_3_protected
                  as levels_1 and levels_3. When A has been learned its sentences are read once more, and the products
                  of each matrix's inputs are summed; steps for B then spare these inputs, by the inverse of the sum
                  (as in Eq. 46-47). No text is kept, but the end of a language has to be told
levels_3_no_slow  as levels_3, but only the first one learns

Each language is learned alone, and A and then B in one stream. Translations are sampled greedily and scored by chrF;
what is kept is chrF after both, divided by chrF alone. Each way is tuned alike: the learning rate is chosen of two, on
two other invented languages, for the mean chrF on both after both; levels_2 and the others of three levels take that of
levels_3.

--quick takes 48 sentences of each language, 10 tests, one seed and the first setting. It shows that everything runs;
48 sentences are few, and chrF may be no higher than that of a guess.

The same command resumes a stopped run. The workdir gets config.json, metrics.jsonl (each pass), results.json and
languages.png.
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
from experiments.continual_methods.runs import (
    choose_settings,
    make_runs,
    missing_runs,
    runs_of,
    take_first_settings,
    tuned,
)
from experiments.continual_methods.translation import (
    METHODS,
    VALIDATION_SEED,
    Pair,
    ParallelText,
    chrf,
    drawn,
    generated,
    guessed,
    in_context,
    learned_by,
    most_pairs,
    read_pairs,
    without_learning,
)
from nl_jax import InputError
from nl_jax.data.corpus import fingerprint
from nl_jax.data.reading import Document as File
from nl_jax.plotting import COLORS, GRAY, new_figure, save_figure
from nl_jax.pretrained import Pretrained
from nl_jax.training.metrics import MetricsWriter

NAME = "continual.new_languages"
FIGURE = "languages.png"
NAMES = ("guess", "without", "in_context", *METHODS)
DEFAULTS = {"sentences": 100, "tests": 20, "passes": 4, "seeds": 3, "window": 2048}
QUICK = {"sentences": 48, "tests": 10, "passes": 2, "seeds": 1, "window": 1024}


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define_workdir(values)
    define_pretrained(values)
    for name in ("pairs_a", "pairs_b"):
        text = (
            f"File of language {name[-1].upper()}: a sentence, a tab and its English in each line. Default: invented."
        )
        define(define_path, name, None, text)
    for name, text in (
        ("sentences", "Sentences of each language that are learned."),
        ("tests", "Sentences of each language that are translated in the test."),
        ("passes", "Times that the sentences are learned."),
        ("seeds", "Pairs of invented languages, or draws from the given pairs."),
        ("window", "Tokens of sentences that in_context reads before every question, at most."),
    ):
        define(flags.DEFINE_integer, name, None, f"{text} Default: {DEFAULTS[name]}.")
    define(flags.DEFINE_integer, "words", 10, "Words of each invented language, 10 to 60.")
    define(flags.DEFINE_list, "methods", list(NAMES), "Rows of the table.")
    define(flags.DEFINE_bool, "quick", False, "A small comparison, without a choice of settings.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(compare, define_flags(), __doc__, argv)


class Comparison:
    """One run: the model, the languages, and what is measured; ``results`` are written after each outcome."""

    def __init__(self, given: dict[str, Any], pairs: Sequence[list[Pair]], workdir: Path):
        self.given, self.pairs, self.workdir = given, pairs, workdir

    def texts(self, seed: int) -> list[ParallelText]:
        """The sentences of a seed."""
        sizes = self.given["sentences"], self.given["tests"]
        if self.pairs:
            return drawn(self.pairs, seed, *sizes)
        return generated(seed, *sizes, self.given["words"])

    def run(self, pretrained: Pretrained, results: dict[str, Any]) -> None:
        """Measures all that is missing."""
        runs = runs_of(self.given["methods"], self.given["seeds"])
        if not missing_runs(runs, results):
            return
        self._choose(pretrained, results)

        def outcome_of(name: str, seed: int) -> dict[str, Any]:
            return self._outcome(pretrained, name, seed, results["settings"])

        make_runs("languages", "seed", runs, outcome_of, self.workdir, results)

    def _choose(self, pretrained: Pretrained, results: dict[str, Any]) -> None:
        """Chooses the setting of each method on two languages of their own."""
        names = list(dict.fromkeys(tuned(METHODS, n) for n in self.given["methods"] if n in METHODS))
        if self.given["quick"]:
            take_first_settings(names, _settings, results)
            return
        most, words = most_pairs(self.given["words"]), self.given["words"]  # pairs from files can be more
        tests = min(self.given["tests"], most // 2)
        texts = generated(VALIDATION_SEED, min(self.given["sentences"], most - tests), tests, words)
        passes = self.given["passes"]

        def outcome_of(name: str, setting: dict[str, Any]) -> dict[str, Any]:
            run = METHODS[name], setting, pretrained, texts, passes, 0, lambda *_: None
            return learned_by(*run, b_alone=False)  # the choice is by what is left after both

        choose_settings(names, _settings, outcome_of, _preference, self.workdir, results)

    def _outcome(self, pretrained: Pretrained, name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        """chrF on both languages, alone and in sequence."""
        texts = self.texts(seed)
        if name == "guess":
            return guessed(texts, seed)
        if name == "without":
            return without_learning(pretrained, texts)
        if name == "in_context":
            return in_context(pretrained, texts, self.given["window"])
        method = METHODS[name]
        setting = settings[tuned(METHODS, name)]["setting"]
        with MetricsWriter(self.workdir, f"{name}/seed_{seed}") as writer:
            return learned_by(
                method,
                setting,
                pretrained,
                texts,
                self.given["passes"],
                seed,
                lambda number, row: writer.write(number, 0, row),
            )


def _settings(name: str) -> Sequence[dict[str, Any]]:
    return METHODS[name].settings


def _preference(outcome: dict[str, Any]) -> float:
    """What makes one setting better than another."""
    return float(np.mean(outcome["sequence"]))


def compare(values: flags.FlagValues) -> None:
    """Runs all that is missing, prints the table and draws the figure. All checks come first."""
    workdir = launcher.own_workdir(values)
    given = _checked(values)
    paths = [path for path in (values.pairs_a, values.pairs_b) if path]
    comparison = Comparison(given, [read_pairs(path, given["sentences"] + given["tests"]) for path in paths], workdir)
    comparison.texts(0)  # raises an error if there are not enough sentences
    chrf(["a"], ["a"])  # or if sacrebleu is missing
    pretrained = read_pretrained(values.pretrained)
    config = {
        "launcher": NAME,
        "flags": given,
        "data": fingerprint([File(path, Path(path).read_bytes()) for path in paths]) if paths else {},
        "models": models_of(pretrained),
    }
    metadata = {"inputs": launcher.inputs_of(values), "settings": {}, "figures": {}}
    results = launcher.claim_workdir(workdir, config, metadata, (FIGURE,))
    comparison.run(pretrained, results)
    outcomes = {name: results["figures"][name] for name in given["methods"]}
    _print(outcomes)
    _draw(outcomes, workdir)
    print(f"Everything is in {workdir}: {RESULTS}, {FIGURE}")


def _checked(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that a run keeps, with their defaults filled in; raises `InputError` for a bad one."""
    launcher.check_names("methods", values.methods, NAMES, required=True)
    if bool(values.pairs_a) != bool(values.pairs_b):
        missing, other = ("pairs_b", "pairs_a") if values.pairs_a else ("pairs_a", "pairs_b")
        raise InputError(f"--{missing}: missing; expected it with --{other}")
    given: dict[str, Any] = dict(QUICK if values.quick else DEFAULTS)
    for name in DEFAULTS:
        if values[name].value is not None:
            launcher.check_range(values, name, 1)
            given[name] = values[name].value
    launcher.check_range(values, "words", 10, 60)
    return given | {name: values[name].value for name in ("words", "methods", "quick")}


def _kept(outcome: dict[str, Any]) -> list[float]:
    """In %: chrF on A and on B after both, of that when learned alone."""
    return [100 * both / max(one, 1e-9) for both, one in zip(outcome["sequence"], outcome["alone"], strict=True)]


def _print(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    languages = ("A alone", "A after both", "kept %", "B alone", "B after both", "kept %")
    rows: list[tuple[str, ...]] = [("way", *languages, "seconds")]
    for name, found in outcomes.items():
        cells = []
        for language in (0, 1):
            for figures in (
                [outcome["alone"][language] for outcome in found],
                [outcome["sequence"][language] for outcome in found],
                [_kept(outcome)[language] for outcome in found],
            ):
                cells.append(launcher.mean_and_spread(figures, digits=1))
        rows.append((name, *cells, launcher.mean_and_spread([outcome["seconds"] for outcome in found], digits=0)))
    launcher.print_table(rows)
    print("chrF, mean ± standard deviation over seeds.")
    for name, found in outcomes.items():
        if diverged := sum(outcome["diverged"] for outcome in found):
            print(f"{name}: {diverged} passes diverged; what was learned before is kept.")


def _draw(outcomes: dict[str, list[dict[str, Any]]], workdir: Path) -> None:
    """Draws chrF on one language against chrF on the other, alone and in sequence."""
    figure, axes = new_figure(height=7)
    for place, (name, found) in enumerate(outcomes.items()):
        color = COLORS[place % len(COLORS)]
        alone, both = (np.mean([outcome[key] for outcome in found], axis=0) for key in ("alone", "sequence"))
        axes.plot(*np.stack([alone, both], axis=1), "-", color=color, alpha=0.5)
        axes.plot(*alone, "o", color=color, fillstyle="none")
        axes.plot(*both, "o", color=color, label=name)
        for outcome in found:
            axes.plot(*outcome["sequence"], ".", color=color, alpha=0.4)
    axes.plot([], [], "o", color=GRAY, fillstyle="none", label="each alone")
    axes.set(xlabel="chrF on language A", ylabel="chrF on language B", xlim=(-3, 103), ylim=(-3, 103))
    axes.legend(title="A, then B")
    save_figure(figure, workdir / FIGURE)


if __name__ == "__main__":
    sys.exit(main())
