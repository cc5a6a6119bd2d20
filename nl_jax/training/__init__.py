"""Pre-training: mesh and shardings, optimizer, step, loop, checkpoints and metrics.

`fit` is the training loop. Its parts are pure functions or small file formats, so that a notebook can use them alone:
`train_in_memory` to train a small language model in one call, `init_state` and `train_step` for a training step,
`evaluate` for bits per byte, `accuracy` for tasks with answers, and `restore_newest` for a trained model.
"""

from nl_jax.evaluation import Accuracies, accuracies, accuracy, bits_by_position, evaluate
from nl_jax.parallel.mesh import parse_mesh, use_cpu_cores
from nl_jax.parallel.sharding import batch_sharding, parameter_shardings, state_shardings
from nl_jax.parameter_axes import logical_axes
from nl_jax.training.checkpoint import Checkpoint, CheckpointWriter, restore_newest
from nl_jax.training.divergence import SkippedSteps, TrainingDiverged, finite_outputs
from nl_jax.training.in_memory import Trained, train_in_memory
from nl_jax.training.loop import Progress, TrainingInterrupted, fit, progress_bar
from nl_jax.training.metrics import MetricsWriter, read_metrics
from nl_jax.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    LevelOptimizers,
    decay_mask,
    learning_rate_schedule,
    make_optimizer,
    peak_rates,
)
from nl_jax.training.plots import plot_accuracy, plot_validation
from nl_jax.training.schedule import describe_training, training_schedule
from nl_jax.training.step import TrainState, compile_step, init_state, peak_memory_bytes, train_step
from nl_jax.trees import named_leaves

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Accuracies",
    "Checkpoint",
    "CheckpointWriter",
    "LevelOptimizers",
    "MetricsWriter",
    "Progress",
    "SkippedSteps",
    "TrainState",
    "Trained",
    "TrainingDiverged",
    "TrainingInterrupted",
    "accuracies",
    "accuracy",
    "batch_sharding",
    "bits_by_position",
    "compile_step",
    "decay_mask",
    "describe_training",
    "evaluate",
    "finite_outputs",
    "fit",
    "init_state",
    "learning_rate_schedule",
    "logical_axes",
    "make_optimizer",
    "named_leaves",
    "parameter_shardings",
    "parse_mesh",
    "peak_memory_bytes",
    "peak_rates",
    "plot_accuracy",
    "plot_validation",
    "progress_bar",
    "read_metrics",
    "restore_newest",
    "state_shardings",
    "train_in_memory",
    "train_step",
    "training_schedule",
    "use_cpu_cores",
]
