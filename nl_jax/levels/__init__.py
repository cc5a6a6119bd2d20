"""Levels and schedules: learners, each with its own state, context and update frequency, composed into one system."""

from nl_jax.levels.from_least_squares import from_least_squares
from nl_jax.levels.from_memory import MemoryLevelState, Pair, from_memory
from nl_jax.levels.from_parts import Learner, from_loss, from_optax
from nl_jax.levels.level import Context, Level
from nl_jax.levels.schedule import Flow, Schedule, ScheduleState
from nl_jax.levels.transfer import (
    by_backpropagation,
    by_context,
    by_generation,
    by_initialisation,
    by_parameters,
    first_order,
    restarted_by,
)

__all__ = [
    "Context",
    "Flow",
    "Learner",
    "Level",
    "MemoryLevelState",
    "Pair",
    "Schedule",
    "ScheduleState",
    "by_backpropagation",
    "by_context",
    "by_generation",
    "by_initialisation",
    "by_parameters",
    "first_order",
    "from_least_squares",
    "from_loss",
    "from_memory",
    "from_optax",
    "restarted_by",
]
