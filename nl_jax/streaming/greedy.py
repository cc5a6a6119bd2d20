"""The likeliest continuations of many prompts at once, token by token."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from nl_jax.models.language_model import LanguageModel
from nl_jax.streaming.answers import Prefix, repeated
from nl_jax.streaming.generation import can_decode, rotated_state


def continuations(
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    *,
    num_tokens: int,
    ends: Collection[int] = (),
    batch_size: int = 16,
) -> list[list[int]]:
    """Continues each prompt by greedy sampling.

    Args:
      prefix: what the model has read before every prompt (`read_prefix`), with room for a prompt and ``num_tokens``.
      prompts: tokens of each prompt, at least one; all are equally long.
      num_tokens: number of tokens of a continuation at most, 1 or more.
      ends: tokens that end a continuation, and are not part of it.
      batch_size: number of prompts that are continued together.

    Raises:
      ValueError: for prompts of different lengths.
    """
    if len({len(prompt) for prompt in prompts}) > 1:
        raise ValueError("prompts: of different lengths; expected all equally long")
    found: list[list[int]] = []
    for begin in range(0, len(prompts), batch_size):
        part = np.asarray(prompts[begin : begin + batch_size], np.int32)
        filled = np.resize(part, (batch_size, part.shape[1]))  # repeats prompts, since each size is compiled
        token, state = _first(prefix.model, filled, prefix.state)
        length = prefix.length + part.shape[1] + num_tokens
        found += decode(prefix.model, token, state, num_tokens=num_tokens, ends=ends, count=len(part), length=length)
    return found


def decode(
    model: LanguageModel,
    token: Int[Array, " batch"],
    state: Any,
    *,
    num_tokens: int,
    ends: Collection[int] = (),
    count: int | None = None,
    length: int | None = None,
) -> list[list[int]]:
    """Goes on from the first token of each answer by greedy sampling.

    Args:
      model: a model that does not learn in context, or that of its learned weights.
      token: the first token of each answer.
      state: the state before these tokens.
      num_tokens, ends: as for `continuations`.
      count: number of rows whose answers are returned, and decide when to stop; None takes all.
      length: number of tokens of text and continuation: where attention sees all of them, its keys stay in place. None
        if unknown.
    """
    after = _next
    if length is not None and can_decode(model, length):
        state, after = rotated_state(model, state), _next_from_own
    columns = [np.asarray(token)[:count]]
    running = ~np.isin(columns[0], list(ends))
    while len(columns) < num_tokens and running.any():
        token, state = after(model, token[:, None], state)
        columns.append(np.asarray(token)[:count])
        running &= ~np.isin(columns[-1], list(ends))
    return [_until(row, ends) for row in np.stack(columns, axis=1).tolist()]


def _until(tokens: list[int], ends: Collection[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


@jax.jit
def _first(model: LanguageModel, tokens: Int[Array, "batch time"], before: Any) -> tuple[Int[Array, " batch"], Any]:
    return _likeliest(model, tokens, repeated(before, len(tokens)))


def _likeliest(model: LanguageModel, tokens: Int[Array, "batch time"], state: Any) -> tuple[Int[Array, " batch"], Any]:
    logits, state = model.last_logits(tokens, state)
    return logits.argmax(axis=-1), state


_next = jax.jit(_likeliest)
_next_from_own = jax.jit(_likeliest, donate_argnums=2)  # takes the state over, so that it can change in place
