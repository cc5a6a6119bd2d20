"""Which of many answers a language model finds most likely after a prompt, without reading all of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nl_jax.models.language_model import LanguageModel
from nl_jax.streaming.generation import with_room

AT_ONCE = 4  # answers of a prompt that are read in a round


class Answers(NamedTuple):
    """The likeliest answer to each prompt."""

    choice: Int[np.ndarray, " prompts"]  # index in the list of answers
    nats: Float[np.ndarray, " prompts"]  # its negative log-likelihood
    read: int  # number of answers that were read, of all prompts together


def likeliest(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> Answers:
    """The answer with the largest log-likelihood after each prompt.

    The log-likelihood of an answer's first token bounds that of the answer. So answers are read in the order of that
    bound, until the best so far is above the next bound; the result is that of reading all. Prompts of equal length are
    read together, each once; the state of the model after it serves all its answers.

    Args:
      model: a model that does not learn in context.
      prompts: at least one token each.
      answers: at least one token each. They should end with a token that ends an answer; if not, an answer that
        continues another is never likelier than that one.
      batch_size: number of prompts, and of answers, that are read together.

    Raises:
      ValueError: for an empty prompt or answer, or no answers.
    """
    if not answers or not all(map(len, answers)) or not all(map(len, prompts)):
        raise ValueError("prompts and answers: one of them has no tokens; expected at least one token in each")
    index, nats, read = np.zeros(len(prompts), int), np.zeros(len(prompts)), 0
    groups: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[len(prompt)].append(i)
    for length, members in sorted(groups.items()):
        reader = with_room(model, length + max(map(len, answers)))
        for rows in _parts(members, batch_size):
            tokens = _filled([prompts[i] for i in rows], batch_size, length)
            first, state = _read_prompts(reader, tokens)
            index[rows], nats[rows], count = _best(reader, np.asarray(first)[: len(rows)], state, answers, batch_size)
            read += count
    return Answers(index, nats, read)


def _best(
    model: LanguageModel,
    first: Float[np.ndarray, "rows vocab"],
    state: Any,
    answers: Sequence[Sequence[int]],
    size: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Index and nats of the best answer of each prompt of a batch, and the number of answers read."""
    bound = first[:, [answer[0] for answer in answers]]
    order = np.argsort(-bound, axis=1, kind="stable")
    best, chosen = np.full(len(first), -np.inf), order[:, 0].copy()
    done, read = 0, 0
    active = np.arange(len(first))
    while done < len(answers) and len(active):
        pairs = [(row, answer) for row in active for answer in order[row, done : done + AT_ONCE]]
        for part in _parts(pairs, size):
            scores = bound[tuple(np.transpose(part))] + _rest(model, state, part, answers, size)
            for (row, answer), score in zip(part, scores, strict=True):
                if score > best[row]:
                    best[row], chosen[row] = score, answer
        done, read = done + AT_ONCE, read + len(pairs)
        if done < len(answers):
            active = active[bound[active, order[active, done]] > best[active]]
    return chosen, -best, read


def _rest(
    model: LanguageModel, state: Any, pairs: Sequence[tuple[int, int]], answers: Sequence[Sequence[int]], size: int
) -> Float[np.ndarray, " pairs"]:
    """Log-likelihood of the tokens of answers after their first."""
    longest = max(map(len, answers)) - 1
    if longest == 0:
        return np.zeros(len(pairs))
    given = [answers[answer] for _, answer in pairs]
    rows = np.resize([row for row, _ in pairs], size)
    mask = np.zeros((size, longest), np.float32)
    for i, answer in enumerate(given):
        mask[i, : len(answer) - 1] = 1.0
    tokens = _filled([answer[:-1] for answer in given], size, longest)
    targets = _filled([answer[1:] for answer in given], size, longest)
    return np.asarray(_read_answers(model, state, rows, tokens, targets, mask))[: len(pairs)]


@jax.jit
def _read_prompts(model: LanguageModel, tokens: Int[Array, "batch time"]) -> tuple[Float[Array, "batch vocab"], Any]:
    """Log-likelihood of every first token of an answer, and the state after the prompts."""
    x, state = model.read_blocks(model.embedded(tokens))
    return jax.nn.log_softmax(model.logits(x[:, -1:])[:, 0].astype(jnp.float32)), state


@jax.jit
def _read_answers(
    model: LanguageModel,
    state: Any,
    rows: Int[Array, " pairs"],
    tokens: Int[Array, "pairs time"],
    targets: Int[Array, "pairs time"],
    mask: Float[Array, "pairs time"],
) -> Float[Array, " pairs"]:
    """Log-likelihood of targets after the prompts in ``rows`` of a state."""
    state = jax.tree.map(lambda leaf: leaf[:, rows] if leaf.ndim > 1 else leaf, state)
    logits, _ = model(tokens, state)
    found = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.sum(jnp.take_along_axis(found, targets[..., None], axis=-1)[..., 0] * mask, axis=-1)


def _filled(rows: Sequence[Sequence[int]], size: int, length: int) -> Int[np.ndarray, "size length"]:
    """Rows of ids, each filled with zeros at its end, and rows of zeros."""
    filled = np.zeros((size, length), np.int32)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled


def _parts(items: Any, size: int) -> Iterator[Any]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
