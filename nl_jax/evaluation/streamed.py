"""Greedy answers of a model after texts that it reads part by part, so that the length of a text costs no memory."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from nl_jax.errors import Diverged
from nl_jax.models.in_context import with_learned
from nl_jax.models.reading import learns_in_context, read, start
from nl_jax.streaming.generation import with_room
from nl_jax.streaming.greedy import decode

PART = 4096  # tokens that a model reads in one call

Part = Int32[np.ndarray, "batch part"]


class Read(NamedTuple):
    """What a model has read: ``model(tokens, state)`` goes on with the text, and learns no more in the CMS.

    Examples:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from nl_jax.evaluation import read_text
        >>> from nl_jax.models import LanguageModel, named_config
        >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 8, "chunk_size": 4}
        >>> model = LanguageModel(named_config("delta_net", "tiny", **sizes), rngs=nnx.Rngs(0))
        >>> found = read_text(model, [np.zeros((1, 5), np.int32)])
        >>> logits, _ = found.model(np.ones((1, 1), np.int32), found.state)  # goes on with the text
        >>> logits.shape
        (1, 1, 257)
    """

    model: Any
    state: Any
    logits: Float[Array, "batch vocab"]  # of the token after the text
    length: int  # tokens of the text


def read_text(model: Any, parts: Iterable[Part]) -> Read:
    """Reads texts of equal length side by side.

    A model that learns in context learns from every chunk of its shortest period before the one that holds the last
    token, so the result is what `read` of the whole text would give at that token.

    Args:
        model: a language model.
        parts: the texts in parts of any length, at least one token in all.

    Raises:
        Diverged: if the logits are not finite.
        ValueError: if there is no token.

    Examples:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from nl_jax.evaluation import read_text
        >>> from nl_jax.models import LanguageModel, named_config
        >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 8}
        >>> model = LanguageModel(named_config("transformer", "tiny", **sizes), rngs=nnx.Rngs(0))
        >>> text = np.frombuffer(b"nested learning", np.uint8).astype(np.int32)[None]
        >>> found = read_text(model, [text[:, :7], text[:, 7:]])
        >>> found.length, found.logits.shape
        (15, (1, 257))
    """
    learning = learns_in_context(model)
    chunk = min(model.config.cms_periods) if learning else PART
    size = max(PART // chunk, 1) * chunk
    held, state, position = np.zeros((0, 0), np.int32), None, 0
    for part in parts:
        held = np.concatenate([held, part], axis=1) if held.size else part
        while held.shape[1] > size:
            state, held = _after(model, held[:, : size + 1], state), held[:, size:]
            position += size
    if not held.size:
        raise ValueError("a text without tokens: there is nothing to answer")
    before = (held.shape[1] - 1) // chunk * chunk  # the tokens of whole chunks before the one of the last token
    position += held.shape[1]
    if before:
        state = _after(model, held[:, : before + 1], state)
    reader = model
    if learning:
        state = start(model, len(held)) if state is None else state
        reader, state = with_learned(model, state), state.levels["mixers"]
    logits, state = _last(reader, held[:, before:], state)
    if not np.isfinite(logits).all():
        raise Diverged(f"the model's logits after {position} tokens are not finite", position=position)
    return Read(reader, state, logits, position)


def greedy_answers(
    model: Any, parts: Iterable[Part], *, num_tokens: int, ends: Collection[int] = (), length: int | None = None
) -> list[list[int]]:
    """The likeliest tokens after each text, taken one by one.

    Args:
        model, parts: as for `read_text`.
        num_tokens: number of tokens of an answer at most, 1 or more.
        ends: tokens that end an answer, and are not part of it.
        length: number of tokens of text and answer, if it is known: attention then keeps no more than these.

    Examples:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from nl_jax.evaluation import greedy_answers
        >>> from nl_jax.models import LanguageModel, named_config
        >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 8}
        >>> model = LanguageModel(named_config("transformer", "tiny", **sizes), rngs=nnx.Rngs(0))
        >>> (answer,) = greedy_answers(model, [np.array([[1, 2, 3]], np.int32)], num_tokens=2)
        >>> len(answer)
        2
    """
    text = read_text(model if length is None else with_room(model, length), parts)
    first, end = text.logits.argmax(axis=-1), None if learns_in_context(model) else text.length + num_tokens
    return decode(text.model, first, text.state, num_tokens=num_tokens, ends=ends, length=end)


def _after(model: Any, tokens: Int[np.ndarray, "batch time+1"], state: Any) -> Any:
    """The state after all tokens but the last, which is a target alone."""
    state = start(model, len(tokens)) if state is None else state
    return _read(model, tokens[:, :-1], tokens[:, 1:], state)


@jax.jit
def _read(model: Any, tokens: Int[Array, "batch time"], targets: Int[Array, "batch time"], state: Any) -> Any:
    return read(model, tokens, state, targets=targets)[1]


@jax.jit
def _last(model: Any, tokens: Int[Array, "batch time"], state: Any) -> tuple[Float[Array, "batch vocab"], Any]:
    return model.last_logits(tokens, state)
