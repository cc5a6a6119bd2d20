"""Memories of the engine as classifiers: a matrix memory from features to classes, and what slower levels add to it.

First-order memories (`matrix_memory`) forget because features are correlated: each write changes the answers to all
similar keys. `two_levels` has a slower level beneath a memory with the delta rule. The slow level holds second-order
state (moments, from which it takes least squares) and gives the fast one its preconditioner:

    fast, at every example:   w = (I - β x xᵀ) w + β x rᵀ     with x = L⁻¹ k / ‖L⁻¹ k‖,  r = y - W k
    slow, every N examples:   G, S += moments of the last N;  L Lᵀ = G + λ I;  W = (L Lᵀ)⁻¹ S;  w = 0

So what was learned since the last consolidation answers at once, and consolidation makes it exact.
"""

import functools
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
from nl_jax.memory import chunk_update, init_least_squares, learn_least_squares, read_least_squares

CHUNK = 64  # examples in a call of the engine


class MatrixMemory(NamedTuple):
    """Weights and momentum of a matrix memory."""

    weights: Float[Array, "classes mapped"]
    momentum: Float[Array, "classes mapped"]


@jax.jit
def _learn_pairs(memory: MatrixMemory, keys: Array, values: Array, weights: Array, rates: Any) -> MatrixMemory:
    """Learns pairs [chunks, C, ...] in order; a pair with weight 0 is padding and changes nothing."""

    def step(memory, chunk):
        x, v, weight = chunk
        eta, beta = rates["eta"] * weight, rates["beta"] * weight
        alpha, mu = (1.0 - (1.0 - rates[name]) * weight for name in ("alpha", "mu"))
        after = chunk_update(memory.weights, memory.momentum, x, -v, eta=eta, alpha=alpha, mu=mu, beta=beta)
        return MatrixMemory(*after), None

    return jax.lax.scan(step, memory, (keys, values, weights))[0]


def learn_pairs(memory: MatrixMemory, keys: np.ndarray, values: np.ndarray, rates: dict[str, float]) -> MatrixMemory:
    """A matrix memory after pairs of keys ``[N, mapped]`` of unit length and values ``[N, classes]``."""
    missing = -len(keys) % CHUNK

    def chunks(array: np.ndarray) -> np.ndarray:
        filled = np.concatenate([array, np.zeros((missing, *array.shape[1:]), np.float32)])
        return filled.reshape(-1, CHUNK, *array.shape[1:]).astype(np.float32)

    return _learn_pairs(memory, chunks(keys), chunks(values), chunks(np.ones(len(keys), np.float32)), rates)


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


def preconditioned_memory(ridge: float, retention: float = 1.0) -> Learner:
    """The engine's least-squares memory (``nl_jax.memory.least_squares``): recursive least squares, chunk by chunk.

    Args:
        ridge: λ, in units of the squared length of a key, which is 1.
        retention: of each example; with 1 the order of the stream does not matter.
    """
    update = functools.partial(_learn_least_squares, retention=retention)

    def learn(state: Any, examples: Examples, labels: Int[np.ndarray, "N"]) -> Any:
        keys, values = _keys(examples), one_hot(labels, state.cross.shape[-1])
        missing = -len(keys) % 512
        for part in np.split(np.arange(len(keys) + missing), (len(keys) + missing) // 512):
            rows = part[part < len(keys)]
            filled = ((0, 512 - len(rows)), (0, 0))
            state = update(state, np.pad(keys[rows], filled), np.pad(values[rows], filled), len(rows))
        return state

    return Learner(
        lambda sizes: init_least_squares(sizes.width + 1, sizes.classes, ridge),
        learn,
        lambda state, examples: np.asarray(read_least_squares(state, jnp.asarray(_keys(examples)))),
    )


@functools.partial(jax.jit, static_argnames="retention")
def _learn_least_squares(state: Any, keys: Array, values: Array, count: Array, retention: float) -> Any:
    if retention == 1.0:
        return learn_least_squares(state, keys, values)
    gamma = jnp.where(jnp.arange(len(keys)) < count, retention, 1.0)
    return learn_least_squares(state, keys, values, gamma)


class TwoLevels(NamedTuple):
    """State of `two_levels`."""

    fast: MatrixMemory
    waiting: Moments  # what the slow level takes at the next consolidation, itself a Hebbian memory
    slow: Moments
    factor: Float[np.ndarray, "mapped mapped"]  # L; the identity before the first consolidation
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
        moments = init_moments(sizes, inputs, fourier)
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
            moments.count + new.count, moments.sums + new.sums, moments.second + new.second, moments.mapping
        )
        factor = ridge_factor(total.second, ridge)
        weights = scipy.linalg.cho_solve(factor, total.sums.T, check_finite=False)
        empty = Moments(np.zeros_like(new.count), np.zeros_like(new.sums), np.zeros_like(new.second), new.mapping)
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
