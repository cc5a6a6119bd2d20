"""Estimators from examples against closed forms, against scikit-learn, and against each other."""

import numpy as np
import pytest

from nl_jax.evaluation.function_baselines import (
    errors_by_examples,
    fourier_ridge,
    function_baselines,
    infinite_network,
    lasso,
    least_squares,
    nearest_neighbours,
    ridge,
    sparse_bayes,
)
from nl_jax.tasks import FUNCTION_CLASSES, draw_examples
from nl_jax.tasks.function_classes import Examples

NOISE = 0.25


def draw(name, batch_size=8, examples=20, dimensions=6, noise=NOISE):
    sizes = {"batch_size": batch_size, "examples": examples, "dimensions": dimensions}
    return draw_examples(name, 7, 0, **sizes, noise=noise)


def errors(estimator, examples, *noise):
    return errors_by_examples(estimator(examples, *noise), examples)


@pytest.mark.parametrize("name", FUNCTION_CLASSES)
def test_every_prediction_depends_on_the_examples_before_it_only(name):
    examples = draw(name, batch_size=3)
    changed = examples.y.copy()
    changed[:, 9] += 5.0
    other = Examples(examples.x, examples.values, changed)
    for estimator in function_baselines(name, NOISE).values():
        one, two = estimator(examples), estimator(other)
        assert not one[:, 0].any()  # without examples the mean of all functions
        np.testing.assert_array_equal(one[:, :10], two[:, :10])
        assert not np.allclose(one[:, 10:], two[:, 10:])


def test_least_squares_is_exact_without_noise_and_has_the_error_of_theory_with_it():
    exact = errors(least_squares, draw("linear", noise=0.0))
    assert exact[6:].max() < 1e-15
    assert exact[1:6].min() > 1e-3
    # with Gaussian inputs of d dimensions the error after n > d + 1 examples is noise² d / (n - d - 1)
    found = errors(least_squares, draw("linear", batch_size=4000))
    np.testing.assert_allclose(found[12:], [NOISE**2 * 6 / (n - 7) for n in range(12, 20)], rtol=0.15)
    # below d examples it is what lies outside of their span, and the noise inside
    assert abs(errors(least_squares, draw("linear", batch_size=4000, noise=0.0))[3] - 0.5) < 0.03


def test_ridge_is_that_of_the_normal_equations_and_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    examples = draw("linear")
    predictions, penalty = ridge(examples, NOISE), NOISE**2 * 6
    for n in (2, 6, 15):
        x, y = examples.x[0, :n], examples.y[0, :n]
        w = np.linalg.solve(x.T @ x + penalty * np.eye(6), x.T @ y)
        np.testing.assert_allclose(predictions[0, n], w @ examples.x[0, n], rtol=1e-9)
        fitted = linear_model.Ridge(alpha=penalty, fit_intercept=False).fit(x, y)
        np.testing.assert_allclose(predictions[0, n], fitted.predict(examples.x[0, n : n + 1])[0], rtol=1e-7)


def test_lasso_and_neighbours_are_those_of_scikit_learn():
    linear_model, neighbours = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.neighbors")
    examples = draw("sparse_linear")
    sparse, near = lasso(examples, NOISE), nearest_neighbours(examples)
    for n in (4, 9, 17):
        x, y, asked = examples.x[1, :n], examples.y[1, :n], examples.x[1, n : n + 1]
        penalty = NOISE * (2 * np.log(6) / n) ** 0.5
        fitted = linear_model.Lasso(alpha=penalty, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y)
        np.testing.assert_allclose(sparse[1, n], fitted.predict(asked)[0], atol=1e-6)
        fitted = neighbours.KNeighborsRegressor(3).fit(x, y)
        np.testing.assert_allclose(near[1, n], fitted.predict(asked)[0], rtol=1e-9)
    np.testing.assert_allclose(near[:, 1], examples.y[:, 0])


def test_the_sparse_posterior_is_the_one_of_all_supports_weighed_one_by_one():
    import itertools

    examples, n = draw("sparse_linear", batch_size=2, dimensions=4), 5
    x, y, asked = examples.x[1, :n], examples.y[1, :n], examples.x[1, n]
    weights, answers = [], []
    for support in itertools.combinations(range(4), 3):
        design = x[:, support] / 3**0.5
        covariance = design @ design.T + NOISE**2 * np.eye(n)
        weights.append(-(y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1]) / 2)
        answers.append(asked[list(support)] / 3**0.5 @ design.T @ np.linalg.solve(covariance, y))
    share = np.exp(np.asarray(weights) - max(weights))
    np.testing.assert_allclose(sparse_bayes(examples, NOISE)[1, n], share @ answers / share.sum(), rtol=1e-8)


def test_nobody_beats_the_optimal_estimators_in_the_mean():
    for name, optimal in (("linear", ridge), ("sparse_linear", sparse_bayes), ("fourier", fourier_ridge)):
        examples = draw(name, batch_size=400, examples=16, dimensions=5)
        best = errors(optimal, examples, NOISE)
        for estimator in function_baselines(name, NOISE).values():
            assert np.mean(best[1:]) <= np.mean(errors(estimator, examples)[1:]) + 1e-3
    network = draw("relu_network", batch_size=400, examples=16, dimensions=5)
    known = errors(infinite_network, network, NOISE)[1:]
    assert known.mean() < min(errors(f, network)[1:].mean() for f in (least_squares, nearest_neighbours)) - 0.1


def test_the_covariance_of_networks_is_that_of_drawn_ones():
    """Two inputs with the same values in every row: the product of the values in the mean over networks."""
    rng = np.random.default_rng(0)
    inner, outer = rng.standard_normal((200_000, 3)), rng.standard_normal(200_000)
    x = np.asarray([[1.0, 0.5, -1.0], [0.3, -0.2, 2.0]])
    hidden = np.maximum(inner @ x.T, 0)
    sampled = 2 * np.mean(hidden[:, 0] * hidden[:, 1] * outer**2) / 3
    # one example whose value is seen without noise: the prediction is covariance / variance times it
    examples = Examples(x[None], np.ones((1, 2)), np.ones((1, 2)))
    variance = 2 * np.mean(hidden[:, 0] ** 2) / 3
    np.testing.assert_allclose(infinite_network(examples, 0.0)[0, 1], sampled / variance, rtol=0.05)
