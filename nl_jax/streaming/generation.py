"""Sampling from a language model, token by token. A model that learns in context keeps learning from the text."""

import math
import operator
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nl_jax.errors import Diverged
from nl_jax.models.chunk import learn_chunk
from nl_jax.models.in_context import with_learned
from nl_jax.models.language_model import LanguageModel
from nl_jax.models.reading import start
from nl_jax.modules.mixers.attention import Attention, RotatedState
from nl_jax.trees import shallow_copy

ROOM = 128  # tokens by which the room of a state grows
SEEDS = 2**31  # seeds are from 0 to one less than this


class Sampling(NamedTuple):
    """How a token is drawn from logits. The tokens that ``top_k`` leaves are then cut by ``top_p``."""

    temperature: Float[Array, ""]  # divides the logits; 0 takes the likeliest token
    top_k: Int[Array, ""]  # only the k likeliest tokens can be drawn
    top_p: Float[Array, ""]  # only the likeliest tokens that together have this probability; always the likeliest one


def _next_token(
    model: LanguageModel, tokens: Int[Array, "1 T"], state: Any, key: Array, sampling: Sampling
) -> tuple[Int[Array, "1 1"], Any, Bool[Array, ""]]:
    """Reads `tokens` from `state` on (None at the start of a text) and samples the next token.

    Returns:
      The next token, the state before it, and whether its logits are finite. If not, the token is meaningless.
    """
    last, state = model.last_logits(tokens, state)
    last = jax.lax.optimization_barrier(last.astype(jnp.float32))  # or XLA may compute it again for each of its uses
    return draw(last, key, sampling)[:, None], state, jnp.all(jnp.isfinite(last))


next_token = jax.jit(_next_token)
next_from_own = jax.jit(_next_token, donate_argnums=2)  # takes the state over, so that it can change in place


def can_decode(model: LanguageModel, length: int) -> bool:
    """Whether a text of ``length`` tokens can be continued from a `rotated_state`: it fits into attention's context."""
    mixer = model.blocks.mixer
    return isinstance(mixer, Attention) and mixer.conv is None and mixer.context_length >= length


@jax.jit
def rotated_state(model: LanguageModel, state: Any) -> RotatedState:
    """The state of all layers in the form in which a token is read without moving the keys of those before it."""
    return jax.vmap(lambda mixer, state: mixer.rotated_state(state))(model.blocks.mixer, state)


def draw(logits: Float[Array, "batch vocab"], key: Array, sampling: Sampling) -> Int[Array, " batch"]:
    """One token of each row of logits, drawn as ``sampling`` says."""
    temperature, top_k, top_p = sampling
    scaled = logits / jnp.maximum(temperature, 1e-6)

    def likely(scaled: Float[Array, "batch vocab"]) -> Float[Array, "batch vocab"]:
        ordered = jnp.sort(scaled, axis=-1, descending=True)
        ordered = jnp.where(jnp.arange(ordered.shape[-1]) < top_k, ordered, -jnp.inf)
        share = jax.nn.softmax(ordered)
        before = jnp.cumsum(share, axis=-1) - share  # probability of the tokens that are likelier
        lowest = jnp.min(jnp.where((before < top_p) & (share > 0), ordered, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(scaled >= jnp.minimum(lowest, ordered[..., :1]), scaled, -jnp.inf)

    # sorting a large vocabulary takes as long as a tenth of a small model, so it is left out where it changes nothing
    cut = (temperature > 0) & ((top_k < logits.shape[-1]) | (top_p < 1))
    scaled = jax.lax.cond(cut, likely, lambda scaled: scaled, scaled)
    return jnp.where(temperature > 0, jax.random.categorical(key, scaled), logits.argmax(-1))


def sample(
    model: LanguageModel,
    prompt: Sequence[int] | bytes | Int[np.ndarray, " T"],
    *,
    num_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
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
      top_k: only this many of the likeliest tokens can be drawn; None for all.
      top_p: of these only the likeliest that together have this probability (nucleus sampling: Holtzman et al., 2020).
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
    sampling = checked_sampling(temperature, top_k, top_p, model.config.vocab_size)
    keys = jax.random.split(jax.random.key(seed), num_tokens)
    if model.learns_in_context:
        return _while_learning(model, tokens, keys, sampling, state, frozenset(frozen))
    if state is None:
        model = with_room(model, len(tokens) + num_tokens)
    decode = state is None and can_decode(model, len(tokens) + num_tokens)
    return _reading(model, tokens, keys, sampling, state, decode)


def checked_sampling(temperature: float, top_k: int | None, top_p: float, vocab_size: int) -> Sampling:
    """The arguments of `sample` as arrays; ``ValueError`` for one that is invalid."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: expected a finite number of at least 0")
    if top_k is not None:
        _check_integer("top_k", top_k, 1)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected a number above 0 and at most 1")
    count = vocab_size if top_k is None else min(top_k, vocab_size)
    return Sampling(jnp.float32(temperature), jnp.int32(count), jnp.float32(top_p))


def with_room(model: LanguageModel, length: int) -> LanguageModel:
    """The model whose state has room for no more tokens than needed, where its mixers are attention.

    Every token of a text of ``length`` tokens sees what it would with more room, and costs less.
    """
    room = -(-length // ROOM) * ROOM  # so that texts of about the same length share a program
    if getattr(model.blocks.mixer, "context_length", 0) <= room:
        return model
    copy = shallow_copy(model)
    copy.blocks.mixer.context_length = room
    return copy


def checked_tokens(tokens: Iterable[Any], vocab_size: int) -> list[int]:
    """Converts tokens to integers; raises ``ValueError`` for a value that is no integer or not in the vocabulary."""
    if not isinstance(tokens, Iterable):
        raise ValueError(f"tokens={reprlib.repr(tokens)}: expected a sequence of integers, or bytes")
    checked = []
    for token in tokens:
        try:
            checked.append(operator.index(token))
        except TypeError:
            raise ValueError(f"token {reprlib.repr(token)}: expected an integer") from None
        if not 0 <= checked[-1] < vocab_size:
            raise ValueError(f"token {token}: expected 0 to {vocab_size - 1}")
    return checked


def _check_integer(name: str, value: Any, low: int, end: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value < end:
        expected = f"of at least {low}" if end == math.inf else f"from {low} to {end - 1}"
        raise ValueError(f"{name}={value!r}: expected an integer {expected}")


def _reading(model: Any, text: list[int], keys: Array, sampling: Sampling, state: Any, decode: bool) -> Iterator[int]:
    """Samples from a model that does not learn; ``decode`` says whether its keys can stay where they are."""
    tokens, read = jnp.asarray(text, jnp.int32)[None], next_token
    for key in keys:
        tokens, state, finite = read(model, tokens, state, key, sampling)
        yield _finite(tokens, finite)
        if decode and read is next_token:
            state, read = rotated_state(model, state), next_from_own


def _while_learning(
    model: Any, text: list[int], keys: Array, sampling: Sampling, state: Any, frozen: frozenset[str]
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
        tokens, mixers, finite = next_token(reader, tokens, mixers, key, sampling)
        read = len(text)
        text.append(_finite(tokens, finite))
        yield text[-1]


def _finite(tokens: Array, finite: Array) -> int:
    if not finite:
        raise Diverged("the logits of the next token are not finite, so there is none to sample")
    return int(tokens[0, 0])
