"""A stream: a model that goes on learning after training, chunk by chunk, for as long as text comes.

Its levels are those of ``nl_jax.models.in_context``: the sequence mixers' memories, and the blocks of the continuum
memory, each at its own period. Memory is constant in the length of the stream.
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
from nl_jax.trees import named_leaves

FORMAT = 3  # 1 kept attention's keys turned by absolute positions, 2 had other names for what memories have learned


class Fed(NamedTuple):
    """What a stream says of the chunks that it has learned in one call."""

    tokens: int  # learned in this call; the last ones wait for the end of their chunk
    loss: float  # nats per token, each before it was learned; NaN where no chunk ended
    surprise: dict[str, float]  # of each level: the norm of its gradient (or, for the memories, their change), mean
    updated: dict[str, int]  # of each level: updates in this call


class Stream:
    """One text without end through a model: it learns what it reads.

    Args:
      model: a ``LanguageModel`` whose continuum memory learns in context (``cms_regime`` "online" or "meta").
      state: of a ``Schedule`` of it, for one sequence; None starts a text.
      frozen: names of levels that do not change.

    Raises:
      ValueError: for a model whose periods count optimizer steps, or an unknown level; it names the level.

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
        self._waiting: list[int] = []  # tokens whose chunk, or whose last target, has not come yet
        self._frozen: set[str] = set()
        self._periods = {level.name: level.period for level in learning_schedule(model, 1).levels}  # in chunks
        # compiled, so that it lies where the model does: else the first chunk would be compiled apart from the others
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
        """Tokens learned since the text began."""
        return int(self._state.step) * self.chunk

    @property
    def waiting(self) -> int:
        """Tokens given that are not learned yet, since their chunk is not complete."""
        return len(self._waiting)

    def feed(self, tokens: Sequence[int] | bytes | Int[np.ndarray, " n"]) -> Fed:
        """Reads and learns; tokens of a chunk that is not complete wait for the next call.

        Raises:
          ValueError: for what is no token of the vocabulary; then nothing has been read.
          Diverged: for a chunk that leaves something not finite; it names the level and the position. The stream keeps
            what it had learned before that chunk, and the chunk and all after it wait: go on by ``feed([])`` after a
            ``freeze``, ``reset`` or ``rollback``.
        """
        self._waiting += checked_tokens(tokens, self.model.config.vocab_size)
        losses: list[float] = []
        surprises: dict[str, list[float]] = {name: [] for name in self.levels}
        updated = dict.fromkeys(self.levels, 0)
        step, frozen, done = int(self._state.step), frozenset(self._frozen), 0
        text = np.asarray(self._waiting, np.int32)[None]
        try:
            while done + self.chunk < text.shape[1]:
                part = text[:, done : done + self.chunk + 1]
                self._state, loss, surprise = learn_chunk(self.model, part[:, :-1], part[:, 1:], self._state, frozen)
                done, step = done + self.chunk, step + 1
                losses.append(loss)
                for name, period in self._periods.items():
                    surprises[name].append(surprise[name])
                    updated[name] += name not in self._frozen and step % period == 0
        finally:
            del self._waiting[:done]
        mean = {name: float(np.mean(values)) if values else math.nan for name, values in surprises.items()}
        return Fed(len(losses) * self.chunk, float(np.mean(losses)) if losses else math.nan, mean, updated)

    def generate(
        self, prompt: Sequence[int] | bytes = b"", num_tokens: int = 100, temperature: float = 0.8, seed: int = 0
    ) -> list[int]:
        """Tokens that follow what was read and the prompt; the stream itself stays as it is.

        A copy of the stream reads and learns the prompt and the tokens as they come, as ``feed`` would.

        Args:
          prompt: read after the stream's text.
          num_tokens: how many, from 0.
          temperature: below 1 sharpens the distribution; 0 takes the likeliest.
          seed: decides the sample; 0 to 2³¹ - 1.

        Raises:
          ValueError: for an argument that is not as said, or where there is no token at all to go on from.
          Diverged: where the copy's logits, or a level of it, are not finite.
        """
        text = [*self._waiting, *prompt]
        if not text:
            raise ValueError("prompt=b'': expected a token, since the stream has not read any")
        options: dict[str, Any] = {"num_tokens": num_tokens, "temperature": temperature, "seed": seed}
        return list(sample(self.model, text, **options, state=self._state, frozen=self._frozen))

    def freeze(self, level: str) -> None:
        """From now on the level does not change."""
        replace_level(self._state, self._state, self._known(level))  # raises where it cannot be kept
        self._frozen.add(level)

    def thaw(self, level: str) -> None:
        """From now on the level learns again."""
        self._frozen.discard(self._known(level))

    def reset(self, level: str) -> None:
        """Sets one level back to where it started."""
        name = self._known(level)
        self._state = replace_level(self._state, self._start, name)

    def snapshot(self) -> tuple[ScheduleState, tuple[int, ...]]:
        """The state, to go back to by ``rollback``; arrays are never changed, so it costs nothing."""
        return self._state, tuple(self._waiting)

    def rollback(self, snapshot: tuple[ScheduleState, tuple[int, ...]], level: str | None = None) -> None:
        """Back to a snapshot: all of the stream, or one level of it."""
        state, waiting = snapshot
        if level is None:
            self._state, self._waiting = state, list(waiting)
        else:
            self._state = replace_level(self._state, state, self._known(level))

    def save(self, directory: str | Path) -> None:
        """Writes every level's state, to be read by ``load``, in the place of an earlier saved stream.

        The earlier one is there until the new one is complete, however the process ends.

        Raises:
          InputError: for a directory that holds anything but a saved stream; it stays as it is.
          StorageError: where it cannot be written; the earlier one stays.
        """
        saved.replace(
            local_path(directory),
            named_leaves(self._state),
            {
                "format": FORMAT,
                "waiting": self._waiting,
                "frozen": sorted(self._frozen),
                "model": self.model.config.to_json(),
            },
        )

    @classmethod
    def load(cls, directory: str | Path, model: LanguageModel) -> "Stream":
        """The stream that ``save`` wrote, the same learner.

        Raises:
          InputError: where there is none, or it is of another model; it names what differs, or the level.
        """
        path = saved.newest(local_path(directory))
        about = saved.read_about(path)
        if about["format"] != FORMAT:
            raise InputError(f"{path}: a saved stream of format {about['format']}; expected format {FORMAT}")
        own = json.loads(json.dumps(model.config.to_json()))  # as JSON gives it back
        for name, value in about["model"].items():
            if own.get(name) != value:
                raise InputError(f"{path}: a stream of another model, whose {name} is {value}, not {own.get(name)}")
        stream = cls(model)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), named_leaves(stream._state))
        leaves = saved.read_state(path, like)
        structure = jax.tree.structure(stream._state)
        stream._state = jax.tree.unflatten(structure, [leaves[name] for name in named_leaves(stream._state)])
        stream._waiting, stream._frozen = list(about["waiting"]), set(about["frozen"])
        return stream

    def _known(self, level: str) -> str:
        if level not in self.levels:
            raise ValueError(f"level {level!r}: there is none of this name; there are {', '.join(self.levels)}")
        return level


_initial_state = jax.jit(initial_state, static_argnums=1)
