"""The evaluation of function classes: errors by number of examples, estimators beside the models, the figure."""

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.eval_runs import functions
from experiments.eval_runs.functions import Functions, curves, references
from nl_jax.evaluation.function_baselines import errors_by_examples, least_squares
from nl_jax.models import named_config
from nl_jax.models.regression import InContextRegressor
from nl_jax.parallel import parse_mesh

CLASS = Functions("linear", dimensions=3, examples=5, batch_size=4)


@pytest.fixture(scope="module")
def zero():
    """A model that always says 0."""
    sizes = {"width": 8, "num_heads": 1, "num_layers": 1, "mlp_hidden": 8, "chunk_size": 4}
    config = named_config("linear_attention", "tiny", **sizes, **CLASS.subtask().sizes)
    model = InContextRegressor(config, rngs=nnx.Rngs(0))
    model.unembed.kernel[...] = 0.0 * model.unembed.kernel[...]
    return model


def test_the_error_of_a_model_is_that_against_the_function_without_noise(zero):
    task, mesh = CLASS.subtask(), parse_mesh(devices=jax.local_devices()[:1])
    drawn = CLASS.draw(functions.TEST_SEED, 0, functions.TEST_FUNCTIONS)
    found, expected = task.test(zero, mesh), np.mean(drawn.values**2, axis=0)
    np.testing.assert_allclose([found[f"error_after_{n}"] for n in range(6)], expected, rtol=1e-5)
    np.testing.assert_allclose([found["error"], found["mean_error"]], [expected[5], expected.mean()], rtol=1e-5)
    assert set(task.validate(zero, mesh)) == {"error", "mean_error"}
    assert task.validate(zero, mesh)["error"] != found["error"]  # on other functions
    assert task.batch(0, 1)["inputs"].shape == (4, 11, 6)


def test_estimators_see_the_test_functions_and_all_are_drawn():
    found = references({"linear": CLASS})
    drawn = CLASS.draw(functions.TEST_SEED, 0, functions.TEST_FUNCTIONS)
    expected = errors_by_examples(least_squares(drawn), drawn)
    np.testing.assert_allclose(found["least_squares"]["linear"]["error"], expected[-1])
    assert found["bayes"]["linear"]["error"] < found["least_squares"]["linear"]["error"]
    seeds = [{"test": found["ridge"]["linear"]}, {"test": found["lasso"]["linear"]}]
    cells = {"one": {"seeds": seeds}, "unfinished": {"seeds": []}}
    (axes,) = curves({"subtasks": {"linear": cells}, "references": found}).axes
    assert [text.get_text() for text in axes.texts] == ["one", *found]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), expected)
