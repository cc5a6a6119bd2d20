"""Many texts at once, of any lengths: the likelihood of their continuations, and continuations of their own.

Every text gives what it would give alone, up to rounding. A model is causal, so texts are filled up at their end where
they are only read. Where they are continued, all are read up to the length of the shortest; then each reads its own
tokens, one at a time, before it goes on by itself: what fills up a text at its beginning would change a memory.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from nl_jax.data import Tokenizer
from nl_jax.models.language_model import LanguageModel
from nl_jax.models.reading import learns_in_context, read, start
from nl_jax.streaming.answers import Prefix, read_prefix, repeated
from nl_jax.streaming.generation import Sampling, can_decode, draw, rotated_state, sample, with_room

FEW_LENGTHS = 32  # texts are filled up to a multiple of this, since each length is compiled
PIECE = 256  # tokens of a text that are read together, so that the logits of a long one need no memory

Ids = Sequence[int]


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    log_likelihood: float  # in nats
    greedy: bool  # whether each of its tokens is the likeliest one


def likelihoods(
    model: LanguageModel, texts: Sequence[tuple[Ids, Ids]], *, batch_size: int = 8
) -> Iterator[tuple[int, Likelihood]]:
    """Yields the likelihood of each continuation with its index, in an order that reads the longest texts first.

    A model that learns in context learns from both parts of a text while it reads.

    Args:
      model: the model.
      texts: ids of a beginning, at least one, and of its continuation, at least one.
      batch_size: number of texts that are read together.

    Raises:
      ValueError: for a beginning or a continuation without tokens.
    """
    if not all(begin and end for begin, end in texts):
        raise ValueError("texts: one of them has no beginning or no continuation; expected a token in each")
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]) - len(texts[i][1]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        length, piece = _lengths(model, max(len(texts[i][0]) + len(texts[i][1]) for i in rows) - 1)
        tokens = np.zeros((batch_size, length + 1), np.int32)
        known, scored = np.zeros((2, batch_size, length), np.float32)
        for row, i in enumerate(rows):
            begin, end = texts[i]
            tokens[row, : len(begin) + len(end)] = [*begin, *end]
            known[row, : len(begin) + len(end) - 1] = 1.0
            scored[row, len(begin) - 1 : len(begin) + len(end) - 1] = 1.0
        reader = with_room(model, length)
        state, total, greedy = start(reader, batch_size), np.zeros(batch_size), np.ones(batch_size, bool)
        for begun in range(0, length, piece):
            part = slice(begun, begun + piece)
            following = tokens[:, begun + 1 : begun + piece + 1]
            nats, right, state = _read(reader, state, tokens[:, part], following, known[:, part], scored[:, part])
            total, greedy = total + np.asarray(nats, np.float64), greedy & np.asarray(right)
        for row, i in enumerate(rows):
            yield i, Likelihood(-float(total[row]), bool(greedy[row]))


def _lengths(model: LanguageModel, longest: int) -> tuple[int, int]:
    """The length to which texts are filled up, and that of the pieces in which they are read."""
    unit = min(model.config.cms_periods) if learns_in_context(model) else FEW_LENGTHS
    piece = -(-PIECE // unit) * unit
    unit = min(-(-FEW_LENGTHS // unit) * unit, piece) if longest <= piece else piece
    length = -(-longest // unit) * unit
    return length, min(piece, length)


@jax.jit
def _read(
    model: LanguageModel,
    state: Any,
    tokens: Int[Array, "batch time"],
    following: Int[Array, "batch time"],
    known: Float[Array, "batch time"],
    scored: Float[Array, "batch time"],
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"], Any]:
    """Nats of the scored tokens of each row, whether each is the likeliest one, and the state after the rows."""
    logits, state = read(model, tokens, state, targets=following, mask=known)
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, following)
    right = jnp.all((jnp.argmax(logits, axis=-1) == following) | (scored == 0), axis=1)
    return jnp.sum(losses * scored, axis=1), right, state


def continued(
    model: LanguageModel,
    prompts: Sequence[Ids],
    *,
    num_tokens: int,
    sampling: Sampling,
    stopped: Callable[[Ids], bool],
    batch_size: int = 8,
    seed: int = 0,
    prefix: Prefix | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Yields the continuation of each prompt with its index, in an order that reads the longest prompts first.

    Each prompt has a random stream of its own, so that its continuation does not depend on the others. A model that
    learns in context learns from the prompt and its continuation, each alone.

    Args:
      model: the model.
      prompts: ids of each prompt, at least one.
      num_tokens: largest number of tokens of a continuation, at least 1.
      sampling: how each token is drawn.
      stopped: tells of the ids of a continuation, at least one, whether it has ended; it is asked after each token.
      batch_size: number of prompts that are continued together.
      seed: random seed.
      prefix: what the model has read before every prompt (`read_prefix`), with room for a prompt and ``num_tokens``; of
        a model that does not learn in context.

    Raises:
      ValueError: for a prompt without tokens.
    """
    if not all(prompts):
        raise ValueError("prompts: one of them has no tokens; expected at least one in each")
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, len(order), 1 if learns_in_context(model) else batch_size):
        if learns_in_context(model):
            alone = order[first]
            yield alone, _alone(model, prompts[alone], num_tokens, sampling, stopped, seed + alone)
            continue
        rows = order[first : first + batch_size]
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(np.resize(rows, batch_size))
        given = [list(prompts[i]) for i in np.resize(rows, batch_size)]  # repeats prompts: each size is compiled
        found = _together(model, given, len(rows), num_tokens, sampling, stopped, keys, prefix)
        yield from zip(rows, found, strict=True)


def written_lines(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Ids],
    *,
    before: Ids = (),
    num_tokens: int,
    sampling: Sampling,
    ends: Collection[int] = (),
    batch_size: int = 16,
    seed: int = 0,
) -> list[str]:
    """The line that a model writes after each prompt, without the blanks around it.

    Args:
      model: a model that does not learn in context.
      tokenizer: its tokenizer.
      prompts: ids of each prompt, at least one.
      before: ids that the model reads once, before every prompt.
      num_tokens: largest number of tokens of a line.
      sampling: how each token is drawn.
      ends: ids that end a line as its end does, and are no part of it.
      batch_size: number of prompts that are continued together.
      seed: random seed.
    """
    if not prompts:
        return []

    def text(ids: Ids) -> str:
        return tokenizer.decode(np.asarray(ids, int))

    found = dict(
        continued(
            model,
            prompts,
            num_tokens=num_tokens,
            sampling=sampling,
            stopped=lambda ids: ids[-1] in ends or "\n" in text(ids[-1:]),
            batch_size=batch_size,
            seed=seed,
            prefix=read_prefix(model, before, max(map(len, prompts)) + num_tokens) if before else None,
        )
    )
    lines = (text([token for token in found[i] if token not in ends]) for i in range(len(prompts)))
    return [line.partition("\n")[0].strip() for line in lines]


def _alone(
    model: LanguageModel, prompt: Ids, num_tokens: int, how: Sampling, stopped: Callable[[Ids], bool], seed: int
) -> list[int]:
    options: dict[str, Any] = {
        "temperature": float(how.temperature),
        "top_k": int(how.top_k),
        "top_p": float(how.top_p),
    }
    found: list[int] = []
    for token in sample(model, prompt, num_tokens=num_tokens, seed=seed, **options):
        found.append(token)
        if stopped(found):
            break
    return found


def _together(
    model: LanguageModel,
    prompts: list[list[int]],
    count: int,
    num_tokens: int,
    sampling: Sampling,
    stopped: Callable[[Ids], bool],
    keys: Array,
    prefix: Prefix | None,
) -> list[list[int]]:
    """The continuations of the first ``count`` prompts of a batch."""
    lengths, begun = [len(prompt) for prompt in prompts], 0
    whole, shortest = max(lengths) + num_tokens, min(lengths)
    if prefix is None:
        model = with_room(model, whole)
        state = start(model, len(prompts))
    else:
        model, state, whole = prefix.model, repeated(prefix.state, len(prompts)), whole + prefix.length
    while begun < shortest - 1:  # the last token is read below, and powers of two are few lengths
        size = min(PIECE, 1 << (shortest - 1 - begun).bit_length() - 1)
        state = _state_after(model, np.asarray([prompt[begun : begun + size] for prompt in prompts], np.int32), state)
        begun += size
    after = _next
    if can_decode(model, whole):
        state, after = rotated_state(model, state), _next_from_own
    found: list[list[int]] = [[] for _ in prompts]
    running = [row < count for row in range(len(prompts))]
    texts = [list(prompt) for prompt in prompts]
    for place in range(shortest - 1, max(lengths) + num_tokens - 1):
        tokens = np.asarray([text[place] if place < len(text) else 0 for text in texts], np.int32)
        drawn, state = after(model, tokens[:, None], state, keys, place, sampling)
        for row, token in enumerate(np.asarray(drawn).tolist()):
            if running[row] and place + 1 >= lengths[row]:
                texts[row].append(token)
                found[row].append(token)
                running[row] = len(found[row]) < num_tokens and not stopped(found[row])
        if not any(running):
            break
    return found[:count]


@jax.jit
def _state_after(model: LanguageModel, tokens: Int[Array, "batch time"], state: Any) -> Any:
    return model.read_blocks(model.embedded(tokens), state)[1]


def _drawn(
    model: LanguageModel, tokens: Int[Array, "batch 1"], state: Any, keys: Array, place: Int[Array, ""], how: Sampling
) -> tuple[Int[Array, " batch"], Any]:
    """A token after each row, and the state before it."""
    logits, after = model.last_logits(tokens, state)
    logits = jax.lax.optimization_barrier(logits.astype(jnp.float32))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
    return jax.vmap(lambda row, key: draw(row[None], key, how)[0])(logits, keys), after


_next = jax.jit(_drawn)
_next_from_own = jax.jit(_drawn, donate_argnums=2)  # takes the state over, so that it can change in place
