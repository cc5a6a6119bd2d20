"""One training step, as a pure function of explicit state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from nl_jax.models.losses import Batch, loss_and_state, where_diverged
from nl_jax.parallel import batch_sharding, parameter_shardings
from nl_jax.trees import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        model: the model, a pytree of parameters.
        opt_state: the optimizer's state: moments, number of steps, the sums of gradients of CMS levels.
    """

    model: PyTree
    opt_state: PyTree


def init_state(init_model: Callable[[], PyTree], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; pure, so that ``jit`` can create it split over a mesh."""
    model = init_model()
    return TrainState(model, optimizer.init(model))


def train_step(
    optimizer: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer step on `mean_loss`.

    Returns:
        The new state, and ``loss`` (nats per target before the step), ``grad_norm`` (before clipping) and
        ``diverged_layer``, of `first_diverged_layer`; where the CMS learns in context also ``diverged_levels``,
        the sum of 2^i over its levels i that are not finite. Where one of the first two is not finite the new
        state is not to be used.
    """
    (loss, learned), grads = jax.value_and_grad(loss_and_state, has_aux=True)(state.model, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)
    outputs = {"loss": loss, "grad_norm": optax.tree.norm(grads), **where_diverged(state.model, learned)}
    return TrainState(model, opt_state), outputs


def compile_step(
    optimizer: optax.GradientTransformation, mesh: Mesh, state: PyTree, batch: PyTree
) -> jax.stages.Compiled:
    """Compiles `train_step` ahead of time for a mesh; the state passed to it is donated.

    Args:
        optimizer: as for `train_step`.
        mesh: where state and batch lie, split as `parameter_shardings` and `batch_sharding` say.
        state, batch: arrays, or their shapes and types.
    """
    state_sharding = parameter_shardings(mesh, state)
    step = jax.jit(
        lambda state, batch: train_step(optimizer, state, batch),
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, None),
        donate_argnums=0,
    )
    return step.lower(state, batch).compile()


def peak_memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that one device needs for a compiled step, by XLA's account of it, donated buffers counted once.

    Not what the device measured: that peak covers all that the process ever ran, another model's training too, and a
    CPU does not measure.
    """
    need: Any = compiled.memory_analysis()
    return int(
        need.argument_size_in_bytes + need.output_size_in_bytes + need.temp_size_in_bytes - need.alias_size_in_bytes
    )
