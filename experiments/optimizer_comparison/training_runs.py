"""Training by many optimizers, learning rates and seeds: one program for all runs of one, many steps a call."""

import concurrent.futures
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.optimizer_comparison.tasks import ComparisonTask, Scores
from nl_jax.training import TrainState, learning_rate_schedule

Curves = dict[str, list[float | None]]  # a value for each evaluation, from the first to the last; None: not finite


class Grid(NamedTuple):
    """Learning rates ``middle * factor**i``: the same number around the middle for every optimizer.

    Attributes:
        points: how many, before it is extended.
        factor: between two of them.
        most: how many more there may be beyond an edge where the best lies.
    """

    points: int
    factor: float = 2.0
    most: int = 8

    def search(self, middle: float, losses: dict[str, float | None]) -> Iterator[list[float]]:
        """Rates still to try, until the best lies inside; ``losses`` gets theirs, by `rate_name`, in between."""
        low = -(self.points // 2)
        high = low + self.points - 1
        while True:
            rates = [middle * self.factor**i for i in range(low, high + 1)]
            missing = [rate for rate in rates if rate_name(rate) not in losses]
            if missing:
                yield missing
                continue
            place = rates.index(best_rate({rate_name(rate): losses[rate_name(rate)] for rate in rates}))
            if 0 < place < len(rates) - 1 or len(rates) >= self.points + self.most:
                return
            low, high = (low - 1, high) if place == 0 else (low, high + 1)


def rate_name(rate: float) -> str:
    """A rate as a key in results.json; the rate itself, exactly."""
    return repr(rate)


def best_rate(losses: dict[str, float | None]) -> float:
    """The rate of the lowest loss; a loss that is None was not finite."""
    return float(min(losses, key=lambda name: (losses[name] is None, losses[name] or 0.0, float(name))))


class Trainer:
    """Runs of one optimizer on one task.

    All of them clip gradients to global norm 1, and warm up over a tenth of the steps, then follow a cosine to a tenth
    of the learning rate.

    Args:
        task: what is trained.
        make: the optimizer, of a schedule.
        steps: of a run; a multiple of ``interval``.
        interval: steps between evaluations, which are one call.
        lanes: runs that are trained side by side, by ``vmap``: all at once, fewer of them are filled up, so that there
            is one program; 1 for one after the other.
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
            return TrainState(model, optimizer(rate).init(model))

        def advance(state, rate, key, number, train):
            """``interval`` steps from step ``number`` on; the mean of their losses."""
            transformation, key = optimizer(rate), jax.random.split(key)[1]

            def step(state, number):
                batch = task.batch(train, jax.random.fold_in(key, number))
                loss, gradients = jax.value_and_grad(task.loss)(state.model, batch)
                updates, opt_state = transformation.update(gradients, state.opt_state, state.model)
                return TrainState(optax.apply_updates(state.model, updates), opt_state), loss

            state, losses = jax.lax.scan(step, state, number + jnp.arange(interval))
            return state, losses.mean()

        if lanes > 1:
            start = jax.vmap(start)
            advance = jax.vmap(advance, in_axes=(0, 0, 0, None, None))
        self._start, self._advance, self._score = jax.jit(start), jax.jit(advance), _scorer(task.score, lanes > 1)
        self._compiled = False

    def lower(self) -> list[Any]:
        """Its own programs, traced but not compiled; none where they are."""
        if self._compiled:
            return []
        arguments = self._arguments([0.0] * self.lanes, [0] * self.lanes)
        state = jax.eval_shape(self._start, *arguments)
        return [self._start.lower(*arguments), self._advance.lower(state, *arguments, 0, self._task.train)]

    def use(self, compiled: Sequence[Any]) -> None:
        """Takes the compiled programs of `lower`."""
        if compiled:
            self._start, self._advance = compiled
            self._compiled = True

    def _arguments(self, rates: Sequence[float], seeds: Sequence[int]) -> tuple[Any, Any]:
        """Learning rates and keys of all lanes."""
        rate, key = jnp.array(rates), jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
        return (rate, key) if self.lanes > 1 else (rate[0], key[0])

    def runs(
        self, rates: Sequence[float], seeds: Sequence[int], held_out: Any, progress: Callable[[int], None]
    ) -> Iterator[Curves]:
        """Trains a run for each rate and seed, side by side or one after the other.

        Args:
            rates, seeds: of the runs; a seed decides the initial model and the batches, for every optimizer alike.
            held_out: what `ComparisonTask.score` takes.
            progress: called with the number of intervals that are done.

        Yields:
            The curves of each run: ``train_loss``, the mean over the steps since the last evaluation, and the scores
            of ``held_out``, with what is not finite as None.
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
                rows.append(jax.device_get({"train_loss": loss, **self._score(state.model, held_out)}))
                progress(len(group))
            for lane in range(len(group)):
                yield {name: [_finite(float(np.atleast_1d(row[name])[lane])) for row in rows] for name in rows[0]}

    def interval_call(self, rate: float) -> Callable[[], float]:
        """An interval of one run from its start, always the same, as a call that returns the mean loss after it."""
        assert self.lanes == 1
        arguments = self._arguments([rate], [0])
        state = self._start(*arguments)
        call = functools.partial(self._advance, state, *arguments, 0, self._task.train)
        return lambda: float(jax.block_until_ready(call())[1])


@functools.cache
def _scorer(score: Callable[[Any, Any], Scores], side_by_side: bool) -> Callable[[Any, Any], Scores]:
    """A task's scores as one program for all optimizers."""
    return jax.jit(jax.vmap(score, in_axes=(0, None)) if side_by_side else score)


def compile_all(trainers: Sequence[Trainer]) -> None:
    """Compiles what is not compiled, on all cores at once."""
    lowered = [trainer.lower() for trainer in trainers]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [[pool.submit(program.compile) for program in programs] for programs in lowered]
        for trainer, programs in zip(trainers, futures, strict=True):
            trainer.use([program.result() for program in programs])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
