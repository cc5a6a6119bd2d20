"""Memories of the engine as classifiers: a matrix memory from features to classes, and what slower levels add to it.

First-order memories (`matrix_memory`) forget because features are correlated: each write changes the answers to all
similar keys. `two_levels` has a slower level beneath a memory with the delta rule. The slow level holds second-order
state (moments, from which it takes least squares) and gives the fast one its preconditioner:

    fast, at every example:   w = (I - β x xᵀ) w + β x rᵀ     with x = L⁻¹ k / ‖L⁻¹ k‖,  r = y - W k
    slow, every N examples:   G, S += moments of the last N;  L Lᵀ = G + λ I;  W = (L Lᵀ)⁻¹ S;  w = 0

So what was learned since the last consolidation answers at once, and consolidation makes it exact.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int

from experiments.continual_methods.learner import Examples, Learner, Scores, Sizes, one_hot
from experiments.continual_methods.moments import (
    FourierMap,
    Moments,
    add_moments,
    init_moments,
    inputs_of,
    mapped_features,
    ridge_factor,
)
from nl_jax.memory import (
    LeastSquares,
    chunk_update,
    init_least_squares,
    learn_least_squares,
    least_squares_weights,
)

CHUNK = 64  # examples of a chunk of the engine
LARGE_CHUNK = 512  # of the least-squares memory


class MatrixMemory(NamedTuple):
    """Weights and momentum of a matrix memory."""

    weights: Float[Array, "classes mapped"]
    momentum: Float[Array, "classes mapped"]


@jax.jit
def _learn_chunks(memory: MatrixMemory, keys: Array, values: Array, rates: Any) -> MatrixMemory:
    """Learns chunks [chunks, C, ...] of pairs in order."""

    def step(memory, chunk):
        x, v = chunk
        each = {name: jnp.broadcast_to(rate, x.shape[:1]) for name, rate in rates.items()}
        return MatrixMemory(*chunk_update(memory.weights, memory.momentum, x, -v, **each)), None

    return jax.lax.scan(step, memory, (keys, values))[0]


def learn_pairs(memory: MatrixMemory, keys: np.ndarray, values: np.ndarray, rates: dict[str, float]) -> MatrixMemory:
    """A matrix memory after pairs of keys ``[N, mapped]`` of unit length and values ``[N, classes]``."""
    whole = len(keys) // CHUNK * CHUNK
    for part, size in ((slice(0, whole), CHUNK), (slice(whole, None), len(keys) - whole)):
        if len(keys[part]):
            chunks = (array[part].reshape(-1, size, array.shape[1]).astype(np.float32) for array in (keys, values))
            memory = _learn_chunks(memory, *chunks, rates)
    return memory


def unit(x: Float[np.ndarray, "N mapped"]) -> Float[np.ndarray, "N mapped"]:
    """Rows of unit length."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _keys(examples: Examples) -> Float[np.ndarray, "N mapped"]:
    return unit(np.concatenate([examples.features, np.ones((len(examples.features), 1), np.float32)], axis=1))


def _empty(classes: int, mapped: int) -> MatrixMemory:
    return MatrixMemory(jnp.zeros((classes, mapped)), jnp.zeros((classes, mapped)))


def matrix_memory(eta: float, delta: bool = True, alpha: float = 1.0, mu: float = 0.0) -> Learner:
    """A first-order matrix memory whose keys are features of unit length and whose values are one-hot labels.

    Args:
        eta: learning rate.
        delta: whether a write first removes what the memory answers (delta rule), or only adds (Hebb's rule).
        alpha: retention of each example.
        mu: momentum.
    """
    rates = {"eta": eta * (1.0 - mu), "beta": eta if delta else 0.0, "alpha": alpha, "mu": mu}

    def learn(memory: MatrixMemory, examples: Examples, labels: Int[np.ndarray, "N"]) -> MatrixMemory:
        return learn_pairs(memory, _keys(examples), one_hot(labels, len(memory.weights)), rates)

    return Learner(
        lambda sizes: _empty(sizes.classes, sizes.width + 1),
        learn,
        lambda memory, examples: _keys(examples) @ np.asarray(memory.weights).T,
    )


def preconditioned_memory(ridge: float) -> Learner:
    """The engine's least-squares memory (``nl_jax.memory.least_squares``): recursive least squares, chunk by chunk.

    ``ridge`` is λ, in units of the squared length of a key, which is 1. The order of the stream does not matter.
    """

    def learn(state: LeastSquares, examples: Examples, labels: Int[np.ndarray, "N"]) -> LeastSquares:
        keys, values = _keys(examples), one_hot(labels, state.cross.shape[-1])
        for start in range(0, len(keys), LARGE_CHUNK):
            part = slice(start, start + LARGE_CHUNK)
            filled = ((0, LARGE_CHUNK - len(keys[part])), (0, 0))  # a pair of zeros changes nothing
            state = _learn_least_squares(state, np.pad(keys[part], filled), np.pad(values[part], filled))
        return state

    return Learner(
        lambda sizes: init_least_squares(sizes.width + 1, sizes.classes, ridge),
        learn,
        lambda state, examples: _keys(examples) @ np.asarray(_least_squares_weights(state)),
    )


_learn_least_squares = jax.jit(learn_least_squares)
_least_squares_weights = jax.jit(least_squares_weights)


class TwoLevels(NamedTuple):
    """State of `two_levels`."""

    fast: MatrixMemory
    waiting: Moments  # what the slow level takes at the next consolidation, itself a Hebbian memory
    slow: Moments
    factor: Float[np.ndarray, "mapped mapped"]  # L; empty before the first consolidation
    weights: Float[np.ndarray, "mapped classes"]  # W
    since: int  # number of examples since the last consolidation


def two_levels(
    ridge: float,
    period: int,
    fourier: FourierMap | None = None,
    inputs: str = "features",
    *,
    rate: float = 0.5,
    fast: bool = True,
    slow: bool = True,
) -> Learner:
    """A fast memory with the delta rule over a slow one with second-order state.

    Args:
        ridge: λ as a part of the mean diagonal element of G.
        period: number of examples between two consolidations.
        fourier, inputs: as for ``moments.least_squares``.
        rate: β of the fast level.
        fast, slow: switches of the levels; without the slow one, the fast one never forgets at a consolidation.
    """

    def init(sizes: Sizes) -> TwoLevels:
        moments = init_moments(sizes, inputs, fourier, second=slow)
        mapped = moments.sums.shape[1]
        nothing = np.zeros((mapped, sizes.classes), moments.sums.dtype)
        return TwoLevels(_empty(sizes.classes, mapped), moments, moments, np.eye(0), nothing, 0)

    def learn(state: TwoLevels, examples: Examples, labels: Int[np.ndarray, "N"]) -> TwoLevels:
        x = mapped_features(state.slow, inputs_of(examples, inputs))
        start = 0
        while start < len(labels):
            part = slice(start, start + period - state.since)
            state = _learn_part(state, x[part], labels[part])
            if state.since == period:
                state = _consolidate(state) if slow else state._replace(since=0)
            start = part.stop
        return state

    def _learn_part(state: TwoLevels, x: np.ndarray, labels: np.ndarray) -> TwoLevels:
        memory = state.fast
        if fast:
            residual = one_hot(labels, len(memory.weights)) - x @ state.weights
            rates = {"eta": rate, "beta": rate, "alpha": 1.0, "mu": 0.0}
            memory = learn_pairs(memory, _preconditioned(state, x), residual, rates)
        waiting = add_moments(state.waiting, x, labels) if slow else state.waiting
        return state._replace(fast=memory, waiting=waiting, since=state.since + len(labels))

    def _consolidate(state: TwoLevels) -> TwoLevels:
        moments, new = state.slow, state.waiting
        total = Moments(
            moments.number + new.number, moments.sums + new.sums, moments.second + new.second, moments.mapping
        )
        factor = ridge_factor(total.second, ridge)
        weights = scipy.linalg.cho_solve(factor, total.sums.T, check_finite=False)
        empty = Moments(np.zeros_like(new.number), np.zeros_like(new.sums), np.zeros_like(new.second), new.mapping)
        return TwoLevels(_empty(*state.fast.weights.shape), empty, total, factor[0], weights, 0)

    def scores(state: TwoLevels, examples: Examples) -> Scores:
        x = mapped_features(state.slow, inputs_of(examples, inputs))
        answers = x @ state.weights
        return answers + _preconditioned(state, x) @ np.asarray(state.fast.weights).T if fast else answers

    return Learner(init, learn, scores)


def _preconditioned(state: TwoLevels, x: Float[np.ndarray, "N mapped"]) -> Float[np.ndarray, "N mapped"]:
    """The fast level's keys, whitened by what the slow level knows."""
    if not state.factor.size:
        return unit(x)
    return unit(scipy.linalg.solve_triangular(state.factor, x.T, lower=True, check_finite=False).T)
