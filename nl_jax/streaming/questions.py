"""How well a model answers questions whose answers are known: exactly, and by likelihood."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from nl_jax.models.language_model import LanguageModel
from nl_jax.streaming.answers import Prefix, repeated


class Answered(NamedTuple):
    """How a model answers each question."""

    exact: Bool[np.ndarray, " questions"]  # whether each token of the answer is the likeliest one
    nats: Float[np.ndarray, " questions"]  # negative log-likelihood of the answer


def answered(
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
) -> Answered:
    """Reads each question with its answer after it.

    Args:
      prefix: what the model has read before every question (`read_prefix`), with room for question and answer.
      prompts: tokens of each question, at least one.
      answers: the tokens of its answer, with one that ends it. Greedy sampling gives the answer exactly if each of its
        tokens is the likeliest one after those before it.
      batch_size: number of questions that are read together.
    """
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)) - 1
    longest = -(-longest // 16) * 16  # few lengths, since each is compiled
    exact, nats = np.zeros(len(prompts), bool), np.zeros(len(prompts))
    for begin in range(0, len(prompts), batch_size):
        tokens = np.zeros((batch_size, longest + 1), np.int32)
        mask = np.zeros((batch_size, longest), np.float32)
        part = range(begin, min(begin + batch_size, len(prompts)))
        for row, i in enumerate(part):
            given, end = len(prompts[i]), len(prompts[i]) + len(answers[i])
            tokens[row, :end] = [*prompts[i], *answers[i]]
            mask[row, given - 1 : end - 1] = 1.0
        right, lost = _read(prefix.model, prefix.state, tokens, mask)
        exact[list(part)], nats[list(part)] = np.asarray(right)[: len(part)], np.asarray(lost)[: len(part)]
    return Answered(exact, nats)


@jax.jit
def _read(
    model: LanguageModel, state: Any, tokens: Int[Array, "batch time+1"], mask: Float[Array, "batch time"]
) -> tuple[Bool[Array, " batch"], Float[Array, " batch"]]:
    logits, _ = model(tokens[:, :-1], repeated(state, tokens.shape[0]))
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    right = (logits.argmax(axis=-1) == tokens[:, 1:]) | (mask == 0)
    return jnp.all(right, axis=1), jnp.sum(losses * mask, axis=1)
