"""Language modelling as a subtask: text in windows of a length, and bits per byte by position."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.common.path_flags import define_path
from experiments.eval_runs.evaluation import Batch, Figures, Subtask
from nl_jax import InputError
from nl_jax.data import TextData, evaluation_batches, load_text_data
from nl_jax.evaluation import bits_by_position, evaluate, octaves
from nl_jax.plotting import new_figure, plot_bits

BITS, PERPLEXITY, UP_TO = "bits_per_byte", "perplexity", "bits_up_to_"
VALIDATION_TOKENS = 32_768
TINY = {"width": 128, "num_heads": 1, "chunk_size": 64, "parameters": 1_000_000, "batch_size": 32, "eval_every": 50}
BASE = 128  # tokens of the windows that --batch_size counts


@functools.cache
def text_of(path: str | None) -> TextData:
    """The text of a path, as bytes; without a path Python's standard library."""
    return load_text_data(path)


def define_data_flag(values: flags.FlagValues) -> None:
    """Adds --data."""
    text = "Text file or directory. Default: Python's standard library."
    define_path("data", None, text, flag_values=values)


def text_subtask(data: TextData, values: flags.FlagValues, length: int, test_tokens: int) -> Subtask:
    """Predicting the next token in windows of ``length`` tokens, drawn at random from the training text.

    A batch has as many tokens as ``--batch_size`` windows of 128. ``test_tokens`` of the test text are scored, spread
    evenly.

    Raises:
        InputError: if a split is shorter than a window, or a batch than a window.
    """
    tokens = data.train.tokens
    if len(tokens) <= length:
        raise InputError(f"the training text has {len(tokens):,} tokens; expected more than {length:,}")
    rows = values.batch_size * BASE // length
    if not rows:
        least = f"{length // BASE}, as many windows of {BASE:,} tokens as one of {length:,}"
        raise InputError(f"--batch_size={values.batch_size}: expected at least {least}")

    def batch(seed: int, step: int) -> Batch:
        starts = np.random.default_rng((seed, step)).integers(0, len(tokens) - length, rows)
        windows = np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int32)
        mask = np.ones((rows, length), np.float32)
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:], "mask": mask}

    sizes: dict[str, Any] = {"batch_size": rows, "seq_len": length}
    validation = evaluation_batches(data.validation, **sizes, max_tokens=max(length, VALIDATION_TOKENS))
    held_out = evaluation_batches(data.test, **sizes, max_tokens=max(length, test_tokens))

    def validate(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        return {BITS: evaluate(model, validation, mesh)}

    def test(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        bits = evaluate(model, held_out, mesh)
        per_token = bits * held_out.num_bytes / held_out.num_tokens
        found = {BITS: bits, PERPLEXITY: math.exp(math.log(2) * per_token)}
        by_position = octaves(bits_by_position(model, held_out, mesh))
        return found | {f"{UP_TO}{end}": bits for end, bits in by_position}

    return Subtask({"vocab_size": data.tokenizer.vocab_size, "context_length": length}, batch, validate, test)


def draw_positions(results: Mapping[str, Any]) -> Figure:
    """Bits per token of the test text against the position in the window, one panel a length (Figure 10)."""
    subtasks = results["subtasks"]
    figure, panels = new_figure(len(subtasks), height=3.8 * len(subtasks), squeeze=False)
    for axes, (name, cells) in zip(panels[:, 0], subtasks.items(), strict=True):
        found: dict[str, list[dict[str, float]]] = {
            model: [seed["test"] for seed in cell["seeds"]] for model, cell in cells.items() if cell["seeds"]
        }
        first: dict[str, float] = next(iter(found.values()))[0] if found else {}
        keys = [key for key in first if key.startswith(UP_TO)]
        curves = {model: np.array([[test[key] for key in keys] for test in tests]) for model, tests in found.items()}
        ends = [int(key.removeprefix(UP_TO)) for key in keys]
        plot_bits(axes, curves, ends, unit="bits per token", xlabel="position, up to")
        axes.set_title(f"context of {name} tokens")
    return figure
