"""What in-context function classes are compared with: estimators from the same examples, in NumPy and float64.

Each predicts every value of ``nl_jax.tasks.draw_examples`` from the examples before it, ``[B, E]``, and knows the noise
and the class where its name says so. A Gaussian process with the class's own covariance is Bayes-optimal.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from nl_jax.tasks.function_classes import NONZERO, Examples, fourier_features

Array = np.ndarray
Predictions = Float[Array, "batch examples"]
SWEEPS = 100  # of coordinate descent
NEIGHBOURS = 3  # as in Garg et al.


def least_squares(examples: Examples) -> Predictions:
    """The linear function of least squared error; of least norm where several have it."""

    def weights(x: Array, y: Array) -> Array:
        return np.einsum("bde,be->bd", np.linalg.pinv(x), y)

    return _linear(examples, weights)


def lasso(examples: Examples, noise: float) -> Predictions:
    r"""The linear function of least :math:`|y - X w|^2 / 2 n + \lambda |w|_1` after n examples, by coordinate descent.

    The penalty is that of theory, :math:`\lambda = \sigma \sqrt{2 \ln d / n}` (Bickel et al., 2009), with σ ``noise``.
    """

    def weights(x: Array, y: Array) -> Array:
        batch, count, dimensions = x.shape
        penalty = noise * (2 * np.log(dimensions) / count) ** 0.5
        gram, target = np.swapaxes(x, 1, 2) @ x / count, np.einsum("bed,be->bd", x, y) / count
        w = np.zeros((batch, dimensions))
        for _ in range(SWEEPS):
            for i in range(dimensions):
                rest = target[:, i] - np.einsum("bd,bd->b", gram[:, i], w) + gram[:, i, i] * w[:, i]
                w[:, i] = np.sign(rest) * np.maximum(np.abs(rest) - penalty, 0.0) / np.maximum(gram[:, i, i], 1e-12)
        return w

    return _linear(examples, weights)


def nearest_neighbours(examples: Examples) -> Predictions:
    """The mean value of the 3 nearest examples, or of all where there are fewer; 0 without any."""
    x, y = examples.x, examples.y
    square = np.sum(x**2, axis=2)
    distances = square[:, :, None] + square[:, None, :] - 2 * x @ np.swapaxes(x, 1, 2)
    predictions = np.zeros(y.shape)
    for n in range(1, y.shape[1]):
        nearest = np.argsort(distances[:, n, :n], axis=1)[:, :NEIGHBOURS]
        predictions[:, n] = np.take_along_axis(y, nearest, axis=1).mean(axis=1)
    return predictions


def gaussian_process(examples: Examples, covariance: Float[Array, "batch examples examples"], noise: float) -> Array:
    """The posterior mean under a Gaussian process with a covariance of values, seen with noise of deviation ``noise``.

    It is ridge regression in the covariance's features.
    """
    y = examples.y
    predictions = np.zeros(y.shape)
    for n in range(1, y.shape[1]):
        seen = covariance[:, :n, :n] + max(noise, 1e-6) ** 2 * np.eye(n)
        solved = np.linalg.solve(seen, y[:, :n, None])[..., 0]
        predictions[:, n] = np.einsum("be,be->b", covariance[:, n, :n], solved)
    return predictions


def ridge(examples: Examples, noise: float) -> Predictions:
    """Bayes-optimal for linear functions: ridge regression, whose penalty is the noise's variance over a weight's."""
    x = examples.x
    return gaussian_process(examples, x @ np.swapaxes(x, 1, 2) / x.shape[2], noise)


def fourier_ridge(examples: Examples, noise: float) -> Predictions:
    """Bayes-optimal for Fourier series: ridge regression in their features."""
    features = fourier_features(examples.x)
    return gaussian_process(examples, features @ np.swapaxes(features, 1, 2), noise)


def infinite_network(examples: Examples, noise: float) -> Predictions:
    """Bayes-optimal for ReLU networks of infinite width, by the arc-cosine covariance (Cho and Saul, 2009)."""
    x = examples.x
    lengths = np.linalg.norm(x, axis=2)
    both = lengths[:, :, None] * lengths[:, None, :]
    cosine = np.clip(x @ np.swapaxes(x, 1, 2) / both, -1.0, 1.0)
    angle = np.arccos(cosine)
    covariance = both * (np.sin(angle) + (np.pi - angle) * cosine) / (np.pi * x.shape[2])
    return gaussian_process(examples, covariance, noise)


def sparse_bayes(examples: Examples, noise: float) -> Predictions:
    """Bayes-optimal for sparse linear functions: the mean over all supports, each by how likely it makes the values."""
    x, y, variance = examples.x, examples.y, max(noise, 1e-3) ** 2
    supports = np.asarray(list(itertools.combinations(range(x.shape[2]), NONZERO)))
    predictions = np.zeros(y.shape)
    for row in range(len(x)):
        design = np.moveaxis(x[row][:, supports], 1, 0) / NONZERO**0.5  # [supports, E, 3], weights of variance 1
        grams = np.cumsum(design[..., :, None] * design[..., None, :], axis=1)
        targets = np.cumsum(design * y[row][:, None], axis=1)
        inverse = np.linalg.inv(np.eye(NONZERO) + grams / variance)
        means = np.einsum("sjab,sjb->sja", inverse, targets) / variance
        # log likelihood of the examples so far, up to what is the same for all supports
        likely = np.einsum("sja,sja->sj", targets, means) / (2 * variance) + np.linalg.slogdet(inverse)[1] / 2
        share = np.exp(likely - likely.max(axis=0))
        share /= share.sum(axis=0)
        predictions[row, 1:] = np.einsum("sj,sja,sja->j", share[:, :-1], means[:, :-1], design[:, 1:])
    return predictions


def _linear(examples: Examples, weights: Callable[[Array, Array], Array]) -> Predictions:
    """Predictions of ``weights(x, y)``, ``[B, d]``, of the examples so far; 0 without any."""
    x, y = examples.x, examples.y
    predictions = np.zeros(y.shape)
    for n in range(1, y.shape[1]):
        predictions[:, n] = np.einsum("bd,bd->b", weights(x[:, :n], y[:, :n]), x[:, n])
    return predictions


def function_baselines(function_class: str, noise: float) -> dict[str, Callable[[Examples], Predictions]]:
    """The estimators to compare with on a class, by name; ``bayes`` is the optimal one, where it is known.

    On ReLU networks it is that of infinite width; on decision trees none is known.

    Args:
        function_class: one of ``nl_jax.tasks.FUNCTION_CLASSES``.
        noise: standard deviation of the noise, as for ``draw_examples``.
    """
    optimal: dict[str, Callable[[Examples, float], Predictions]] = {
        "linear": ridge,
        "sparse_linear": sparse_bayes,
        "relu_network": infinite_network,
        "fourier": fourier_ridge,
    }
    with_noise: dict[str, Callable[[Examples, float], Predictions]] = {"ridge": ridge, "lasso": lasso}
    if function_class in optimal:
        with_noise["bayes"] = optimal[function_class]
    known = {name: _given(estimator, noise) for name, estimator in with_noise.items()}
    return {"least_squares": least_squares, **known, "nearest_neighbours": nearest_neighbours}


def _given(estimator: Callable[[Examples, float], Predictions], noise: float) -> Callable[[Examples], Predictions]:
    return lambda examples: estimator(examples, noise)


def errors_by_examples(predictions: Predictions, examples: Examples) -> Float[Array, " examples"]:
    """Mean squared error after 0, 1, ... examples, of the values without noise; 1 is that of always saying 0."""
    return np.mean(np.square(predictions - examples.values), axis=0)
