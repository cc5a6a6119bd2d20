"""In-context function classes as subtasks: batches, errors against the number of examples, references, the figure."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.eval_runs.batches import TEST_SEED, VALIDATION_SEED
from experiments.eval_runs.evaluation import Batch, Figures, Subtask
from nl_jax.evaluation.function_baselines import errors_by_examples, function_baselines
from nl_jax.parallel import place_batch
from nl_jax.plotting import label_curves, new_figure, plot_band
from nl_jax.tasks.function_classes import Examples, as_tokens, at_inputs, channels, draw_examples

NOISE = 0.25  # of examples: what Garg et al. have in 16 dimensions, where values have mean square 1
AT_ONCE = 64  # functions that are read together
VALIDATION_FUNCTIONS, TEST_FUNCTIONS = 512, 1024
STYLES: tuple = ("--", ":", "-.", (0, (1, 4)), (0, (6, 3)))  # of the estimators' lines


@jax.jit
def _predict(model: Any, tokens: Any) -> Any:
    return model(tokens)[0][..., 0]


@dataclasses.dataclass(frozen=True)
class Functions:
    """A class of functions, with the sizes of its batches.

    Attributes:
        name: one of ``FUNCTION_CLASSES``.
        dimensions: of an x.
        examples: of each function; the value of one more is asked for.
        batch_size: functions in a training batch.
    """

    name: str
    dimensions: int
    examples: int
    batch_size: int

    def draw(self, seed: int, step: int, count: int) -> Examples:
        """Examples of ``count`` functions; raises `InputError` for sizes out of range."""
        sizes: dict[str, Any] = {"examples": self.examples + 1, "dimensions": self.dimensions, "noise": NOISE}
        return draw_examples(self.name, seed, step, batch_size=count, **sizes)

    def subtask(self) -> Subtask:
        """Training on fresh functions, and the error on those of validation and test."""

        def batch(seed: int, step: int) -> Batch:
            return as_tokens(self.draw(seed, step, self.batch_size))

        def validate(model: Any, mesh: jax.sharding.Mesh) -> Figures:
            figures = self.figures(model, mesh, self.draw(VALIDATION_SEED, 0, VALIDATION_FUNCTIONS))
            return {name: figures[name] for name in ("error", "mean_error")}

        def test(model: Any, mesh: jax.sharding.Mesh) -> Figures:
            return self.figures(model, mesh, self._test_functions())

        sizes = {"vocab_size": channels(self.dimensions), "context_length": 2 * self.examples + 1}
        self.draw(0, 1, 1)  # raises for sizes that do not fit
        return Subtask(sizes, batch, validate, test)

    def _test_functions(self) -> Examples:
        return self.draw(TEST_SEED, 0, TEST_FUNCTIONS)

    def figures(self, model: Any, mesh: jax.sharding.Mesh, functions: Examples) -> Figures:
        """The errors of a model on functions."""
        tokens = as_tokens(functions)["inputs"]
        with jax.set_mesh(mesh):
            found = [
                np.asarray(_predict(model, place_batch(mesh, {"inputs": tokens[i : i + AT_ONCE]})["inputs"]))
                for i in range(0, len(tokens), AT_ONCE)
            ]
        return _figures(errors_by_examples(at_inputs(np.concatenate(found)), functions))

    def references(self) -> dict[str, Figures]:
        """The errors of the estimators on the test functions, by name."""
        functions = self._test_functions()
        estimators = function_baselines(self.name, NOISE)
        return {name: _figures(errors_by_examples(fit(functions), functions)) for name, fit in estimators.items()}


def _figures(errors: np.ndarray) -> Figures:
    """After all examples, in the mean over all numbers of examples, and after each number of them."""
    single = {f"error_after_{n}": float(error) for n, error in enumerate(errors)}
    return {"error": float(errors[-1]), "mean_error": float(errors.mean()), **single}


def references(classes: Mapping[str, Functions]) -> dict[str, dict[str, Figures]]:
    """The errors of all estimators, by estimator and class."""
    found: dict[str, dict[str, Figures]] = {}
    for name, functions in classes.items():
        for estimator, figures in functions.references().items():
            found.setdefault(estimator, {})[name] = figures
    return found


def curves(results: Mapping[str, Any]) -> Figure:
    """The errors of results.json against the number of examples: a plot for each class."""
    subtasks = results["subtasks"]
    figure, panels = new_figure(len(subtasks), height=3.5 * len(subtasks), squeeze=False)
    for axes, (name, cells) in zip(panels[:, 0], subtasks.items(), strict=True):
        for model, cell in cells.items():
            if cell["seeds"]:
                seeds = np.asarray([_errors(seed["test"]) for seed in cell["seeds"]])
                plot_band(axes, np.arange(seeds.shape[1]), seeds, marker="", label=model)
        for style, (estimator, found) in zip(STYLES, results["references"].items(), strict=False):
            if name in found:
                axes.plot(_errors(found[name]), color="0.4", linestyle=style, linewidth=1, label=estimator)
        axes.set(title=name, xlabel="examples", ylabel="squared error", yscale="log", ylim=(5e-3, 3.0))
        label_curves(axes)
    return figure


def _errors(figures: Mapping[str, float]) -> np.ndarray:
    count = sum(key.startswith("error_after_") for key in figures)
    return np.asarray([figures[f"error_after_{n}"] for n in range(count)])
