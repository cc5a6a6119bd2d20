"""Which of many answers a language model finds most likely after a prompt, without reading all of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from nl_jax.models.language_model import LanguageModel
from nl_jax.streaming.generation import with_room

AT_ONCE = 2  # answers of a prompt that are read in the first round, and twice as many in each one after it
PIECE = 64  # tokens of a prefix that are read together


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
    prefix: "Sequence[int] | Prefix" = (),
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
      prefix: tokens before every prompt, such as examples, or what the model has read of them (`read_prefix`); they are
        read once.

    Raises:
      ValueError: for an empty prompt or answer, or no answers.
    """
    if not answers or not all(map(len, answers)) or not all(map(len, prompts)):
        raise ValueError("prompts and answers: one of them has no tokens; expected at least one token in each")
    index, nats, read = np.zeros(len(prompts), int), np.zeros(len(prompts)), 0
    groups: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[len(prompt)].append(i)
    longest = max(map(len, prompts), default=0) + max(map(len, answers))
    reader, before, _ = prefix if isinstance(prefix, Prefix) else read_prefix(model, prefix, longest)
    firsts = np.asarray([answer[0] for answer in answers], np.int32)
    for length, members in sorted(groups.items()):
        for rows in _parts(members, batch_size):
            tokens = _filled([prompts[i] for i in rows], batch_size, length)
            first, state = _read_prompts(reader, tokens, before)
            bound = np.asarray(first[:, firsts])[: len(rows)]
            index[rows], nats[rows], count = _best(reader, bound, state, answers, batch_size)
            read += count
    return Answers(index, nats, read)


def _best(
    model: LanguageModel,
    bound: Float[np.ndarray, "rows answers"],
    state: Any,
    answers: Sequence[Sequence[int]],
    size: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Index and nats of the best answer of each prompt of a batch, and the number of answers read."""
    order = np.argsort(-bound, axis=1, kind="stable")
    best, chosen = np.full(len(bound), -np.inf), order[:, 0].copy()
    done, read, at_once = 0, 0, AT_ONCE
    active = np.arange(len(bound))
    while done < len(answers) and len(active):
        tried = [(row, answer) for row in active for answer in order[row, done : done + at_once]]
        pairs = [pair for pair in tried if bound[pair] > best[pair[0]]]
        for part in _parts(pairs, size):
            scores = bound[tuple(np.transpose(part))] + _rest(model, state, part, answers, size)
            for (row, answer), score in zip(part, scores, strict=True):
                if score > best[row]:
                    best[row], chosen[row] = score, answer
        done, read, at_once = done + at_once, read + len(pairs), 2 * at_once
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
    longest = -(-longest // 4) * 4  # few lengths, since each is compiled
    given = [answers[answer] for _, answer in pairs]
    rows = np.resize([row for row, _ in pairs], size)
    mask = np.zeros((size, longest), np.float32)
    for i, answer in enumerate(given):
        mask[i, : len(answer) - 1] = 1.0
    tokens = _filled([answer[:-1] for answer in given], size, longest)
    targets = _filled([answer[1:] for answer in given], size, longest)
    return np.asarray(_read_answers(model, state, rows, tokens, targets, mask))[: len(pairs)]


@jax.jit
def _read_prompts(
    model: LanguageModel, tokens: Int[Array, "batch time"], before: Any = None
) -> tuple[Float[Array, "batch vocab"], Any]:
    """Log-likelihood of every next token, and the state after the prompts; ``before`` is that of a prefix."""
    logits, state = model.last_logits(tokens, repeated(before, len(tokens)))
    return jax.nn.log_softmax(logits.astype(jnp.float32)), state


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
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    return -jnp.sum(losses * mask, axis=-1)


class Prefix(NamedTuple):
    """A text that was read before all prompts."""

    model: LanguageModel  # with room for what comes after
    state: Any  # of one sequence; None where nothing was read
    length: int  # tokens of the text


def read_prefix(model: LanguageModel, tokens: Sequence[int], room: int) -> Prefix:
    """Reads the tokens before all prompts once; ``room`` is the number of tokens that can follow them."""
    reader, state = with_room(model, len(tokens) + room), None
    for start in range(0, len(tokens), PIECE):
        state = _read_prompts(reader, np.asarray([tokens[start : start + PIECE]], np.int32), state)[1]
    return Prefix(reader, state, len(tokens))


def repeated(state: Any, count: int) -> Any:
    """The state of one sequence as that of ``count`` equal ones; None stays None."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=1) if leaf.ndim > 1 else leaf, state)


def _filled(rows: Sequence[Sequence[int]], size: int, length: int) -> Int[np.ndarray, "size length"]:
    """Rows of ids, each filled with zeros at its end, and rows of zeros."""
    filled = np.zeros((size, length), np.int32)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled


def _parts(items: Any, size: int) -> Iterator[Any]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
