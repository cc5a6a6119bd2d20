"""What the models of a run write at their newest checkpoints, for the page of a run that is going on."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.restoring import RUN, newest_checkpoint, tokenizer_of
from nl_jax import Diverged, InputError
from nl_jax.data import decode_stream
from nl_jax.streaming.generation import sample
from nl_jax.training.checkpoint import saved_steps
from nl_jax.training.loop import CHECKPOINTS


class Sample(NamedTuple):
    """A text that a model began by itself, after so many steps."""

    step: int
    text: str


class Samples:
    """The newest sample of each model of a run of experiments.language_model; other runs have none.

    Args:
        workdir: of the run.
        config: its configuration.
        num_tokens: tokens of a sample, unless its document ends earlier.
    """

    def __init__(self, workdir: Path, config: dict[str, Any], num_tokens: int):
        self.workdir, self.config, self.num_tokens = workdir, config, num_tokens
        self.models = config["models"] if num_tokens and config.get("launcher") == RUN else {}
        self.found: dict[str, Sample] = {}
        self._seen: dict[str, int] = {}  # the newest checkpoint of each model that was there at the last call

    def update(self) -> None:
        """Samples from each model that has a newer checkpoint than at the last call."""
        for name in self.models:
            directory = self.workdir / name / CHECKPOINTS
            newest = max(saved_steps(directory), default=None)
            if newest is not None and self._seen.get(name) != newest:
                self._seen[name], self.found[name] = newest, self._sample(name, directory, newest)

    def _sample(self, name: str, directory: Path, newest: int) -> Sample:
        try:
            checkpoint = newest_checkpoint(directory, self.models[name])
            tokenizer = tokenizer_of(self.workdir, self.config)
            separator = tokenizer.separator_id
            tokens = sample(checkpoint.items["model"], [separator], num_tokens=self.num_tokens)
            document = itertools.takewhile(lambda token: token != separator, tokens)
            return Sample(checkpoint.step, "".join(decode_stream(tokenizer, document)))
        except (InputError, Diverged) as error:  # the run may have deleted what was being read
            return Sample(newest, f"no sample: {error}")
