"""Class-incremental learning on text: can a memory learn classes one group after the other, and keep the first ones?

    python -m experiments.continual.class_incremental --dataset=clinc150 --data_dir=data --workdir=runs/clinc
    python -m experiments.continual.class_incremental --dataset=dbpedia --data_dir=data --workdir=runs/quick --quick
    python -m experiments.continual.class_incremental --dataset=clinc150 --order=domains --data_dir=data \\
        --workdir=runs/domains --methods=ours,levels,levels_no_slow,rls,lda,finetune_adam

Classes arrive in groups (tasks), each example once; there is one growing label space, and no task id. CLINC150 comes as
15 tasks of 10 classes, or as its 10 domains; Banking77 as 7 of 11; DBpedia as 7 of 10. After each task all test texts
of the classes so far are answered. As a control, every method also reads the same examples in shuffled order.

All methods read the same frozen features: the mean hidden state of a pre-trained model after --layer blocks (0: the
mean input embedding, no layer run), standardised by mean and variance of the stream's first 512 examples. Features are
kept in --cache_dir. Settings of each method are chosen on a fifth of the training texts of each class.

ours           memories: naive Bayes counts of words and pairs, plus a memory of the features (chosen by validation)
levels         a fast memory with the delta rule over a slow least-squares memory, consolidated every 512 examples, on
               random Fourier features; levels_no_slow and levels_no_fast switch a level off
hebbian, delta_rule, momentum, retention   first-order matrix memories of the engine
rls, fourier_rls   memories with second-order state: recursive least squares, on the features and on Fourier features
finetune_sgd, finetune_adam, finetune_mlp, ewc, replay_1, replay_5   heads trained by gradient descent on the stream
class_mean, lda, klda                      class means; Gaussians with a shared covariance (lda is also the selection by
                                           Mahalanobis distance of InCA; its candidates are the column "top 3")
tfidf_mean, naive_bayes, complement_naive_bayes   no model at all; naive_bayes_lda: with input embeddings only
joint_logistic, joint_svm                  all classes at once: upper bounds on the features, and on TF-IDF

With --form=text the methods read texts instead, and answer with the label that the model itself finds likeliest:

levels         three levels on the last four MLPs, with updates every 1, 4 and 16 batches, preconditioned by all inputs
               so far; levels_no_slow switches the second and third off, one_level has the same matrices on one
finetune, ewc, replay_1, replay_5          Adam on the same MLPs
in_context, zero_shot                      as many examples as 2,048 tokens hold, each class alike; none
inca           nearest classes by Mahalanobis distance of frozen features, of which the model chooses after examples
joint, joint_levels                        finetune and levels on the examples of all classes in one random order

Settings are then chosen on the first 5 tasks of another order, or taken from another run by --settings_from; --quick
takes 3 tasks and few texts. The features form runs on two cores; the text form wants a GPU, or --train_per_class=16.

Forgetting "beyond rls" is relative to exact least squares, which forgets no example: more classes compete in the end.

--quick takes the input embedding, one order and the first setting of each method.

The same command resumes a stopped run, method by method. The workdir gets config.json, metrics.jsonl (accuracy after
each task), results.json (settings, figures and accuracy matrices), accuracy_matrix.png, forgetting.png and features/.
"""

import functools
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
from experiments.continual_methods import report
from experiments.continual_methods.comparison import Comparison, joint_outcome, stream_outcome, validation_accuracy
from experiments.continual_methods.learner import grams_of
from experiments.continual_methods.runs import (
    Run,
    choose_settings,
    make_runs,
    missing_runs,
    runs_of,
    take_first_settings,
    write_accuracies,
)
from experiments.continual_methods.streams import Inputs
from experiments.continual_methods.table import JOINT, METHODS, NAMES
from experiments.continual_methods.text_run import run_texts, taken_settings
from experiments.continual_methods.text_table import TEXT_NAMES
from nl_jax import InputError
from nl_jax.data.class_streams import ORDERS, class_tasks
from nl_jax.data.labelled import LABELLED_DATA, LabelledData, LabelledTexts, load_labelled
from nl_jax.pretrained import Pretrained, cached_features, mean_features
from nl_jax.training import progress_bar

NAME = "continual.class_incremental"
TASKS = {"clinc150": 15, "banking77": 7, "dbpedia": 7}
FORMS = ("features", "text")
QUICK_TEXTS = {"first_tasks": 3, "train_per_class": 8, "test_per_class": 2}
LAYER = 8  # of SmolLM2's 30: the best on CLINC150's validation texts, of 0, 3, 5 and 8


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define_workdir(values)
    define(define_path, "data_dir", None, "Directory with the folders clinc150, banking77 and dbpedia.")
    define_pretrained(values)
    define(define_path, "cache_dir", None, "Directory of extracted features, which runs may share. Default: workdir.")
    for name, known, text in (
        ("dataset", list(LABELLED_DATA), "Data set"),
        ("order", list(ORDERS), "Classes of a task"),
    ):
        flags.DEFINE_enum(name, known[0], known, f"{text}: {', '.join(known)}.", flag_values=values)
    define(flags.DEFINE_integer, "tasks", None, "Number of tasks of a mixed order. Default: 15 for clinc150, else 7.")
    define(flags.DEFINE_integer, "layer", None, f"Blocks of the model to run for features. Default: {LAYER}.")
    define(flags.DEFINE_integer, "seeds", None, "Orders of the classes. Default: 3.")
    define(flags.DEFINE_list, "methods", None, "Methods, in the order of the table. Default: all of the form.")
    text = "What methods read: features of a frozen model, or texts, which the model itself learns and answers."
    flags.DEFINE_enum("form", FORMS[0], FORMS, text, flag_values=values)
    for split, use in (("train", "Training"), ("test", "Test")):
        text = f"{use} texts of a class at most, with --form=text. Default: all."
        define(flags.DEFINE_integer, f"{split}_per_class", None, text)
    text = "File results.json of a run with --form=text, whose settings are taken."
    define(define_path, "settings_from", None, text)
    define(flags.DEFINE_bool, "quick", False, "Input embeddings, one order, no choice of settings: within 5 minutes.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(compare, define_flags(), __doc__, argv)


def compare(values: flags.FlagValues) -> None:
    """Runs every method that is missing, prints the table and draws the figures. All checks come first."""
    workdir = launcher.own_workdir(values)
    given = _checked(values)
    if not values.data_dir:
        raise InputError("--data_dir: missing; expected a directory with clinc150, banking77 and dbpedia")
    taken_settings(values, given["methods"])  # raises an error if some are missing
    data = load_labelled(values.dataset, values.data_dir)
    class_tasks(data, values.order, given["tasks"], 0)  # raises an error if the classes cannot be cut so
    pretrained = read_pretrained(values.pretrained)
    layers = pretrained.model.config.num_layers
    if given.get("layer", 0) > layers:
        raise InputError(f"--layer={given['layer']}: expected 0 to {layers}, the blocks of the model")
    config = {
        "launcher": NAME,
        "flags": given,
        "data": {values.dataset: data.fingerprint},
        "models": models_of(pretrained, given.get("layer", layers)),
    }
    metadata = {"inputs": launcher.inputs_of(values), "settings": {}, "figures": {}}
    written = (report.MATRICES, report.CURVES)
    results = launcher.claim_workdir(workdir, config, metadata, written)
    methods, figures = given["methods"], results["figures"]
    if values.form == "text":
        run_texts(values, given, data, pretrained, workdir, results)
    elif missing_runs(_runs(methods, given["seeds"]), results):
        cache = Path(values.cache_dir) if values.cache_dir else workdir / "features"
        train, test = inputs_of(pretrained, data, given["layer"], cache)
        comparison = Comparison(data, train, test, values.order, given["tasks"])
        del pretrained  # half a gigabyte
        _choose(comparison, methods, values.quick, workdir, results)
        _run(comparison, methods, given["seeds"], workdir, results)
    outcomes = {name: figures[name] for name in methods}
    report.draw(workdir, outcomes)
    report.print_outcomes(outcomes)
    files = [RESULTS, *sorted(path.name for path in workdir.glob("*.png"))]
    print(f"Everything is in {workdir}: {', '.join(files)}")


def _checked(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that a run keeps, with their defaults filled in; raises `InputError` for a bad one."""
    text = values.form == "text"
    methods = list(TEXT_NAMES if text else NAMES) if values.methods is None else values.methods
    launcher.check_names("methods", methods, TEXT_NAMES if text else NAMES, required=True)
    defaults: dict[str, Any] = {"tasks": TASKS[values.dataset], "seeds": 1 if values.quick else 3}
    own: dict[str, Any] = {"layer": 0 if values.quick else LAYER}
    texts = dict.fromkeys(QUICK_TEXTS, None) | (QUICK_TEXTS if values.quick else {})
    others = own if text else {name: None for name in (*texts, "settings_from") if name in values}
    defaults |= texts if text else own
    for name, low in (("tasks", 2), ("layer", 0), ("seeds", 1), ("train_per_class", 1), ("test_per_class", 1)):
        if values[name].value is not None:
            launcher.check_range(values, name, low)
            defaults[name] = values[name].value
    for name in others:
        if values[name].value is not None:
            raise InputError(f"--{name}={values[name].value}: not with --form={values.form}")
    fixed = {name: values[name].value for name in ("dataset", "order", "form", "quick")}
    return fixed | {"methods": methods} | defaults


def inputs_of(pretrained: Pretrained, data: LabelledData, layer: int, cache: Path) -> tuple[Inputs, Inputs]:
    """Training and test texts in every form that methods read."""
    splits = (data.test, data.train)  # the smaller first, so that what goes wrong goes wrong soon
    ids = [[pretrained.encode(text) for text in split.texts] for split in splits]
    found = []
    with progress_bar(f"features of layer {layer}", sum(len(text) for split in ids for text in split)) as bar:
        for split, tokens in zip(splits, ids, strict=True):
            embeddings = mean_features(pretrained.model, tokens, 0)
            features = cached_features(pretrained.model, tokens, layer, cache, bar.update) if layer else embeddings
            found.append(_inputs(split, features, embeddings))
    return found[1], found[0]


def _inputs(split: LabelledTexts, features: np.ndarray, embeddings: np.ndarray) -> Inputs:
    return Inputs(split.texts, split.labels, grams_of(split.texts), features, embeddings)


def _choose(
    comparison: Comparison, methods: Sequence[str], quick: bool, workdir: Path, results: dict[str, Any]
) -> None:
    """Chooses the setting of each method, and writes it."""

    def settings_of(name: str) -> Sequence[Any]:
        return (METHODS[name] if name in METHODS else JOINT[name]).settings

    if quick:
        take_first_settings(methods, settings_of, results)
    else:
        accuracy = functools.partial(validation_accuracy, comparison)
        choose_settings(methods, settings_of, accuracy, float, workdir, results)


def _runs(methods: Sequence[str], seeds: int) -> list[Run]:
    """All runs; methods that see all classes at once have one."""
    return [(name, seed) for name, seed in runs_of(methods, seeds) if name in METHODS or seed == 0]


def _run(comparison: Comparison, methods: Sequence[str], seeds: int, workdir: Path, results: dict[str, Any]) -> None:
    """Runs every method on every order that is missing, and writes its figures at once."""

    def outcome_of(name: str, seed: int) -> dict[str, Any]:
        setting = results["settings"][name]["setting"]
        if name in JOINT:
            classes = len(comparison.data.classes)
            return joint_outcome(name, setting, comparison.train, comparison.test, classes)
        outcome = stream_outcome(comparison, name, setting, seed)
        write_accuracies(workdir, f"{name}/order_{seed}", outcome)
        return outcome

    make_runs("streams", "order", _runs(methods, seeds), outcome_of, workdir, results)


if __name__ == "__main__":
    sys.exit(main())
