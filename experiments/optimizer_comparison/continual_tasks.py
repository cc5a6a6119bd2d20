"""A sequence of tasks with orthogonal gradients (Eq. 45, §4.3), and how much of earlier tasks is forgotten."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.optimizer_comparison.table import OPTIMIZERS as TRAINED

RANK = 4  # dimensions of the subspace of a task's inputs
OUTPUTS = 16
BATCH = 8
NOISE = 0.5  # added to the targets, whose variance is 1 without it
RATES = np.logspace(-4, 1, 31)  # 6 per decade, the same for all optimizers
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    **{name: functools.partial(optimizer.make, decay=0.0) for name, optimizer in TRAINED.items()},
}


class Outcome(NamedTuple):
    """The loss of each task after training on each, by learning rate and seed.

    A loss of 1 is the variance of a task's targets without noise.
    """

    losses: Float[np.ndarray, "rates seeds after task"]

    @property
    def learned(self) -> Float[np.ndarray, "rates seeds task"]:
        """The loss of each task right after training on it."""
        return np.diagonal(self.losses, axis1=-2, axis2=-1)

    @property
    def forgetting(self) -> Float[np.ndarray, "rates seeds task-1"]:
        """After each task but the first, the mean increase in the loss of earlier tasks since training on them."""
        with np.errstate(invalid="ignore"):  # some runs have diverged
            grown = self.losses - self.learned[..., None, :]
        return np.stack([grown[..., n, :n].mean(-1) for n in range(1, grown.shape[-1])], axis=-1)

    @property
    def seen(self) -> Float[np.ndarray, "rates seeds task"]:
        """After each task, the mean loss of all tasks so far."""
        return np.stack([self.losses[..., n, : n + 1].mean(-1) for n in range(self.losses.shape[-1])], axis=-1)

    @property
    def final(self) -> Float[np.ndarray, "rates seeds"]:
        """The mean loss of all tasks after the last one; infinite if it is not finite."""
        return np.nan_to_num(self.losses[..., -1, :].mean(-1), nan=np.inf, posinf=np.inf)


def learn(
    make: Callable[[Any], optax.GradientTransformation],
    rates: Sequence[float] | np.ndarray,
    seeds: Sequence[int],
    *,
    num_tasks: int,
    steps: int,
) -> Outcome:
    """Trains y = W x on tasks 1, 2, ..., ``steps`` steps each, for every rate and seed; all runs are one program.

    The inputs of a task are normally distributed in a subspace of 4 dimensions, orthogonal to the subspaces of all
    other tasks. So its gradients (outer products of x and the error) are orthogonal to those of other tasks, and no
    task has to be forgotten for another. Targets come from random weights, with noise. The optimizer does not know
    where a task ends.
    """
    size = RANK * num_tasks

    def run(rate, seed):
        transformation = make(rate)
        key = jax.random.key(seed)
        bases, truth, data = jax.random.split(key, 3)
        subspaces = jnp.linalg.qr(jax.random.normal(bases, (size, size)))[0].reshape(num_tasks, RANK, size)
        target = jax.random.normal(truth, (size, OUTPUTS)) / RANK**0.5
        start = jnp.zeros_like(target)

        def losses(w: Array) -> Array:
            """The expected loss of every task: the mean over outputs of |U (W - W*)|²."""
            return jnp.sum(jnp.square(subspaces @ (w - target)), axis=(1, 2)) / OUTPUTS

        def train(carry, task):
            def step(carry, number):
                w, state = carry
                inputs, noise = jax.random.split(jax.random.fold_in(data, number))
                x = jax.random.normal(inputs, (BATCH, RANK)) @ subspaces[task]
                y = x @ target + NOISE * jax.random.normal(noise, (BATCH, OUTPUTS))
                gradient = jax.grad(lambda w: 0.5 * jnp.mean(jnp.sum(jnp.square(x @ w - y), axis=-1)))(w)
                update, state = transformation.update(gradient, state, w)
                return (optax.apply_updates(w, update), state), None

            carry, _ = jax.lax.scan(step, carry, task * steps + jnp.arange(steps))
            return carry, losses(carry[0])

        return jax.lax.scan(train, (start, transformation.init(start)), jnp.arange(num_tasks))[1]

    over_seeds = jax.vmap(run, in_axes=(None, 0))
    program = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))
    return Outcome(np.asarray(program(jnp.asarray(rates, jnp.float32), jnp.asarray(seeds, jnp.uint32)), np.float64))
