"""Lets a pre-trained model learn from texts and labelled examples, and keeps what it has learned in a workdir.

    python -m experiments.learn --workdir=runs/mine notes.txt examples.csv
    cat more.txt | python -m experiments.learn --workdir=runs/mine

A .csv, .tsv or .jsonl file has a row for each example: the text in --text_column and, if there is such a column, its
label in --label_column. Any other file is plain text, whose paragraphs are learned one after the other. Standard input
is read where no file is given; it is kept in WORKDIR/received until it is learned.

What is learned are changes of some weights of the model, on levels with their own update frequencies (--levels).
Everything is saved after --save_every examples and at the end, with the place that was reached in each file. So the
same command goes on after a crash, and later commands with other files go on from the same workdir; a file that was
learned already is not learned again, unless --passes asks for more. Ask what was learned by experiments.ask.

A file whose learning has ended is protected by levels that do so: when they learn other files, their steps spare what
the inputs of their weights were in this one.

    python -m experiments.learn --workdir=runs/mine --levels='last:blocks=-2..-1,rule=adam,protects=true' examples.csv

What is learned as text is seldom found by a question. With --ask_itself the model first asks itself questions about
each sentence of plain text, answers them while it sees the text, and learns these answers; rows with a label are
questions with their answers. That takes some 5 to 10 seconds a sentence with SmolLM2 on two cores.

A line shows the number of examples learned, the loss before they were learned, and for each level the norm of its
gradient (surprise) and its updates. The workdir gets config.json, metrics.jsonl, results.json and learned/.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.learner_runs import (
    LEARNED,
    NAME,
    OWN_MODEL,
    given_text,
    load_model,
    restored,
)
from experiments.common.level_flags import define_levels_flag, fields_of, levels_of
from experiments.common.path_flags import define_paths, define_workdir
from experiments.common.pretrained_flag import define_pretrained, models_of
from experiments.common.words import WithWords
from nl_jax import InputError
from nl_jax.data.examples import Example, examples_of, is_table, read_examples, sentences
from nl_jax.files import in_place_of, local_path
from nl_jax.pretrained import Pretrained, stack_levels
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.continual_learner import QUESTION
from nl_jax.streaming.own_questions import as_question, self_questions
from nl_jax.training import progress_bar
from nl_jax.training.metrics import MetricsWriter

RECEIVED = "received"
ASKED_PASSES = 4  # after which the model answers its own questions
ASKED_TOGETHER = 48  # sentences; answers are looked for among those near them
COLUMNS = {"text_column": "text", "label_column": "label"}
FORMS = {"text": ".txt", "csv": ".csv", "jsonl": ".jsonl"}  # of standard input


class Source(NamedTuple):
    """What is to be learned from one file."""

    name: str
    sha256: str  # of its content
    examples: list[Example]


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = WithWords("files")

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define_workdir(values)
    define_pretrained(values, OWN_MODEL)
    define(define_paths, "files", [], "Files to learn; also the words of the command line. Default: standard input.")
    define(flags.DEFINE_string, "text_column", COLUMNS["text_column"], "Name of the column with texts.")
    define(flags.DEFINE_string, "label_column", COLUMNS["label_column"], "Name of the column with labels.")
    flags.DEFINE_enum("form", "text", list(FORMS), f"Form of standard input: {', '.join(FORMS)}.", flag_values=values)
    define_levels_flag(values)
    text = "Learn plain text by the answers to questions that the model asks itself about its sentences."
    define(flags.DEFINE_bool, "ask_itself", False, text)
    text = f"Times that everything given is to be learned in all. Default: 1, with --ask_itself {ASKED_PASSES}."
    define(flags.DEFINE_integer, "passes", None, text)
    define(flags.DEFINE_integer, "batch_size", 16, "Examples that are read together, and learned in one step.")
    define(flags.DEFINE_integer, "chunk", 128, "Tokens of a text after which what was read is learned.")
    define(flags.DEFINE_integer, "save_every", 256, "Examples after which everything is saved.")
    text = "Text that the label of an example follows, with {text} in it."
    define(flags.DEFINE_string, "question", QUESTION, text)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(learn, define_flags(), __doc__, argv)


def learn(values: flags.FlagValues) -> None:
    """Learns what is new in the files. All checks come before any compilation."""
    workdir = launcher.own_workdir(values)
    stored = launcher.read_config(workdir, NAME, written=(RESULTS, LEARNED, RECEIVED))
    if values.passes is None:
        values["passes"].value = ASKED_PASSES if values.ask_itself else 1
    for name in ("passes", "batch_size", "chunk", "save_every"):
        launcher.check_range(values, name, 1)
    if values.ask_itself and values["question"].present:
        raise InputError(f"--question={values.question}: given with --ask_itself, which has its own; expected one")
    if "{text}" not in values.question:
        raise InputError(f"--question={values.question}: expected {{text}} in it, where the text of an example stands")
    levels = levels_of(values.levels)
    given = {name: values[name].value for name in ("batch_size", "chunk", "question")} | {"levels": fields_of(levels)}
    if values.ask_itself:
        given |= {"question": as_question("{text}"), "ask_itself": True}
    if stored:
        launcher.check_flags(workdir, stored["flags"], given)
    sources = [_source(path, values) for path in values.files]
    received: list[Example] = []
    if not sources:
        name = "stdin" + FORMS[values.form]
        received = examples_of(given_text("files"), name, **_columns(values))
        _check_labels(name, received, values)
    pretrained = load_model(values, stored)
    if levels:
        try:
            stack_levels(pretrained.model, levels)
        except InputError as error:
            raise InputError(f"--levels={values.levels}: {error}") from error
    inputs = (stored or {}).get("inputs") or launcher.inputs_of(values)
    config = {"launcher": NAME, "flags": given, "data": {}, "models": models_of(pretrained), "inputs": inputs}
    results = launcher.claim_workdir(workdir, config, {"figures": {}}, (LEARNED, RECEIVED))
    if received:
        _keep(workdir / RECEIVED, received)
    learner = restored(workdir, pretrained, given)
    sources = [*_waiting(workdir / RECEIVED), *sources]
    if values.ask_itself:
        sources = [_asked(learner, source, pretrained, workdir / LEARNED) for source in sources]
    if all(_is_learned(learner, source, values.passes) for source in sources):
        writing: Any = contextlib.nullcontext()  # no record of a run in which nothing happens
    else:
        writing = MetricsWriter(workdir, "learner", learner.notes.get("batches", 0))
    with writing as writer:
        for source in sources:  # of which one may be given twice
            if _is_learned(learner, source, values.passes):
                done = learner.notes["files"][source.sha256]["done"]
                if source.examples:
                    launcher.say(f"{source.name}: {done} examples were learned already; --passes asks for more")
            else:
                _learn(learner, source, values, workdir / LEARNED, writer)
            _protect(learner, source, values.batch_size, workdir / LEARNED)
    _forget_received(workdir / RECEIVED, sources)
    results["figures"] = figures_of(learner)
    launcher.write_json(workdir / RESULTS, results)
    _print(results["figures"])
    print(f"Everything is in {workdir}: {RESULTS}, metrics.jsonl, {LEARNED}/")


def _columns(values: flags.FlagValues) -> dict[str, str]:
    return {"text_column": values.text_column, "label_column": values.label_column}


def _source(path: str, values: flags.FlagValues) -> Source:
    columns = _columns(values)
    examples = read_examples(path, **columns)
    _check_labels(path, examples, values)
    digest = hashlib.sha256(local_path(path).read_bytes())
    if is_table(path) and columns != COLUMNS:  # other columns are other examples
        digest.update(json.dumps(columns).encode())
    return Source(path, digest.hexdigest(), examples)


def _check_labels(name: str, examples: list[Example], values: flags.FlagValues) -> None:
    """Says that a table has no labels; raises `InputError` where the command line names their column."""
    if not is_table(name) or not isinstance(examples[0], str):
        return
    if values["label_column"].present:
        raise InputError(f"{name}: no column {values.label_column!r}; expected it, since --label_column names it")
    launcher.say(f"{name}: {len(examples)} texts without labels; --label_column names their column, if it is another")


def _keep(folder: Path, examples: list[Example]) -> None:
    """Writes what came on standard input, before it is learned, so that later flags need not say how to read it."""
    folder.mkdir(exist_ok=True)
    rows = [{"text": e} if isinstance(e, str) else dict(zip(("text", "label"), e, strict=True)) for e in examples]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    with in_place_of(folder / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl") as temporary:
        temporary.write_bytes(content)


def _waiting(folder: Path) -> Iterator[Source]:
    """What came on standard input and was not learned to its end yet."""
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=os.path.getmtime):
            if path.suffix in FORMS.values():
                yield Source(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), read_examples(path))


def _forget_received(folder: Path, sources: list[Source]) -> None:
    for source in sources:
        if Path(source.name).parent == folder and source.examples:
            Path(source.name).unlink(missing_ok=True)


def _asked(learner: ContinualLearner, source: Source, pretrained: Pretrained, saved: Path) -> Source:
    """The source with the answers to the model's own questions in the place of its texts; it asks itself once.

    It asks itself about some sentences after the other, and what it has asked is saved.
    """
    entry = learner.notes.setdefault("files", {}).setdefault(source.sha256, {"name": source.name, "done": 0})
    texts = [sentence for text in source.examples if isinstance(text, str) for sentence in sentences(text)]
    begun = entry.get("sentences", len(texts) if "asked" in entry else 0)
    shown = f"questions about {Path(source.name).name}"
    bar: Any
    with progress_bar(shown, len(texts), begun) if begun < len(texts) else contextlib.nullcontext() as bar:
        for start in range(begun, len(texts), ASKED_TOGETHER):
            part = texts[start : start + ASKED_TOGETHER]

            def told(count: int, start: int = start) -> None:
                bar.update(start + count - bar.n)

            found = self_questions(pretrained.model, pretrained.tokenizer, part, told=told)
            entry["asked"] = [*entry.get("asked", ()), *found]
            entry["sentences"] = start + len(part)
            learner.save(saved)
    asked, pairs = entry.get("asked", []), [example for example in source.examples if not isinstance(example, str)]
    if texts:
        launcher.say(f"{source.name}: {len(asked)} questions about {len(texts)} sentences")
    if texts and not asked:
        launcher.say(f"{source.name}: the model finds nothing to ask there; without --ask_itself it is learned as text")
        del entry["asked"], entry["sentences"]  # the next command asks anew
        learner.save(saved)
    return source._replace(examples=[*pairs, *((question, answer) for question, answer in asked)])


def _is_learned(learner: ContinualLearner, source: Source, passes: int) -> bool:
    """Whether nothing of a source is left to learn."""
    files = learner.notes.get("files", {})
    return source.sha256 in files and files[source.sha256]["done"] >= passes * len(source.examples)


def _learn(
    learner: ContinualLearner, source: Source, values: flags.FlagValues, saved: Path, writer: MetricsWriter
) -> None:
    """Learns a source from where it was left, and saves the learner."""
    notes = learner.notes
    entry = notes.setdefault("files", {}).setdefault(source.sha256, {"name": source.name, "done": 0})
    size, total = len(source.examples), values.passes * len(source.examples)
    unsaved = 0
    with progress_bar(Path(source.name).name, total, entry["done"]) as bar:
        try:
            while entry["done"] < total:
                start = entry["done"] % size
                part = source.examples[start : min(start + values.batch_size, size)]
                row = _learn_batch(learner, part)
                entry["done"] += len(part)
                unsaved += len(part)
                bar.update(len(part))
                bar.set_postfix_str(f"loss {row['loss']:.3f}")
                writer.write(notes["batches"], notes["tokens"], row)
                if unsaved >= values.save_every and entry["done"] < total:
                    learner.save(saved)
                    unsaved = 0
                    print(f"{notes['examples']:>8,} examples  {_line(row)}", flush=True)
        finally:
            learner.save(saved)
    print(f"{source.name}: {entry['done']:,} examples learned  {_line(row)}", flush=True)


def _protect(learner: ContinualLearner, source: Source, batch_size: int, saved: Path) -> None:
    """Protects a source that was learned, once, if there are levels that do so, and saves the learner."""
    entry = learner.notes["files"][source.sha256]
    if entry.get("protected") or not any(level.protects for level in learner.levels):
        return
    with progress_bar(f"protecting {Path(source.name).name}", len(source.examples)) as bar:
        for start in range(0, len(source.examples), batch_size):
            learner.protect(source.examples[start : start + batch_size])
            bar.update(batch_size)
    entry["protected"] = True
    learner.save(saved)


def _learn_batch(learner: ContinualLearner, part: list[Example]) -> dict[str, float]:
    """Learns a few examples, adds to the notes, and returns a row of metrics."""
    notes, before = learner.notes, learner.snapshot()
    try:
        learned = learner.learn(part)
    except BaseException:
        learner.rollback(before)  # so that what is saved is whole batches
        raise
    for name, value in (("batches", 1), ("examples", learned.examples), ("tokens", learned.tokens)):
        notes[name] = notes.get(name, 0) + value
    notes["nats"] = notes.get("nats", 0.0) + (learned.loss * learned.tokens if learned.tokens else 0.0)
    levels = notes.setdefault("levels", {})
    row = {"loss": learned.loss}
    for level, surprise in learned.surprise.items():
        sums = levels.setdefault(level, {"updates": 0, "surprise": 0.0})
        sums["updates"] += learned.updated[level]
        sums["surprise"] += surprise
        row |= {f"surprise/{level}": surprise, f"updates/{level}": learned.updated[level]}
    return row


def _line(row: dict[str, float]) -> str:
    levels = [name.partition("/")[2] for name in row if name.startswith("surprise/")]
    told = (f"{name} surprise {row[f'surprise/{name}']:.3g}, {row[f'updates/{name}']:g} updates" for name in levels)
    return f"loss {row['loss']:.3f} nats  {'  '.join(told)}"


def figures_of(learner: ContinualLearner) -> dict[str, Any]:
    """What the learner has learned since the workdir is new."""
    notes = learner.notes
    batches, tokens = notes.get("batches", 0), notes.get("tokens", 0)
    levels = {
        name: {"updates": sums["updates"], "surprise": sums["surprise"] / batches}
        for name, sums in notes.get("levels", {}).items()
    }
    return {
        "examples": notes.get("examples", 0),
        "tokens": tokens,
        "loss": notes["nats"] / tokens if tokens else math.nan,
        "labels": list(learner.labels),
        "levels": levels,
        "files": notes.get("files", {}),
    }


def _print(figures: dict[str, Any]) -> None:
    """The table of the levels."""
    rows = [("level", "updates", "surprise")]
    rows += [(name, f"{own['updates']:,}", f"{own['surprise']:.3g}") for name, own in figures["levels"].items()]
    launcher.print_table(rows)
    labels = f", {len(figures['labels'])} labels" if figures["labels"] else ""
    print(
        f"{figures['examples']:,} examples learned in all, {figures['tokens']:,} tokens{labels}; "
        f"loss before learning {figures['loss']:.3f} nats a token"
    )


if __name__ == "__main__":
    sys.exit(main())
