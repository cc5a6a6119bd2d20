"""What ``learn`` and ``ask`` share: the learner in a workdir, and the pre-trained model that it belongs to."""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.pretrained_flag import SMOLLM2, read_pretrained
from nl_jax import InputError
from nl_jax.pretrained import Pretrained, StackedLevel
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.own_questions import before_questions, document_levels
from nl_jax.streaming.saved import is_saved

NAME = "learn"  # the launcher whose runs are continued and asked
LEARNED = "learned"  # the saved learner in a workdir
OWN_MODEL = f"that of the run in the workdir, and of a new run {SMOLLM2}"  # what --pretrained is without a value


def load_model(values: flags.FlagValues, stored: dict[str, Any] | None) -> Pretrained:
    """The model of --pretrained, or without it the one of the run ``stored``; `InputError` if it cannot be read."""
    return read_pretrained(values.pretrained or (stored or {}).get("inputs", {}).get("pretrained"))


def restored(workdir: Path, pretrained: Pretrained, given: dict[str, Any]) -> ContinualLearner:
    """The learner of a workdir, with all that it has learned; ``given`` is the run's entry ``flags``."""
    levels = None if given["levels"] is None else [_level(fields) for fields in given["levels"]]
    options = {name: given[name] for name in ("chunk", "batch_size", "question")}
    if given.get("ask_itself"):
        levels = levels or document_levels(pretrained.model.config.num_layers)
        options["before"] = before_questions()
    learner = ContinualLearner(pretrained.model, pretrained.tokenizer, levels, **options)
    if is_saved(workdir / LEARNED):
        learner.load(workdir / LEARNED)
    return learner


def given_text(what: str) -> bytes:
    """All of standard input.

    Raises:
        InputError: where there is none, so that ``what``, the words that it stands for, is missing.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"{what}: missing; expected some, or text on standard input")
    content = sys.stdin.buffer.read()
    if not content.strip():
        raise InputError(f"{what}: missing, and nothing is on standard input; expected one of them")
    return content


def check_run(workdir: Path) -> dict[str, Any]:
    """The configuration of the run in a workdir; `InputError` if there is none."""
    config = launcher.read_config(workdir, NAME)
    if config is None:
        raise InputError(f"--workdir={workdir}: no run there; expected a workdir of experiments.learn")
    return config


def _level(fields: dict[str, Any]) -> StackedLevel:
    values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
    return StackedLevel(**values)
