"""Methods whose state is moments of the features by class: exact, whatever the order of the stream.

    n_c = number of examples of class c,    S_c = Σ x over class c,    G = Σ x xᵀ over all examples

Least squares, discriminant analysis and class means are three readings of this one state. S is a Hebbian matrix memory,
and G the second-order state that preconditions its answers (Eq. 46-47 of arXiv 2512.24695).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from experiments.continual_methods.learner import Examples, Learner, Scores, Sizes


class Moments(NamedTuple):
    """Moments of mapped features; ``mapping`` are the random numbers of the map, if there are any."""

    number: Float[np.ndarray, "classes"]
    sums: Float[np.ndarray, "classes mapped"]
    second: Float[np.ndarray, "mapped mapped"]
    mapping: tuple[np.ndarray, ...]


class FourierMap(NamedTuple):
    """Random Fourier features of a Gaussian kernel (Rahimi and Recht 2007): ``√(2/D) cos(scale W x + b)``."""

    size: int  # D
    scale: float  # 1 / bandwidth


def inputs_of(examples: Examples, inputs: str) -> Float[np.ndarray, "N width"]:
    """The features that a method reads: those of the layer, the input embeddings, or both side by side."""
    if inputs == "both":
        return np.concatenate([examples.features, examples.embeddings], axis=1)
    return examples.embeddings if inputs == "embeddings" else examples.features


def init_moments(sizes: Sizes, inputs: str, fourier: FourierMap | None, second: bool = True) -> Moments:
    """Moments of nothing, in float64. Without Fourier features a constant 1 joins the features."""
    width = sizes.width * (2 if inputs == "both" else 1)
    mapped = width + 1
    mapping: tuple[np.ndarray, ...] = ()
    if fourier is not None:
        random = np.random.default_rng(sizes.seed)
        mapped = fourier.size
        matrix = random.standard_normal((width, mapped)).astype(np.float32) * fourier.scale
        mapping = (matrix, random.uniform(0, 2 * np.pi, mapped).astype(np.float32))
    square = np.zeros((mapped, mapped) if second else (0, 0))
    return Moments(np.zeros(sizes.classes), np.zeros((sizes.classes, mapped)), square, mapping)


def mapped_features(state: Moments, x: Float[np.ndarray, "N width"]) -> Float[np.ndarray, "N mapped"]:
    """Fourier features, or the features with a constant 1."""
    if state.mapping:
        matrix, phase = state.mapping
        return np.sqrt(2 / len(phase)) * np.cos(x.astype(np.float32) @ matrix + phase).astype(np.float64)
    return np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)


def add_moments(state: Moments, x: Float[np.ndarray, "N mapped"], labels: Int[np.ndarray, "N"]) -> Moments:
    """The moments with further examples."""
    count = state.number + np.bincount(labels, minlength=len(state.number))
    sums = state.sums.copy()
    np.add.at(sums, labels, x)
    second = state.second + x.T @ x if state.second.size else state.second
    return Moments(count, sums, second, state.mapping)


def ridge_factor(matrix: Float[np.ndarray, "n n"], ridge: float) -> Any:
    """The Cholesky factor of a matrix plus ``ridge`` times its mean diagonal element."""
    lifted = matrix.copy()
    lifted[np.diag_indices(len(lifted))] += ridge * np.trace(matrix) / len(matrix) + 1e-12
    return scipy.linalg.cho_factor(lifted, lower=True, overwrite_a=True, check_finite=False)


def least_squares_solution(state: Moments, ridge: float) -> Float[np.ndarray, "mapped classes"]:
    """The weights of the ridge regression to one-hot labels."""
    return scipy.linalg.cho_solve(ridge_factor(state.second, ridge), state.sums.T, check_finite=False)


def discriminants(state: Moments, ridge: float) -> tuple[Float[np.ndarray, "mapped classes"], np.ndarray]:
    """Weights and biases of linear discriminant analysis with equal priors, from the shared within-class covariance."""
    count = np.maximum(state.number, 1)
    means = state.sums / count[:, None]
    within = (state.second - state.sums.T @ means) / max(state.number.sum(), 1)
    weights = scipy.linalg.cho_solve(ridge_factor(within, ridge), means.T, check_finite=False)
    return weights, -0.5 * np.einsum("cd,dc->c", means, weights)


def _learner(reading: Callable[[Moments, np.ndarray], Scores], inputs: str, fourier: FourierMap | None, second=True):
    def learn(state: Moments, examples: Examples, labels: Int[np.ndarray, "N"]) -> Moments:
        return add_moments(state, mapped_features(state, inputs_of(examples, inputs)), labels)

    def scores(state: Moments, examples: Examples) -> Scores:
        return reading(state, mapped_features(state, inputs_of(examples, inputs)))

    init = functools.partial(init_moments, inputs=inputs, fourier=fourier, second=second)
    return Learner(init, learn, scores)


def class_mean(inputs: str = "features") -> Learner:
    """The nearest class mean, in Euclidean distance."""

    def reading(state: Moments, x: np.ndarray) -> Scores:
        means = state.sums / np.maximum(state.number, 1)[:, None]
        return x @ means.T - 0.5 * (means**2).sum(axis=1)

    return _learner(reading, inputs, None, second=False)


def discriminant_analysis(ridge: float, inputs: str = "features", fourier: FourierMap | None = None) -> Learner:
    """LDA: a Gaussian for each class with one shared covariance; KLDA (Momeni et al. 2025) on Fourier features.

    It is also the selection by Mahalanobis distance of InCA, before a language model chooses among the nearest classes.
    """

    def reading(state: Moments, x: np.ndarray) -> Scores:
        weights, biases = discriminants(state, ridge)
        return x @ weights + biases

    return _learner(reading, inputs, fourier)


def least_squares(ridge: float, inputs: str = "features", fourier: FourierMap | None = None) -> Learner:
    """Ridge regression to one-hot labels, as recursive least squares has it after the same examples."""
    return _learner(lambda state, x: x @ least_squares_solution(state, ridge), inputs, fourier)
