"""Do levels that learn in context recover faster when the subject of a text changes?

    python -m experiments.subjects --workdir=runs/subjects
    python -m experiments.subjects --workdir=runs/mine --texts=law.txt,poems.txt --data=~/texts --regimes=meta,outer

Models are trained anew for every seed with the same number of parameters, tokens and optimizer, on text that is not in
the streams. Then each model reads streams that change subject unannounced (prose, code, docstrings, and prose again),
and come back to the first subject with new text. The readers are:

meta          the continuum memory (CMS) keeps learning in context, as in training (online: likewise, first order);
meta_frozen   the same weights, but the CMS stays as training left it;
meta_stopped  the same weights, but the CMS learns in the first part only;
outer         a model trained with a CMS that never learns in context.

The memories of the sequence mixers learn in all readers. Bits per byte are given for the first bytes after each change
and for the rest of the part. A reader has recovered when the mean over the last 256 bytes (and all streams) is within
5 % of a level: its own mean over the last quarter of the part, or that of the best reader.

Without --texts and --data all text comes with Python. Training uses one half of the language reference and as many
bytes of code. The streams use the other half (prose), other modules (code), and the docstrings of further modules.

The same command resumes a stopped run. The workdir gets config.json (the configuration), metrics.jsonl (every training
step), subjects.png (bits per byte against position), results.json (figures of each seed), and
REGIME/seed_N/checkpoints and tensorboard.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from jaxtyping import Array, Float, UInt8

from experiments.common import launcher
from experiments.common.cms_options import cms_fields
from experiments.common.host_flags import remove_host_flags
from experiments.common.launcher import RESULTS
from experiments.common.mixer_options import configuration
from experiments.common.path_flags import define_paths
from experiments.common.text_runs import (
    batches_of,
    check,
    evaluation_sizes,
    fit_model,
    fixed_flags,
    flags_with_seeds,
)
from experiments.subject_changes.texts import cut_streams, texts_of
from nl_jax import InputError
from nl_jax.data import (
    ByteTokenizer,
    Document,
    evaluation_batches,
    fingerprint,
)
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.chunk import diverged_levels
from nl_jax.models.in_context import initial_state, read_and_learn, with_learned
from nl_jax.plotting import COLORS, GRAY, label_curves, new_figure, plot_band, save_figure
from nl_jax.training import TrainingDiverged, progress_bar
from nl_jax.training.metrics import METRICS

NAME = "subjects"
PLOT = "subjects.png"
REGIMES = ("meta", "online", "outer")
WINDOWS = (256, 1024, 4096)  # numbers of bytes after a change
BIN = 64  # number of bytes per point of a stored curve
RUNNING, TOLERANCE = 256, 0.05  # definition of recovery: bytes of the running mean, and relative distance to the level
CURVE, LEVEL = f"bits_by_{BIN}_bytes", "last quarter"
VALIDATION_TOKENS = 16_384
DEFAULTS = {
    "optimizer": "adamw",
    "steps": 200,
    "batch_size": 1,
    "seq_len": 1024,
    "cms_levels": "16,64,256",
    "eval_every": 200,
    "checkpoint_every": 50,
}


def define_flags() -> flags.FlagValues:
    """The flags of the language model's launcher with other defaults, and the flags of the streams."""
    values = flags_with_seeds("Runs of each model", DEFAULTS)
    remove_host_flags(values)
    for name in ("models", "cms_regime", "tokenizer"):
        delattr(values, name)

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(flags.DEFINE_string, "model", "hope", "The model, which must have a CMS of several levels.")
    define(flags.DEFINE_list, "regimes", "meta,outer", f"How the CMS learns in training, of {', '.join(REGIMES)}.")
    define(define_paths, "texts", None, "Files or directories, one for each subject. Default: Python's texts.")
    define(flags.DEFINE_integer, "part", 8192, "Bytes of each subject, before it changes.")
    define(flags.DEFINE_integer, "streams", 8, "Streams read side by side, each from other places in the texts.")
    values["data"].help = "Text to train on: file, directory or .jsonl. Default: reference and code, as above."
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(train, define_flags(), __doc__, argv)


def train(values: flags.FlagValues) -> None:
    """Makes all runs that are missing, prints the tables and draws the plot. All checks come first."""
    workdir = launcher.own_workdir(values)
    for name, low in (("seeds", 1), ("streams", 1), ("part", 2 * RUNNING)):
        launcher.check_range(values, name, low)
    mesh = check(values)
    configs = configurations(values)
    if values.part % math.lcm(values.seq_len, RUNNING):
        raise InputError(f"--part={values.part}: expected a multiple of {RUNNING} and of --seq_len={values.seq_len}")
    data, texts, summaries = texts_of(values, workdir)
    order = [*texts, next(iter(texts))]
    bytes_read = cut_streams(texts, order, values.streams, values.part)
    config: dict[str, Any] = {
        "launcher": NAME,
        "flags": fixed_flags(values),
        "data": {
            "training": fingerprint(data.documents.train),
            "texts": [fingerprint([Document(name, text)]) for name, text in texts.items()],
        },
        "models": {regime: config.to_json() for regime, config in configs.items()},
    }
    read = {name: summary.as_json() for name, summary in summaries.items()}
    config["inputs"] = {**launcher.inputs_of(values), "read": read}
    validation = evaluation_batches(data.validation, **evaluation_sizes(values), max_tokens=VALIDATION_TOKENS)
    batches = batches_of(values, data, mesh)._replace(validation=validation)
    metadata = {
        "inputs": config["inputs"],
        "parts": order,
        "part_bytes": values.part,
        "models": {regime: {} for regime in configs},
        "readers": {reader: [] for regime in configs for reader in readers_of(regime, values.part, len(order))},
    }
    results = launcher.claim_workdir(workdir, config, metadata, written=(PLOT, *configs))
    for name, summary in summaries.items():
        print(f"{name}: {summary}", file=sys.stderr)

    for seed in range(values.seeds):  # seed by seed, so that even a run that is stopped early compares all models
        for regime, model_config in configs.items():
            readers = readers_of(regime, values.part, len(order))
            if all(len(results["readers"][reader]) > seed for reader in readers):
                continue
            run = f"{regime}/seed_{seed}"
            state, progress = fit_model(run, model_config, batches, values, workdir, mesh, seed)
            results["models"][regime] |= {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.model)),
                "tokens": progress.tokens,
            }
            results["models"][regime].setdefault("validation_bits_per_byte", []).append(
                progress.validation_bits_per_byte
            )
            for reader, learns in readers.items():
                bits = read_streams(state.model, bytes_read, values.seq_len, learns, f"{reader}/seed_{seed}")
                results["readers"][reader].append(figures_of(bits.mean(axis=0), values.part))
            launcher.write_json(workdir / RESULTS, results)
            plot(workdir, results)
    report(workdir, results)


def configurations(values: flags.FlagValues) -> dict[str, LanguageModelConfig]:
    """The configuration of the model by regime, with equal sizes; in "outer" every block is updated at every step."""
    regimes = values.regimes
    launcher.check_names("regimes", regimes, REGIMES, required=True)
    shape = {"vocab_size": ByteTokenizer.vocab_size, "context_length": values.seq_len}
    fields = cms_fields(values, values.model, "meta")
    config = configuration(values, values.model, values.preset, **shape, **fields)
    if config.cms_regime == "outer":
        raise InputError(f"--model={values.model}: expected one with a CMS of several levels, as hope")
    every_step = (1,) * len(config.cms_periods)
    return {
        regime: dataclasses.replace(
            config, cms_regime=regime, cms_periods=every_step if regime == "outer" else config.cms_periods
        )
        for regime in regimes
    }


def readers_of(regime: str, part: int, parts: int) -> dict[str, int]:
    """The readers of a model by name, with the number of bytes of the stream in which their CMS learns."""
    if regime == "outer":
        return {"outer": 0}
    return {regime: parts * part, f"{regime}_frozen": 0, f"{regime}_stopped": part}


@jax.jit
def _learn(model: LanguageModel, state: Any, tokens: Any, targets: Any) -> tuple[Any, Array]:
    logits, state = read_and_learn(model, tokens, targets, None, state)
    return state, optax.softmax_cross_entropy_with_integer_labels(logits, targets)


@jax.jit
def _read(model: LanguageModel, state: Any, tokens: Any, targets: Any) -> tuple[Any, Array]:
    logits, state = model(tokens, state, at_boundary=True)
    return state, optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def read_streams(
    model: LanguageModel, streams: UInt8[np.ndarray, "streams time"], call: int, learns: int, name: str
) -> Float[np.ndarray, "streams time"]:
    """Reads streams from left to right, and returns the loss of every byte in bits.

    Args:
      model: the model; the memories of its mixers learn in the whole stream.
      streams: the bytes of the streams.
      call: number of bytes per call, a multiple of the shortest period. The length of the streams and ``learns`` must
        be multiples of it.
      learns: number of bytes in which the continuum memory learns; after them it stays as it is.
      name: name of the progress bar.

    Raises:
      TrainingDiverged: if the bits are not finite; the message names the levels that are not finite.
    """
    batch, time = streams.shape
    targets = streams.astype(np.int32)
    tokens = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=ByteTokenizer.separator_id)
    # All on one device: a state with another sharding in the first call would cause a second compilation.
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    model, state = jax.device_put((model, initial_state(model, batch) if learns else model.init_state(batch)), place)
    bits = []
    with progress_bar(name, time // call) as bar:
        for start in range(0, time, call):
            if 0 < learns == start:
                model, state = with_learned(model, state), state.levels["mixers"]
            piece = slice(start, start + call)
            step = _learn if start < learns else _read
            state, nats = step(model, state, tokens[:, piece], targets[:, piece])
            bits.append(np.asarray(nats, np.float64) / math.log(2))
            if not np.isfinite(bits[-1]).all():
                levels = diverged_levels(state) if step is _learn else []
                which = f" (level {', '.join(levels)})" if levels else ""
                raise TrainingDiverged(f"{name}: not finite between bytes {start:,} and {start + call:,}{which}")
            bar.update()
    return np.concatenate(bits, axis=1)


def figures_of(bits: Float[np.ndarray, " time"], part: int) -> dict[str, Any]:
    """Bits per byte of each part, in the windows after the change, the rest and the last quarter; and per 64 bytes."""
    parts = []
    for own in bits.reshape(-1, part):
        ends = [end for end in WINDOWS if end < part]
        means = {f"first {end:,}": own[:end].mean() for end in ends}
        means |= {"rest": own[ends[-1] :].mean(), LEVEL: own[-(part // 4) :].mean()}
        parts.append({name: float(mean) for name, mean in means.items()})
    return {"parts": parts, CURVE: [round(float(mean), 4) for mean in bits.reshape(-1, BIN).mean(axis=1)]}


def recovery(curve: Float[np.ndarray, " bins"], level: float) -> int:
    """Bytes until the running mean of a part, given per 64 bytes, is at most 5 % above a level; all if it never is."""
    reached = np.flatnonzero(_running(curve) <= (1 + TOLERANCE) * level)
    return BIN * int(reached[0]) + RUNNING if len(reached) else BIN * len(curve)


def _running(curves: Float[np.ndarray, "... bins"]) -> Float[np.ndarray, "... fewer"]:
    """The running means over 256 bytes, each at the end of its window."""
    return np.lib.stride_tricks.sliding_window_view(curves, RUNNING // BIN, axis=-1).mean(axis=-1)


def recoveries(results: Mapping[str, Any], reader: str, part: int) -> tuple[list[int], list[int]]:
    """For each seed, the bytes of a part to the reader's own level, and to the level of the seed's best reader."""
    bins = slice(part * results["part_bytes"] // BIN, (part + 1) * results["part_bytes"] // BIN)
    own, best = [], []
    for seed, figures in enumerate(results["readers"][reader]):
        curve = np.array(figures[CURVE][bins])
        own.append(recovery(curve, figures["parts"][part][LEVEL]))
        levels = [seeds[seed]["parts"][part][LEVEL] for seeds in results["readers"].values()]
        best.append(recovery(curve, min(levels)))
    return own, best


def _pairs(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a reader whose CMS learns in the whole stream and one of its controls."""
    complete = [reader for reader, seeds in results["readers"].items() if seeds]
    learners = [reader for reader in complete if reader in REGIMES and reader != "outer"]
    return [
        (learner, control)
        for learner in learners
        for control in complete
        if control == "outer" or control.startswith(f"{learner}_")
    ]


def plot(workdir: Path, results: Mapping[str, Any]) -> None:
    """Plots bits per byte against position, and the bits that learning saves against each control."""
    figure, (above, below) = new_figure(2, height=6.5, sharex=True, height_ratios=(3, 2))
    curves = {
        reader: _running(np.array([seed[CURVE] for seed in seeds]))
        for reader, seeds in results["readers"].items()
        if seeds
    }

    colors = {reader: COLORS[i % len(COLORS)] for i, reader in enumerate(results["readers"])}

    def draw(axes: Any, values: np.ndarray, label: str, reader: str) -> None:
        position = BIN * np.arange(values.shape[1]) + RUNNING
        plot_band(axes, position, values, alpha=0.15, marker="", label=label, color=colors[reader], linewidth=1.2)

    for reader, values in curves.items():
        draw(above, values, reader, reader)
    for learner, control in _pairs(results):
        seeds = min(len(curves[learner]), len(curves[control]))
        draw(below, curves[control][:seeds] - curves[learner][:seeds], f"{control} - {learner}", control)
    for i, name in enumerate(results["parts"]):
        above.text((i + 0.5) * results["part_bytes"], 1.01, Path(name).name, ha="center", transform=_top(above))
        for axes in (above, below) if i else ():
            axes.axvline(i * results["part_bytes"], color=GRAY, linestyle="--", linewidth=1)
    below.axhline(0, color="black", linewidth=0.8)
    above.set(ylabel="bits per byte")
    below.set(xlabel="bytes read", ylabel="bits per byte saved")
    for axes in (above, below):
        label_curves(axes)
    save_figure(figure, workdir / PLOT)


def _top(axes: Any) -> Any:
    """The transform with data coordinates along x, and the height of the axes along y."""
    return axes.get_xaxis_transform()


def report(workdir: Path, results: Mapping[str, Any]) -> None:
    """Prints the tables, and where the results are."""
    readers, names = results["readers"], [f"{i}. {Path(name).name}" for i, name in enumerate(results["parts"], 1)]
    columns = list(next(iter(readers.values()))[0]["parts"][0])
    rows: list[Sequence[str]] = [("part", "reader", *columns, "to own level", "to best level")]
    for i, part in enumerate(names):
        for reader, seeds in readers.items():
            own = [seed["parts"][i] for seed in seeds]
            cells = [launcher.mean_and_spread([figures[column] for figures in own]) for column in columns]
            rows.append((part, reader, *cells, *map(_whole, recoveries(results, reader, i))))
    print("Bits per byte of each part's first bytes, rest and last quarter, and bytes to recover:")
    launcher.print_table(rows)
    pairs = _pairs(results)
    if pairs:
        rows = [("part", "saved against", *columns)]
        for i, part in enumerate(names):
            for learner, control in pairs:
                of_seeds = list(zip(readers[learner], readers[control], strict=True))
                saved = [
                    [control["parts"][i][column] - learner["parts"][i][column] for learner, control in of_seeds]
                    for column in columns
                ]
                label = f"{control} by {learner}"
                rows.append((part, label, *map(launcher.mean_and_spread, saved)))
        print("\nBits per byte saved by a CMS that learns, seed by seed:")
        launcher.print_table(rows)
    for regime, figures in results["models"].items():
        validation = launcher.mean_and_spread(figures["validation_bits_per_byte"])
        print(
            f"{regime}: {figures['parameters']:,} parameters, {figures['tokens']:,} training tokens, "
            f"validation {validation} bits per byte"
        )
    print("Mean ± standard deviation over the seeds. Recovered: 256 bytes, all streams, within 5 % of the part's last")
    print(f"quarter, the reader's own or the best reader's; {results['part_bytes']:,} if it never recovers.")
    print(f"Everything is in {workdir}: {RESULTS}, {METRICS}, {PLOT}, REGIME/seed_N/checkpoints")


def _whole(figures: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(figures):,.0f}" if len(figures) > 1 else ""
    return f"{statistics.fmean(figures):,.0f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
