"""One training step, as a pure function of explicit state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from nl_jax.levels import Learner, Schedule, ScheduleState
from nl_jax.models.losses import Batch
from nl_jax.parallel import batch_sharding, parameter_shardings
from nl_jax.training.divergence import SKIPPED
from nl_jax.training.optimizer import LevelOptimizers
from nl_jax.training.schedule import training_schedule
from nl_jax.trees import PyTree, replace_leaves, select_leaves

Optimizer: TypeAlias = optax.GradientTransformation | LevelOptimizers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training: that of `training_schedule`, with the parameters of all levels in one model.

    Attributes:
        model: the model, a pytree of parameters.
        opt_state: the rest of the schedule's state: the number of steps, the state of each level's optimizer, and the
            sums of the gradients since the last update of each slow level.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from nl_jax.training import init_state
        >>> state = init_state(lambda: {"w": jnp.ones(2)}, optax.sgd(0.1))
        >>> print(state.model["w"], state.opt_state.step)
        [1. 1.] 0
    """

    model: PyTree
    opt_state: ScheduleState


def init_state(init_model: Callable[[], PyTree], optimizer: Optimizer) -> TrainState:
    """The state before the first step; pure, so that ``jit`` can create it split over a mesh.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> from nl_jax.training import init_state
        >>> state = jax.eval_shape(lambda: init_state(lambda: {"w": jnp.ones(2)}, optax.adam(0.1)))
        >>> state.model["w"].shape, list(state.opt_state.levels)
        ((2,), ['parameters'])
    """
    model = init_model()
    schedule = training_schedule(model, optimizer)
    own = {level.name: select_leaves(model, level.paths) for level in schedule.levels}
    return _put_together(model, schedule.init(None, None, start=own, contexts=own))


def train_step(
    optimizer: Optimizer, state: TrainState, batch: Batch, accumulate: int = 1
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step of `training_schedule`, on the `mean_loss` of a batch; or none, if loss or gradient is not finite.

    Such a batch is left out: the state stays as it was, with the sums of the slow levels and the schedule's clock, so
    that a slow level still sums as many gradients as its period has steps.

    Args:
        optimizer: of each level, or any optax transformation for all parameters.
        state: before the step.
        batch: ``inputs`` and ``targets``, int32 ``[B, T]``, and possibly ``mask``.
        accumulate: number of microbatches that run one after the other, as for `loss_and_gradients`.

    Returns:
        The new state, and a dictionary with ``loss`` (nats per target before the step), ``grad_norm`` (before
        clipping), ``skipped`` (whether the batch was left out) and ``diverged_layer`` (see `first_diverged_layer`). If
        the CMS learns in context the dictionary also has ``diverged_levels``, the sum of 2^i over its levels i that are
        not finite. ``grad_norm/LEVEL`` and ``update_norm/LEVEL`` are the norms of each level's gradient, before
        clipping, and of the change of its parameters, 0 where it is not due; ``state_norm/mixers`` is of `state_norms`.

    Examples:
        >>> import functools, jax, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from nl_jax.models import LanguageModel, LanguageModelConfig
        >>> from nl_jax.training import init_state, train_step
        >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 16, "chunk_size": 4}
        >>> config = LanguageModelConfig(mixer="linear_attention", vocab_size=4, **sizes)
        >>> optimizer = optax.adam(3e-2)
        >>> state = init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(0)), optimizer)
        >>> step = jax.jit(functools.partial(train_step, optimizer))
        >>> tokens = jnp.arange(9)[None] % 4
        >>> batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        >>> losses = []
        >>> for _ in range(30):
        ...     state, outputs = step(state, batch)
        ...     losses.append(float(outputs["loss"]))
        >>> losses[-1] < 0.1 * losses[0]
        True
    """
    schedule = training_schedule(state.model, optimizer, accumulate)
    old = _taken_apart(schedule, state)
    new, outputs = schedule.step(old, batch)
    for name, learner in new.levels.items():
        update = jax.tree.map(jnp.subtract, learner.params, old.levels[name].params)
        outputs[f"update_norm/{name}"] = optax.tree.norm(update)
    finite = jnp.isfinite(outputs["loss"]) & jnp.isfinite(outputs["grad_norm"])
    # A select fuses with the update; lax.cond changes how the update is compiled, and so its rounding.
    kept = jax.tree.map(functools.partial(jnp.where, finite), _put_together(state.model, new), state)
    return kept, outputs | {SKIPPED: ~finite}


def _put_together(model: PyTree, state: ScheduleState) -> TrainState:
    """The model, with the parameters of all levels, and the rest of the schedule's state."""
    leaves = {path: leaf for learner in state.levels.values() for path, leaf in learner.params.items()}
    rest = {name: learner.optimizer for name, learner in state.levels.items()}
    return TrainState(replace_leaves(model, leaves), ScheduleState(state.step, rest, state.pending))


def _taken_apart(schedule: Schedule, state: TrainState) -> ScheduleState:
    """The state of the schedule, in which every level has its own parameters."""
    own = state.opt_state
    levels = {
        level.name: Learner(select_leaves(state.model, level.paths), own.levels[level.name])
        for level in schedule.levels
    }
    return ScheduleState(own.step, levels, own.pending)


def compile_step(
    optimizer: Optimizer, mesh: Mesh, state: PyTree, batch: PyTree, accumulate: int = 1
) -> jax.stages.Compiled:
    """Compiles `train_step` ahead of time for a mesh; the state passed to it is donated.

    Args:
        optimizer, accumulate: as for `train_step`.
        mesh: where state and batch lie, split as `parameter_shardings` and `batch_sharding` say.
        state, batch: arrays, or their shapes and dtypes.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> from nl_jax.parallel import parse_mesh
        >>> from nl_jax.training import compile_step, init_state
        >>> def next_token(table, tokens, state=None):
        ...     return table[tokens], state
        >>> optimizer, tokens = optax.sgd(1.0), jnp.array([[0, 1, 2]])
        >>> state = init_state(lambda: jax.tree_util.Partial(next_token, jnp.zeros((4, 4))), optimizer)
        >>> batch = {"inputs": tokens, "targets": tokens + 1}
        >>> step = compile_step(optimizer, parse_mesh("data:1", jax.devices()[:1]), state, batch)
        >>> state, outputs = step(state, batch)
        >>> round(float(outputs["loss"]), 3)  # log 4: all tokens were equally likely
        1.386
    """
    state_sharding = parameter_shardings(mesh, state)
    step = jax.jit(
        lambda state, batch: train_step(optimizer, state, batch, accumulate),
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, None),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):  # the sharding constraints inside the model look for it
        return step.lower(state, batch).compile()


def peak_memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that one device needs for a compiled step, by XLA's account of it, donated buffers counted once.

    Not what the device measured: that peak covers all that the process ever ran, another model's training too, and a
    CPU does not measure.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.training import peak_memory_bytes
        >>> compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(1_000)).compile()
        >>> peak_memory_bytes(compiled) >= 2 * 4_000  # argument and result, of 4 bytes each
        True
    """
    need: Any = compiled.memory_analysis()
    return int(
        need.argument_size_in_bytes + need.output_size_in_bytes + need.temp_size_in_bytes - need.alias_size_in_bytes
    )
