"""One training step and one evaluation, as pure functions of explicit state."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from nl_jax.data import EvaluationSet
from nl_jax.models.chunk import all_finite
from nl_jax.models.reading import learns_in_context, read
from nl_jax.training.sharding import batch_sharding, parameter_shardings

PyTree = Any
Batch = dict[str, Any]


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


def token_losses(model: PyTree, batch: Batch) -> Float[Array, "B T"]:
    """Loss in nats of each target of a batch of ``inputs`` and ``targets``, both int32 ``[B, T]``."""
    return _losses_and_state(model, batch)[0]


def _read_batch(model: PyTree, batch: Batch) -> tuple[Float[Array, "B T vocab"], PyTree]:
    """Logits and last state; a model that learns in context learns from the targets. Every loss and score calls it."""
    return read(model, batch["inputs"], targets=batch["targets"], mask=batch.get("mask"))


def _losses_and_state(model: PyTree, batch: Batch) -> tuple[Float[Array, "B T"], PyTree]:
    logits, state = _read_batch(model, batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["targets"])
    return losses, state


def mean_loss(model: PyTree, batch: Batch) -> Float[Array, ""]:
    """Loss in nats per target: of all, or of those whose ``mask`` (float32 ``[B, T]``) is 1 where a batch has one."""
    return _mean_loss(model, batch)[0]


def _mean_loss(model: PyTree, batch: Batch) -> tuple[Float[Array, ""], PyTree]:
    losses, state = _losses_and_state(model, batch)
    return jnp.average(losses, weights=batch.get("mask")), state


def first_diverged_layer(state: PyTree) -> Int[Array, ""]:
    """Index of the first layer whose memories hold what is not finite, -1 if there is none.

    Args:
        state: of a model, floating point leaves ``[layers, ...]``.
    """
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not leaves:
        return jnp.asarray(-1)
    bad = jnp.stack([jnp.any(~jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves]).any(axis=0)
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1)


def _where_diverged(model: PyTree, state: PyTree) -> dict[str, Int[Array, ""]]:
    """What of a state of `read` is not finite: a first layer, or -1; levels i of a CMS that learns, as a sum of 2^i."""
    if not learns_in_context(model):
        return {"diverged_layer": first_diverged_layer(state)}
    levels = [state.levels[f"cms_{i}"] for i in range(len(model.config.cms_periods))]
    bits = jnp.stack([~all_finite(level) for level in levels]) * 2 ** jnp.arange(len(levels))
    return {"diverged_layer": first_diverged_layer(state.levels["mixers"]), "diverged_levels": jnp.sum(bits)}


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
    (loss, learned), grads = jax.value_and_grad(_mean_loss, has_aux=True)(state.model, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)
    outputs = {"loss": loss, "grad_norm": optax.tree.norm(grads), **_where_diverged(state.model, learned)}
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


@jax.jit
def _total_nats(model: PyTree, batch: Batch) -> Float[Array, ""]:
    return jnp.sum(token_losses(model, batch) * batch["mask"])


def evaluate(model: PyTree, data: EvaluationSet, mesh: Mesh) -> float:
    """Bits per byte of a model on a fixed set of batches: summed nats / ln 2 / bytes of text."""
    put = functools.partial(jax.device_put, device=batch_sharding(mesh))
    nats = math.fsum(float(_total_nats(model, put(batch))) for batch in data.batches)  # float64, on the host
    return nats / math.log(2) / data.num_bytes


@jax.jit
def _nats_by_position(model: PyTree, batch: Batch) -> Float[Array, " T"]:
    return jnp.sum(token_losses(model, batch) * batch["mask"], axis=0)


def bits_by_position(model: PyTree, data: EvaluationSet, mesh: Mesh) -> Float[np.ndarray, " T"]:
    """Mean bits of the target after each position of a sequence, over a fixed set of batches; NaN where none is."""
    put = functools.partial(jax.device_put, device=batch_sharding(mesh))
    nats = sum(np.asarray(_nats_by_position(model, put(batch)), np.float64) for batch in data.batches)
    targets = sum(batch["mask"].sum(axis=0, dtype=np.float64) for batch in data.batches)
    return np.divide(nats, targets * math.log(2), out=np.full(targets.shape, np.nan), where=targets > 0)


class Accuracies(NamedTuple):
    """Shares, from 0 to 1, of what a model gets right."""

    positions: float
    sequences: float


@jax.jit
def _count_correct(model: PyTree, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits, _ = _read_batch(model, batch)
    correct = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["mask"]
    whole = jnp.all(correct == batch["mask"], axis=-1) & jnp.any(batch["mask"], axis=-1)
    # where logits are not finite the first of them is no answer
    finite = jnp.all(jnp.isfinite(logits) | (batch["mask"] == 0)[..., None])
    return jnp.where(finite, jnp.sum(correct), jnp.nan), jnp.where(finite, jnp.sum(whole), jnp.nan)


def accuracies(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> Accuracies:
    """Shares, over all batches, of the targets with mask 1 that come first, and of the sequences where all of them do.

    They are NaN where the logits that they are of are not finite.

    Args:
        model: as for `token_losses`.
        batches: of ``inputs``, ``targets`` and ``mask``, each ``[B, T]``; sequences with no target do not count.
        mesh: where the batches are put, as `batch_sharding` says.
    """
    put = functools.partial(jax.device_put, device=batch_sharding(mesh))
    positions, sequences = zip(*(_count_correct(model, put(batch)) for batch in batches), strict=True)
    targets = math.fsum(float(batch["mask"].sum()) for batch in batches)
    rows = math.fsum(float(batch["mask"].any(axis=-1).sum()) for batch in batches)
    return Accuracies(math.fsum(map(float, positions)) / targets, math.fsum(map(float, sequences)) / rows)


def accuracy(model: PyTree, batches: Sequence[Batch], mesh: Mesh) -> float:
    """Share of the targets with mask 1, over all batches of ``inputs``, ``targets`` and ``mask``, that come first."""
    return accuracies(model, batches, mesh).positions


def peak_memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that one device needs for a compiled step, by XLA's account of it, donated buffers counted once.

    Not what the device measured: that peak covers all that the process ever ran, another model's training too, and a
    CPU does not measure.
    """
    need: Any = compiled.memory_analysis()
    return int(
        need.argument_size_in_bytes + need.output_size_in_bytes + need.temp_size_in_bytes - need.alias_size_in_bytes
    )
