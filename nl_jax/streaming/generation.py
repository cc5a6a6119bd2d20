"""Sampling from a language model, token by token. A model that learns in context keeps learning from the text."""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nl_jax.errors import Diverged
from nl_jax.models.chunk import learn_chunk
from nl_jax.models.in_context import with_learned
from nl_jax.models.language_model import LanguageModel
from nl_jax.models.reading import start

SEEDS = 2**31  # seeds are from 0 to one less than this


@jax.jit
def next_token(
    model: LanguageModel, tokens: Int[Array, "1 T"], state: Any, key: Array, temperature: Float[Array, ""]
) -> tuple[Int[Array, "1 1"], Any, Bool[Array, ""]]:
    """Reads `tokens` from `state` on (None at the start of a text) and samples the next token.

    Returns:
      The next token, the state before it, and whether its logits are finite. If not, the token is meaningless.
    """
    logits, state = model(tokens, state)
    last = logits[:, -1].astype(jnp.float32)
    sampled = jax.random.categorical(key, last / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, sampled, last.argmax(-1))[:, None], state, jnp.all(jnp.isfinite(last))


def sample(
    model: LanguageModel,
    prompt: Sequence[int] | bytes | Int[np.ndarray, " T"],
    *,
    num_tokens: int = 100,
    temperature: float = 0.8,
    seed: int = 0,
    state: Any = None,
    frozen: Iterable[str] = (),
) -> Iterator[int]:
    """Yields sampled tokens that continue a prompt.

    Each token is drawn from the logits that ``read`` returns for the text so far. A model whose continuum memory learns
    in context therefore learns from the prompt and from its own tokens, chunk by chunk, as from any text that it reads.

    Args:
      model: a model whose vocabulary contains all tokens of the prompt.
      prompt: at least one token.
      num_tokens: number of tokens to sample, 0 or more.
      temperature: divides the logits: below 1 sharpens the distribution; 0 takes the likeliest token.
      seed: random seed, from 0 to 2³¹ - 1.
      state: the state that ``read`` returned for the text before the prompt; None starts a text.
      frozen: names of levels that do not learn.

    Raises:
      ValueError: at the call, for an invalid argument; the message names the argument and its value.
      Diverged: when a token is requested whose logits are not finite.
    """
    tokens = checked_tokens(prompt, model.config.vocab_size)
    if not tokens:
        raise ValueError("prompt: no tokens; expected at least one to go on from")
    _check_integer("num_tokens", num_tokens, 0)
    _check_integer("seed", seed, 0, SEEDS)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: expected a finite number of at least 0")
    keys = jax.random.split(jax.random.key(seed), num_tokens)
    if model.learns_in_context:
        return _while_learning(model, tokens, keys, jnp.float32(temperature), state, frozenset(frozen))
    return _reading(model, tokens, keys, jnp.float32(temperature), state)


def checked_tokens(tokens: Iterable[Any], vocab_size: int) -> list[int]:
    """Converts tokens to integers; raises ``ValueError`` for a value that is no integer or not in the vocabulary."""
    checked = []
    for token in tokens:
        try:
            checked.append(operator.index(token))
        except TypeError:
            raise ValueError(f"token {token!r}: expected an integer") from None
        if not 0 <= checked[-1] < vocab_size:
            raise ValueError(f"token {token}: expected 0 to {vocab_size - 1}")
    return checked


def _check_integer(name: str, value: Any, low: int, end: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value < end:
        expected = f"of at least {low}" if end == math.inf else f"from {low} to {end - 1}"
        raise ValueError(f"{name}={value!r}: expected an integer {expected}")


def _reading(model: Any, text: list[int], keys: Array, temperature: Array, state: Any) -> Iterator[int]:
    tokens = jnp.asarray(text, jnp.int32)[None]
    for key in keys:
        tokens, state, finite = next_token(model, tokens, state, key, temperature)
        yield _finite(tokens, finite)


def _while_learning(
    model: Any, text: list[int], keys: Array, temperature: Array, state: Any, frozen: frozenset[str]
) -> Iterator[int]:
    """Samples while learning: a chunk is learned once the token after it is known, since that is its last target."""
    chunk = min(model.config.cms_periods)
    state = start(model, 1) if state is None else state
    reader, mixers, read = with_learned(model, state), state.levels["mixers"], 0  # tokens read in the open chunk
    for key in keys:
        while len(text) > chunk:
            part = np.asarray(text[: chunk + 1], np.int32)[None]
            state, _, _ = learn_chunk(model, part[:, :-1], part[:, 1:], state, frozen)
            reader, mixers, read = with_learned(model, state), state.levels["mixers"], 0
            text = text[chunk:]
        tokens = jnp.asarray(text[read:], jnp.int32)[None]
        tokens, mixers, finite = next_token(reader, tokens, mixers, key, temperature)
        read = len(text)
        text.append(_finite(tokens, finite))
        yield text[-1]


def _finite(tokens: Array, finite: Array) -> int:
    if not finite:
        raise Diverged("the logits of the next token are not finite, so there is none to sample")
    return int(tokens[0, 0])
