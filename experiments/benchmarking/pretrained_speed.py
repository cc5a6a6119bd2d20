"""The subject ``pretrained`` of ``experiments.benchmark``: how fast a pre-trained model reads and writes text."""

import dataclasses
import functools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from experiments.benchmarking.run import Figures, Run
from experiments.benchmarking.timed_programs import interleave, one_line
from experiments.common import launcher
from nl_jax.modules.quantized import quantize
from nl_jax.pretrained import Pretrained, export_pretrained, load_pretrained
from nl_jax.streaming.generation import (
    checked_sampling,
    next_from_own,
    next_token,
    rotated_state,
    with_room,
)

DECODED = 32  # tokens written in one measurement
# What reads a prompt and returns a function that does it again, and one that writes tokens after it.
Calls = dict[str, Callable[[], float]]


def pretrained(run: Run) -> None:
    """Measures prefill and decoding in tokens/s, beside ``transformers`` where that and torch are installed."""
    rows = [("prompt", "batch", "program", "prefill tokens/s", "decode tokens/s")]
    for length, size in run.lengths:
        figures = run.figures(f"{length}:{size}", functools.partial(_measure, run, length, size))
        for name, row in figures.items():
            speeds = (f"{row[kind]:,.1f}" if kind in row else row.get("problem", "-") for kind in ("prefill", "decode"))
            rows.append((f"{length:,}", str(size), name, *speeds))
    launcher.print_table(rows)


def _measure(run: Run, length: int, size: int) -> Figures:
    given = load_pretrained(run.values.pretrained)
    tokens = np.random.default_rng(0).integers(0, given.model.config.vocab_size, (size, length)).astype(np.int32)
    figures: Figures = {}
    calls: dict[tuple[str, str], Callable[[], float]] = {}
    for name, build in {"nl_jax": ours, "nl_jax, 8-bit weights": ours_in_8_bits, "transformers": theirs}.items():
        try:
            calls |= {(name, kind): call for kind, call in build(given, tokens).items()}
        except ImportError as error:
            figures[name] = {"problem": one_line(error)}
    counts = {"prefill": length * size, "decode": DECODED * size}
    for (name, kind), timing in interleave(calls, run.values.repeats, run.values.max_seconds).items():
        row = figures.setdefault(name, {})
        row |= {"problem": timing.problem} if timing.problem else {}
        row |= {kind: counts[kind] / statistics.median(timing.seconds)} if timing.seconds else {}
    return figures


def ours(given: Pretrained, tokens: Int[np.ndarray, "batch time"]) -> Calls:
    """This project's model, called as `sample` calls it, with the likeliest token."""
    model = with_room(given.model, tokens.shape[1] + DECODED)
    key, sampling = jax.random.key(0), checked_sampling(0.0, None, 1.0, model.config.vocab_size)
    first, after, _ = next_token(model, tokens, None, key, sampling)
    rotated = rotated_state(model, after)

    def prefill() -> float:
        return float(next_token(model, tokens, None, key, sampling)[2])

    def decode() -> float:
        token, finite = first, True
        state = jax.tree.map(jnp.copy, rotated)  # decoding takes it over
        for _ in range(DECODED):
            token, state, finite = next_from_own(model, token, state, key, sampling)
            bool(finite)  # as in sampling, the next token waits until this one is known
        return float(finite)

    return {"prefill": prefill, "decode": decode}


def ours_in_8_bits(given: Pretrained, tokens: Int[np.ndarray, "batch time"]) -> Calls:
    """The same with 8-bit matrices."""
    return ours(dataclasses.replace(given, model=quantize(given.model)), tokens)


def theirs(given: Pretrained, tokens: Int[np.ndarray, "batch time"]) -> Calls:
    """The same weights in float32 in ``transformers``, with as many threads as there are cores; `ImportError`."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        export_pretrained(given, Path(folder) / "model")
        model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()
    prompt = torch.tensor(tokens, dtype=torch.int64)

    @torch.inference_mode()
    def read(ids, cache=None):
        answer = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return answer.logits[:, -1:].argmax(-1), answer.past_key_values

    def decode() -> float:  # a cache grows in place, so every measurement has its own
        token, cache = last["token"], last["cache"]
        for _ in range(DECODED):
            token, cache = read(token, cache)
        cache.crop(-DECODED)
        return float(token[0, 0])

    def prefill() -> float:
        token, cache = read(prompt)
        last.update(token=token, cache=cache)
        return float(token[0, 0])

    last: dict = {}
    prefill()
    return {"prefill": prefill, "decode": decode}
