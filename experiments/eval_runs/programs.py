"""Compiled training: one program for all learning rates, and for all subtasks of the same sizes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from experiments.common.programs import Program, make_program
from experiments.eval_runs.evaluation import Batch
from nl_jax.models import LanguageModelConfig
from nl_jax.training import LevelOptimizers, TrainState, make_optimizer


class RateFactor(NamedTuple):
    """The state of `with_rate_factor`."""

    factor: Float[Array, ""]


def with_rate_factor(optimizers: LevelOptimizers) -> LevelOptimizers:
    """The same optimizers, whose updates are multiplied by a factor that their states hold.

    The factor multiplies the learning rate of every optimizer whose update is proportional to it, weight decay
    included, as AdamW's is. So one compiled program serves all learning rates.
    """

    def update(updates: Any, state: RateFactor, params: Any = None) -> tuple[Any, RateFactor]:
        return jax.tree.map(lambda u: state.factor.astype(u.dtype) * u, updates), state

    scale = optax.GradientTransformation(lambda params: RateFactor(jnp.ones(())), update)
    return optimizers._replace(of_period=lambda period: optax.chain(optimizers.of_period(period), scale))


def set_rate_factor(state: TrainState, factor: float) -> TrainState:
    """A training state whose updates are multiplied by the factor."""

    def is_factor(node: Any) -> bool:
        return isinstance(node, RateFactor)

    def replaced(node: Any) -> Any:
        return RateFactor(jnp.full_like(node.factor, factor)) if is_factor(node) else node

    return TrainState(state.model, jax.tree.map(replaced, state.opt_state, is_leaf=is_factor))


def rated_program(build: Callable[..., Any], config: LanguageModelConfig, steps: int, batch: Any) -> Program:
    """The program of a model, at learning rate 1 until `set_rate_factor` says otherwise."""
    optimizer = make_optimizer(learning_rate=1.0, steps=steps, cms_periods=config.optimizer_periods)
    return make_program(build, config, with_rate_factor(optimizer), batch)


class Programs:
    """The program of a model and subtask; the newest is kept, since subtasks of the same sizes share it."""

    def __init__(self) -> None:
        self._make = functools.lru_cache(maxsize=1)(self._compiled)

    def __call__(self, build: Callable[..., Any], config: LanguageModelConfig, steps: int, batch: Batch) -> Program:
        """The program for a kind of model, its configuration, a number of steps and batches like the given one."""
        shapes = tuple(sorted((name, array.shape, array.dtype.str) for name, array in batch.items()))
        return self._make(build, config, steps, shapes)

    @staticmethod
    def _compiled(build: Callable[..., Any], config: LanguageModelConfig, steps: int, shapes: Any) -> Program:
        batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes}
        return rated_program(build, config, steps, batch)
