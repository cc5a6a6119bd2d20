"""A stream: a model that keeps learning after training, chunk by chunk, for as long as it is given text.

Its levels are those of ``nl_jax.models.in_context``: the memories of the sequence mixers, and the blocks of the
continuum memory, each with its own period. The memory that a stream needs does not grow with its length.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from nl_jax.errors import InputError
from nl_jax.files import local_path
from nl_jax.levels import ScheduleState
from nl_jax.models import LanguageModel
from nl_jax.models.chunk import learn_chunk, replace_level
from nl_jax.models.in_context import initial_state, learning_schedule
from nl_jax.streaming import saved
from nl_jax.streaming.generation import checked_tokens, sample
from nl_jax.trees import content_digest, named_leaves

FORMAT = 3  # 1 stored attention's keys rotated by absolute positions, 2 had other names for what memories have learned


class Fed(NamedTuple):
    """The result of ``Stream.feed``: figures of the chunks learned in one call.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.models import named_config
      >>> sizes = {"width": 8, "num_heads": 1, "mlp_hidden": 8, "chunk_size": 4, "cms_periods": (4,)}
      >>> config = named_config("hope_attention", "tiny", **sizes, cms_regime="online")
      >>> fed = Stream(LanguageModel(config, rngs=nnx.Rngs(0))).feed(b"nested")
      >>> fed.tokens, fed.updated["cms_0"]  # the last two bytes wait for a whole chunk
      (4, 1)
    """

    tokens: int  # number of tokens learned in this call
    loss: float  # nats per token, each predicted before it was learned; NaN if no chunk was completed
    surprise: dict[str, float]  # by level, the mean norm of its gradient, or for the mixers of their memories' change
    updated: dict[str, int]  # by level, the number of updates in this call


class Stream:
    """A model that reads one endless text and learns from it.

    Args:
      model: a ``LanguageModel`` whose continuum memory learns in context (``cms_regime`` "online" or "meta").
      state: the state of its ``learning_schedule`` for one sequence; None starts a text.
      frozen: names of levels that do not change.

    Raises:
      ValueError: if the model's periods count optimizer steps, or a level is unknown; the message names the level.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.models import named_config
      >>> sizes = {"width": 8, "num_heads": 1, "mlp_hidden": 8, "chunk_size": 4, "cms_periods": (4, 8)}
      >>> config = named_config("hope_attention", "tiny", **sizes, cms_regime="online")
      >>> stream = Stream(LanguageModel(config, rngs=nnx.Rngs(0)))
      >>> stream.feed(b"nested learning").updated
      {'cms_0': 3, 'cms_1': 1, 'mixers': 3}
    """

    def __init__(self, model: LanguageModel, state: ScheduleState | None = None, *, frozen: Iterable[str] = ()):
        if not model.learns_in_context:
            raise ValueError(f"cms_regime={model.config.cms_regime!r}: expected 'online' or 'meta' for a stream")
        self.model = model
        self.chunk = min(model.config.cms_periods)
        self._waiting: list[int] = []  # tokens whose chunk, or whose last target, is not complete yet
        self._frozen: set[str] = set()
        self._periods = {level.name: level.period for level in learning_schedule(model, 1).levels}  # in chunks
        # jitted, so that the state is on the model's device; otherwise the first chunk would be compiled separately
        self._start = _initial_state(model, 1)
        self._state = self._start if state is None else state
        for name in frozen:
            self.freeze(name)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels."""
        return tuple(self._start.levels)

    @property
    def position(self) -> int:
        """Number of tokens learned since the text began."""
        return int(self._state.step) * self.chunk

    @property
    def waiting(self) -> int:
        """Number of tokens that were given but not learned yet."""
        return len(self._waiting)

    def feed(self, tokens: Sequence[int] | bytes | Int[np.ndarray, " n"], *, limit: int | None = None) -> Fed:
        """Reads and learns tokens; those of an incomplete chunk wait for the next call.

        An exception on Ctrl-C loses nothing: what was learned is kept, and what was not waits.

        Args:
          tokens: the continuation of the text.
          limit: the largest number of tokens to learn in this call; the others wait. None learns all whole chunks.

        Raises:
          ValueError: if a value is not a token of the vocabulary, or the limit is negative; then nothing has been read.
          Diverged: if a chunk gives a loss or a state that is not finite; the message names the level and the position.
            The stream keeps the state before that chunk, and that chunk and all later tokens wait. Call ``freeze``,
            ``reset`` or ``rollback``, and then ``feed([])`` to continue.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit={limit}: expected 0 or more tokens")
        self._waiting += checked_tokens(tokens, self.model.config.vocab_size)
        losses: list[float] = []
        surprises: dict[str, list[float]] = {name: [] for name in self.levels}
        updated = dict.fromkeys(self.levels, 0)
        step, frozen, done = int(self._state.step), frozenset(self._frozen), 0
        end = len(self._waiting) if limit is None else limit + 1  # the last target is not learned itself
        text = np.asarray(self._waiting[:end], np.int32)[None]
        try:
            while done + self.chunk < text.shape[1]:
                part = text[:, done : done + self.chunk + 1]
                state, loss, surprise = learn_chunk(self.model, part[:, :-1], part[:, 1:], self._state, frozen)
                self._state, done = state, done + self.chunk  # together, so that Ctrl-C cannot come between them
                step += 1
                losses.append(loss)
                for name, period in self._periods.items():
                    surprises[name].append(surprise[name])
                    updated[name] += name not in self._frozen and step % period == 0
        finally:
            del self._waiting[:done]
        mean = {name: float(np.mean(values)) if values else math.nan for name, values in surprises.items()}
        return Fed(len(losses) * self.chunk, float(np.mean(losses)) if losses else math.nan, mean, updated)

    def generate(
        self,
        prompt: Sequence[int] | bytes = b"",
        num_tokens: int = 100,
        temperature: float = 0.8,
        seed: int = 0,
        *,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> list[int]:
        """Samples tokens that continue the stream's text and the prompt, without changing the stream.

        A copy of the stream learns from the prompt and from the sampled tokens, as ``feed`` would.

        Args:
          prompt: tokens read after the stream's text.
          num_tokens: number of tokens to sample, 0 or more.
          temperature: divides the logits: below 1 sharpens the distribution; 0 takes the likeliest token.
          seed: random seed, from 0 to 2³¹ - 1.
          top_k, top_p: as for `nl_jax.streaming.generation.sample`.

        Raises:
          ValueError: for an invalid argument, or if neither the stream nor the prompt has a token to start from.
          Diverged: if the copy's logits or a level of it are not finite.
        """
        text = [*self._waiting, *prompt]
        if not text:
            raise ValueError("prompt=b'': expected a token, since the stream has not read any")
        options: dict[str, Any] = {"num_tokens": num_tokens, "temperature": temperature, "seed": seed}
        options |= {"top_k": top_k, "top_p": top_p}
        return list(sample(self.model, text, **options, state=self._state, frozen=self._frozen))

    def freeze(self, level: str) -> None:
        """Stops the level from changing, until ``thaw``."""
        replace_level(self._state, self._state, self._known(level))  # raises an error if the level cannot be frozen
        self._frozen.add(level)

    def thaw(self, level: str) -> None:
        """Lets a frozen level learn again."""
        self._frozen.discard(self._known(level))

    def reset(self, level: str) -> None:
        """Sets one level back to its initial state."""
        name = self._known(level)
        self._state = replace_level(self._state, self._start, name)

    def snapshot(self) -> tuple[ScheduleState, tuple[int, ...]]:
        """Returns the state, for ``rollback``. It costs nothing, since arrays are never changed in place."""
        return self._state, tuple(self._waiting)

    def rollback(self, snapshot: tuple[ScheduleState, tuple[int, ...]], level: str | None = None) -> None:
        """Restores a snapshot: the whole stream, or one level of it."""
        state, waiting = snapshot
        if level is None:
            self._state, self._waiting = state, list(waiting)
        else:
            self._state = replace_level(self._state, state, self._known(level))

    def save(self, directory: str | Path) -> None:
        """Saves the state of every level, for ``load``, in place of an earlier saved stream.

        The earlier one stays until the new one is complete, however the process ends.

        Raises:
          InputError: if the directory holds anything but a saved stream; the directory is left unchanged.
          StorageError: if the stream cannot be written; the earlier one stays.
        """
        saved.replace(
            local_path(directory),
            named_leaves(self._state),
            {
                "format": FORMAT,
                "waiting": self._waiting,
                "frozen": sorted(self._frozen),
                "model": self.model.config.to_json(),
                "parameters": content_digest(self.model),
            },
        )

    @classmethod
    def load(cls, directory: str | Path, model: LanguageModel) -> "Stream":
        """Loads the stream that ``save`` wrote; it continues as the saved one would have.

        Raises:
          InputError: if there is no saved stream, or it belongs to another model; the message names the difference.
        """
        path = saved.newest(local_path(directory))
        metadata = saved.read_metadata(path)
        if metadata["format"] != FORMAT:
            raise InputError(f"{path}: a saved stream of format {metadata['format']}; expected format {FORMAT}")
        own = json.loads(json.dumps(model.config.to_json()))  # converted as by saving and loading
        for name, value in metadata["model"].items():
            if own.get(name) != value:
                raise InputError(f"{path}: a stream of another model, whose {name} is {value}, not {own.get(name)}")
        if metadata.get("parameters", own_digest := content_digest(model)) != own_digest:
            raise InputError(
                f"{path}: a stream of a model with other parameters, such as of other training steps; expected "
                "the same, or a new stream"
            )
        stream = cls(model)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), named_leaves(stream._state))
        leaves = saved.read_state(path, template)
        structure = jax.tree.structure(stream._state)
        stream._state = jax.tree.unflatten(structure, [leaves[name] for name in named_leaves(stream._state)])
        stream._waiting, stream._frozen = list(metadata["waiting"]), set(metadata["frozen"])
        return stream

    def _known(self, level: str) -> str:
        if level not in self.levels:
            raise ValueError(f"level {level!r}: unknown; expected one of {', '.join(self.levels)}")
        return level


_initial_state = jax.jit(initial_state, static_argnums=1)
