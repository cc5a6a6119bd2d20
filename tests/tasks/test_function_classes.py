"""In-context function classes: pure, of mean square 1, and what their definitions say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.tasks import FUNCTION_CLASSES, draw_examples
from nl_jax.tasks.function_classes import NONZERO, as_tokens, at_inputs, channels, fourier_features

every_class = pytest.mark.parametrize("name", FUNCTION_CLASSES)


def draw(name, seed=0, step=0, *, batch_size=4, examples=12, dimensions=6, noise=0.0):
    sizes = {"batch_size": batch_size, "examples": examples, "dimensions": dimensions}
    return draw_examples(name, seed, step, **sizes, noise=noise)


@every_class
def test_examples_are_a_pure_function_of_seed_and_step(name):
    first, again, step, seed = draw(name), draw(name), draw(name, step=1), draw(name, seed=1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (step, seed):
        assert not np.isclose(first.values, other.values).any()


@every_class
def test_values_have_mean_square_one_and_the_noise_its_deviation(name):
    examples = draw(name, batch_size=4000, examples=8, dimensions=16, noise=0.5)
    assert abs(np.mean(examples.values**2) - 1) < 0.1
    assert abs(np.mean(examples.values)) < 0.05
    noise = examples.y - examples.values
    assert abs(noise.std() - 0.5) < 0.01
    assert abs(np.corrcoef(noise.ravel(), examples.values.ravel())[0, 1]) < 0.03
    if name != "fourier":
        assert abs(examples.x.std() - 1) < 0.01


@every_class
def test_a_row_has_one_function_and_the_noise_changes_nothing_else(name):
    examples, noisy = draw(name), draw(name, noise=1.0)
    np.testing.assert_array_equal(examples.values, examples.y)
    np.testing.assert_array_equal(examples.x, noisy.x)
    np.testing.assert_array_equal(examples.values, noisy.values)


def residual(features, values):
    """What is left of each row's values after the best fit in features [B, E, F]."""
    return max(
        np.abs(f @ np.linalg.lstsq(f, v, rcond=None)[0] - v).max() for f, v in zip(features, values, strict=True)
    )


@given(st.integers(3, 10), st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_linear_functions_are_linear_and_sparse_ones_have_three_weights(dimensions, seed):
    for name in ("linear", "sparse_linear"):
        examples = draw(name, seed, examples=dimensions + 5, dimensions=dimensions)
        assert residual(examples.x, examples.values) < 1e-9
        weights = np.stack(
            [np.linalg.lstsq(x, v, rcond=None)[0] for x, v in zip(examples.x, examples.values, strict=True)]
        )
        counts = np.sum(np.abs(weights) > 1e-9, axis=1)
        assert set(counts) == {NONZERO if name == "sparse_linear" else dimensions}


def test_fourier_series_are_sums_of_orthogonal_features_of_the_first_coordinate():
    examples = draw("fourier", examples=30)
    assert residual(fourier_features(examples.x), examples.values) < 1e-9
    assert residual(fourier_features(examples.x)[..., :9], examples.values) > 1e-3
    assert not examples.x[..., 1:].any()
    assert np.abs(examples.x).max() <= 1
    x = np.zeros((1, 1000, 6))
    x[0, :, 0] = np.linspace(-1, 1, 1000, endpoint=False)
    features = fourier_features(x)[0]
    np.testing.assert_allclose(features.T @ features / 1000, np.eye(11) / 11, atol=1e-9)


def test_trees_have_sixteen_leaves_and_ask_for_signs_only():
    examples = draw("decision_tree", batch_size=20, examples=3000)
    wide = draw("decision_tree", batch_size=50, examples=2000, dimensions=16)
    assert max(len(np.unique(row)) for row in wide.values) == 16  # fewer where a path asks for a coordinate twice
    for x, values in zip(examples.x, examples.values, strict=True):
        signs = (x > 0) @ (1 << np.arange(6))
        assert all(len(np.unique(values[signs == code])) == 1 for code in np.unique(signs))


def test_networks_are_homogeneous_and_neither_linear_nor_even():
    examples = draw("relu_network", examples=40)
    assert residual(examples.x, examples.values) > 0.1
    # of degree 1 along rays: with |x| divided out, values are a function of the direction, of bounded size
    lengths = np.linalg.norm(examples.x, axis=2)
    assert np.abs(examples.values / lengths).max() < 3


@every_class
def test_tokens_hold_the_examples_in_a_row(name):
    examples = draw(name, noise=0.1)
    batch = as_tokens(examples)
    assert batch["inputs"].shape == (4, 23, channels(6))
    assert {array.dtype for array in batch.values()} == {np.dtype(np.float32)}
    xs, ys = batch["inputs"][:, 0::2], batch["inputs"][:, 1::2]
    np.testing.assert_allclose(xs[..., :6], examples.x, rtol=1e-6)
    np.testing.assert_array_equal(xs[..., 6:], np.broadcast_to([0, 1, 0], (4, 12, 3)))
    np.testing.assert_allclose(ys[..., 6], examples.y[:, :-1], rtol=1e-6)
    np.testing.assert_array_equal(np.delete(ys, 6, axis=2), np.broadcast_to([*[0] * 7, 1], (4, 11, 8)))
    np.testing.assert_allclose(at_inputs(batch["targets"]), examples.y, rtol=1e-6)
    np.testing.assert_array_equal(at_inputs(batch["mask"]), 1)
    assert batch["mask"].sum() == 4 * 12


@pytest.mark.parametrize(
    ("name", "sizes", "problem"),
    [
        ("cubic", {}, "function class 'cubic': expected one of linear, sparse_linear"),
        ("linear", {"batch_size": 0}, "batch_size=0: expected at least 1"),
        ("linear", {"examples": 0}, "examples=0"),
        ("sparse_linear", {"dimensions": 2}, "dimensions=2: expected at least 3"),
        ("linear", {"noise": -1.0}, "noise=-1.0: expected at least 0"),
        ("linear", {"noise": float("nan")}, "noise=nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, sizes, problem):
    with pytest.raises(InputError, match=problem):
        draw(name, **sizes)
