"""Pre-training as a schedule: the parameters are levels, each with its optimizer and its own update frequency.

The data of a step are a batch. One backward pass gives every level its gradient. A level with period p is updated once
every p steps, with the sum of its clipped gradients (§7, Eq. 70-71 of arXiv 2512.24695). So the same kind of object
composes levels in a notebook and trains on many devices.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import optax

from nl_jax.levels import Level, Schedule, from_optax
from nl_jax.models.in_context import learning_schedule
from nl_jax.models.losses import Batch
from nl_jax.models.reading import learns_in_context
from nl_jax.training.accumulation import loss_and_gradients
from nl_jax.training.optimizer import LevelOptimizers
from nl_jax.trees import PyTree, named_leaves, replace_leaves, select_leaves

TABLE_STEPS = 64  # largest number of steps in a timetable
PARAMETERS = "parameters"  # name of the level of all parameters that no other level owns
_CMS_LEVEL = re.compile(r"(?:^|\.)cms\.levels\.(\d+)\.")


def training_schedule(
    model: PyTree, optimizer: optax.GradientTransformation | LevelOptimizers, accumulate: int = 1
) -> Schedule:
    """The schedule of pre-training, of which a training step is one step.

    Its levels are ``cms_0``, ``cms_1``, ..., the blocks of the continuum memory, and ``parameters``, which owns all
    other parameters. The state of each is a `Learner`. The data of a step are a batch. Besides the state a step returns
    ``loss``, ``grad_norm`` and the place at which memories are not finite, as `train_step` does.

    Args:
        model: the tree of parameters, as arrays or as their shapes and dtypes.
        optimizer: the result of `make_optimizer`, or any optax transformation; then all parameters are one level.
        accumulate: number of microbatches of a step, as for `loss_and_gradients`.

    Raises:
        ValueError: the model has more CMS levels than there are periods.

    Examples:
        >>> import jax, optax
        >>> from flax import nnx
        >>> from nl_jax.models import LanguageModel, named_config
        >>> from nl_jax.training import make_optimizer, training_schedule
        >>> config = named_config("hope", "tiny", cms_periods=(1, 4), num_layers=1)
        >>> model = jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
        >>> schedule = training_schedule(model, make_optimizer(steps=100, cms_periods=(1, 4)))
        >>> print(schedule.table(12))
        cms_0       ████████████
        parameters  ████████████
        cms_1       ···█···█···█
    """
    given = optimizer if isinstance(optimizer, LevelOptimizers) else LevelOptimizers(lambda period: optimizer)
    paths = _paths(model, given.cms_periods)
    periods = {PARAMETERS: 1, **{f"cms_{i}": period for i, period in enumerate(given.cms_periods or ())}}
    levels = [_level(name, given, model, periods[name], own) for name, own in paths.items()]
    clip = optax.identity() if given.max_norm is None else optax.clip_by_global_norm(given.max_norm)

    def flow(read: Any, batch: Batch) -> tuple[dict[str, PyTree], dict[str, Any]]:
        parameters = replace_leaves(model, {path: leaf for name in paths for path, leaf in read(name).items()})
        loss, gradients, diverged = loss_and_gradients(parameters, batch, accumulate)
        outputs = {"loss": loss, "grad_norm": optax.tree.norm(gradients), **diverged}
        outputs |= {f"grad_norm/{name}": optax.tree.norm(select_leaves(gradients, own)) for name, own in paths.items()}
        clipped, _ = clip.update(gradients, clip.init(parameters))
        return {name: select_leaves(clipped, own) for name, own in paths.items()}, outputs

    return Schedule(levels, flow, has_aux=True)


def describe_training(model: PyTree, optimizer: optax.GradientTransformation | LevelOptimizers) -> str:
    """Describes the levels of `training_schedule` as text: their contents, sizes and times of update.

    Args:
        model, optimizer: as for `training_schedule`.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> from nl_jax.models import LanguageModel, named_config
        >>> from nl_jax.training import describe_training, make_optimizer
        >>> config = named_config("hope", "tiny", cms_periods=(1, 4), num_layers=1)
        >>> model = jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
        >>> text = describe_training(model, make_optimizer(steps=100, cms_periods=(1, 4)))
        >>> print(text[text.index("updates") :])
        updates in the first 8 steps:
        cms_0       ████████
        parameters  ████████
        cms_1       ···█···█
    """
    schedule = training_schedule(model, optimizer)
    own = {level.name: select_leaves(model, level.paths) for level in schedule.levels}
    state = jax.eval_shape(lambda own: schedule.init(None, None, start=own, contexts=own), own)
    shown = min(2 * schedule.periods[-1], TABLE_STEPS)
    return f"{schedule.tree(state)}\nupdates in the first {shown} steps:\n{schedule.table(shown)}"


class _Reading(NamedTuple):
    """The schedule that reading runs, for ``Schedule.tree``; the model may be arrays, or their shapes and types."""

    model: PyTree

    def tree(self, state: Any = None, indent: str = "") -> str:
        """The levels that learn in context, as text."""
        text: list[str] = []
        jax.eval_shape(lambda model: text.append(learning_schedule(model, 1).tree(state, indent)), self.model)
        return text[0]


def _paths(model: PyTree, cms_periods: tuple[int, ...] | None) -> dict[str, tuple[str, ...]]:
    """The paths of the parameters that each level owns, by level name, with the levels of the CMS first."""
    owned: dict[str, list[str]] = {f"cms_{i}": [] for i in range(len(cms_periods or ()))}
    owned[PARAMETERS] = []
    for path in named_leaves(model):
        found = _CMS_LEVEL.search(path) if cms_periods is not None else None
        name = f"cms_{found[1]}" if found else PARAMETERS
        if name not in owned:
            raise ValueError(f"level {name!r} has no period; expected one for each CMS level, got {cms_periods}")
        owned[name].append(path)
    return {name: tuple(paths) for name, paths in owned.items() if paths}


def _level(name: str, optimizer: LevelOptimizers, model: PyTree, period: int, paths: tuple[str, ...]) -> Level:
    level = from_optax(
        name, optimizer.of_period(period), model, period=period, paths=paths, objective="loss of the next token"
    )
    if name == PARAMETERS and learns_in_context(model):  # its loss runs a schedule of its own
        level = dataclasses.replace(level, inner=_Reading(model))
    return level
