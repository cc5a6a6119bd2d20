"""Parts that the subjects share: their flags, the record in the workdir, and cells of tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import INPUT_FLAGS
from experiments.common.record import Record

NAME = "optimizers"
TUNING_SEED = 2**31 - 1  # never the seed of a final run
# By subject: the flags that it reads, besides --workdir and --optimizers.
FLAGS = {
    "toy": (),
    "continual": ("seeds", "num_tasks", "task_steps"),
    "training": (
        *("task", "images", "image_size", "data", "model", "seq_len", "steps", "batch_size", "eval_every"),
        *("weight_decay", "points", "seeds"),
    ),
    "speed": ("sizes", "rounds", "max_seconds"),
}


def record_of(
    subject: str,
    workdir: Path,
    values: flags.FlagValues,
    names: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a run; ``metadata`` holds the entries ``data`` and ``models`` of config.json."""
    given = {name: values[name].value for name in FLAGS[subject] if name not in INPUT_FLAGS}
    return Record(
        workdir,
        {
            "launcher": NAME,
            "flags": {"subject": subject, "optimizers": list(names), **given},
            "data": {},
            "models": {},
            **(metadata or {}),
        },
        {"inputs": launcher.inputs_of(values)},
        written=(plot_name(subject, values),),
    )


def plot_name(subject: str, values: flags.FlagValues) -> str:
    """File name of a subject's plot."""
    return f"{values.task if subject == 'training' else subject}.png"


def text_of(value: float | None, spec: str, absent: str = "-") -> str:
    return absent if value is None else format(value, spec)
