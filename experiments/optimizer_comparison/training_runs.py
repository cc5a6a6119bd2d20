"""Training with many optimizers, learning rates and seeds: one program per optimizer, many steps per call."""

import concurrent.futures
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.optimizer_comparison.tasks import ComparisonTask, Scores
from nl_jax.levels import Learner
from nl_jax.training import learning_rate_schedule

Curves = dict[str, list[float | None]]  # a value for each evaluation in order; None if it is not finite


class Trainer:
    """The runs of one optimizer on one task.

    All runs clip gradients to global norm 1. The learning rate warms up over a tenth of the steps, and then follows a
    cosine to a tenth of its peak.

    Args:
        task: the training task.
        make: ``make(schedule)`` returns the optimizer.
        steps: number of steps of a run, a multiple of ``interval``.
        interval: number of steps between evaluations, which are one call.
        lanes: number of runs trained side by side by ``vmap``; 1 trains them one after the other. Fewer runs are filled
            up to this number, so that there is one program.
    """

    def __init__(
        self,
        task: ComparisonTask,
        make: Callable[[Any], optax.GradientTransformation],
        *,
        steps: int,
        interval: int,
        lanes: int = 1,
    ):
        self._task, self._steps, self._interval, self.lanes = task, steps, interval, lanes
        shape = learning_rate_schedule(1.0, steps, steps // 10)

        def optimizer(rate):
            return optax.chain(optax.clip_by_global_norm(1.0), make(lambda count: rate * shape(count)))

        def start(rate, key):
            model = task.init(jax.random.split(key)[0])
            return Learner(model, optimizer(rate).init(model))

        def advance(state, rate, key, number, train):
            """Makes ``interval`` steps from step ``number`` on, and returns also the mean of their losses."""
            transformation, key = optimizer(rate), jax.random.split(key)[1]

            def step(state, number):
                batch = task.batch(train, jax.random.fold_in(key, number))
                loss, gradients = jax.value_and_grad(task.loss)(state.params, batch)
                updates, opt_state = transformation.update(gradients, state.optimizer, state.params)
                return Learner(optax.apply_updates(state.params, updates), opt_state), loss

            state, losses = jax.lax.scan(step, state, number + jnp.arange(interval))
            return state, losses.mean()

        if lanes > 1:
            start = jax.vmap(start)
            advance = jax.vmap(advance, in_axes=(0, 0, 0, None, None))
        self._start, self._advance, self._score = jax.jit(start), jax.jit(advance), _scorer(task.score, lanes > 1)
        self._compiled = False

    def lower(self) -> list[Any]:
        """The traced but not yet compiled programs of this trainer; empty if they are compiled."""
        if self._compiled:
            return []
        arguments = self._arguments([0.0] * self.lanes, [0] * self.lanes)
        state = jax.eval_shape(self._start, *arguments)
        return [self._start.lower(*arguments), self._advance.lower(state, *arguments, 0, self._task.train)]

    def use(self, compiled: Sequence[Any]) -> None:
        """Sets the compiled programs of `lower`."""
        if compiled:
            self._start, self._advance = compiled
            self._compiled = True

    def _arguments(self, rates: Sequence[float], seeds: Sequence[int]) -> tuple[Any, Any]:
        """The learning rates and keys of all lanes."""
        rate, key = jnp.array(rates), jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
        return (rate, key) if self.lanes > 1 else (rate[0], key[0])

    def runs(
        self, rates: Sequence[float], seeds: Sequence[int], held_out: Any, progress: Callable[[int], None]
    ) -> Iterator[Curves]:
        """Trains a run for each rate and seed, side by side or one after the other.

        Args:
            rates, seeds: learning rates and seeds of the runs. A seed decides the initial model and the batches, alike
                for every optimizer.
            held_out: the data for `ComparisonTask.score`.
            progress: called with the number of intervals that are done.

        Yields:
            The curves of each run: ``train_loss``, the mean over the steps since the last evaluation, and the scores
            on ``held_out``; values that are not finite are None.
        """
        pairs = list(zip(rates, seeds, strict=True))
        for first in range(0, len(pairs), self.lanes):
            group = pairs[first : first + self.lanes]
            filled = [*group, *[group[-1]] * (self.lanes - len(group))]
            arguments = self._arguments(*zip(*filled, strict=True))
            state = self._start(*arguments)
            rows = []
            for number in range(0, self._steps, self._interval):
                state, loss = self._advance(state, *arguments, number, self._task.train)
                rows.append(jax.device_get({"train_loss": loss, **self._score(state.params, held_out)}))
                progress(len(group))
            for lane in range(len(group)):
                yield {name: [_finite(float(np.atleast_1d(row[name])[lane])) for row in rows] for name in rows[0]}

    def interval_call(self, rate: float) -> Callable[[], float]:
        """A function that runs the first interval of one run, always from the same start, and returns the mean loss."""
        assert self.lanes == 1
        arguments = self._arguments([rate], [0])
        state = self._start(*arguments)
        call = functools.partial(self._advance, state, *arguments, 0, self._task.train)
        return lambda: float(jax.block_until_ready(call())[1])


@functools.cache
def _scorer(score: Callable[[Any, Any], Scores], side_by_side: bool) -> Callable[[Any, Any], Scores]:
    """The scores of a task as one program for all optimizers."""
    return jax.jit(jax.vmap(score, in_axes=(0, None)) if side_by_side else score)


def compile_all(trainers: Sequence[Trainer]) -> None:
    """Compiles all programs that are not yet compiled, on all cores at once."""
    lowered = [trainer.lower() for trainer in trainers]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [[pool.submit(program.compile) for program in programs] for programs in lowered]
        for trainer, programs in zip(trainers, futures, strict=True):
            trainer.use([program.result() for program in programs])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
