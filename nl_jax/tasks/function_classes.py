"""In-context function classes: a new function for every sequence, shown by examples, whose next value is asked for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from nl_jax.errors import InputError

Array = np.ndarray
Batch = dict[str, Array]
NONZERO = 3  # weights of a sparse linear function that are not zero
HIDDEN = 100  # units of a two-layer network
DEPTH = 4  # of a decision tree
DEGREE = 5  # of a Fourier series


class Examples(NamedTuple):
    """Examples of one function for each row."""

    x: Float[Array, "batch examples dimensions"]
    values: Float[Array, "batch examples"]  # of the function, with mean square 1 over functions and inputs
    y: Float[Array, "batch examples"]  # the values with noise, which a model sees


def draw_examples(
    function_class: str, seed: int, step: int, *, batch_size: int, examples: int, dimensions: int, noise: float
) -> Examples:
    r"""Draws functions and examples, as a pure function of the arguments; each seed and step has its own random stream.

    Inputs are :math:`x \sim N(0, I_d)`. Values have mean square 1, which divides those of Garg et al. by
    :math:`\sqrt{d}` (sparse: :math:`\sqrt{3}`), and :math:`y = f(x) + \sigma \epsilon`. The classes:

    ``linear``: :math:`f(x) = w \cdot x / \sqrt{d}` with :math:`w \sim N(0, I_d)`.

    ``sparse_linear``: :math:`w \cdot x / \sqrt{3}`, where all but 3 random coordinates of w are zero.

    ``relu_network``: :math:`\sum_i a_i \max(0, w_i \cdot x) / \sqrt{d}` with 100 units, :math:`a_i \sim N(0, 2 / 100)`
    and :math:`w_i \sim N(0, I_d)`.

    ``decision_tree``: a full binary tree of depth 4; each inner node asks for the sign of a random coordinate, each
    leaf has a value from :math:`N(0, 1)`.

    ``fourier``: :math:`(a_0 + \sqrt{2} \sum_{n=1}^{5} a_n \cos \pi n t + b_n \sin \pi n t) / \sqrt{11}`, with all
    coefficients from :math:`N(0, 1)` (Ahuja et al. have degree 10); t is uniform in [-1, 1], the first coordinate of x,
    and the others are 0.

    Args:
        function_class: one of ``FUNCTION_CLASSES``.
        seed: random seed, 0 or more.
        step: index of the batch, 0 or more.
        batch_size: number of functions, B; at least 1.
        examples: number of examples of each, E; at least 1.
        dimensions: d; at least 1, for sparse functions at least 3.
        noise: standard deviation σ of the noise, 0 or more.

    Raises:
        InputError: for an unknown class or sizes out of range.

    Examples:
        >>> from nl_jax.tasks import draw_examples
        >>> drawn = draw_examples("linear", 0, 0, batch_size=2, examples=5, dimensions=3, noise=0.1)
        >>> drawn.x.shape, drawn.y.shape
        ((2, 5, 3), (2, 5))

    References:
        Garg et al., `What Can Transformers Learn In-Context? <https://arxiv.org/abs/2208.01066>`_, 2022; for Fourier
        series Ahuja et al., `In-Context Learning through the Bayesian Prism <https://arxiv.org/abs/2306.04891>`_, 2023.
    """
    if function_class not in FUNCTION_CLASSES:
        raise InputError(f"function class {function_class!r}: expected one of {', '.join(FUNCTION_CLASSES)}")
    least = NONZERO if function_class == "sparse_linear" else 1
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("examples", examples, 1),
        ("dimensions", dimensions, least),
        ("noise", noise, 0),
    ):
        if not low <= value < np.inf:
            raise InputError(f"{name}={value}: expected at least {low} for functions of class {function_class}")
    random = np.random.default_rng((seed, step))
    x = random.standard_normal((batch_size, examples, dimensions))
    x, values = FUNCTION_CLASSES[function_class](random, x)
    return Examples(x, values, values + noise * random.standard_normal(values.shape))


def _linear(random: np.random.Generator, x: Array) -> tuple[Array, Array]:
    w = random.standard_normal((len(x), x.shape[2]))
    return x, np.einsum("bed,bd->be", x, w) / x.shape[2] ** 0.5


def _sparse_linear(random: np.random.Generator, x: Array) -> tuple[Array, Array]:
    w = random.standard_normal((len(x), x.shape[2]))
    w[np.argsort(random.random(w.shape), axis=1) >= NONZERO] = 0.0  # the ranks of a random permutation
    return x, np.einsum("bed,bd->be", x, w) / NONZERO**0.5


def _relu_network(random: np.random.Generator, x: Array) -> tuple[Array, Array]:
    batch, _, dimensions = x.shape
    inner = random.standard_normal((batch, dimensions, HIDDEN))
    outer = random.standard_normal((batch, HIDDEN)) * (2 / HIDDEN) ** 0.5
    return x, np.einsum("beh,bh->be", np.maximum(x @ inner, 0.0), outer) / dimensions**0.5


def _decision_tree(random: np.random.Generator, x: Array) -> tuple[Array, Array]:
    batch, examples, dimensions = x.shape
    coordinates = random.integers(0, dimensions, (batch, 2**DEPTH - 1))
    leaves = random.standard_normal((batch, 2**DEPTH))
    node, rows = np.zeros((batch, examples), int), np.arange(batch)[:, None]
    for _ in range(DEPTH):  # the children of node i are 2 i + 1 and 2 i + 2
        asked = np.take_along_axis(x, coordinates[rows, node][..., None], axis=2)[..., 0]
        node = 2 * node + 1 + (asked > 0)
    return x, leaves[rows, node - (2**DEPTH - 1)]


def _fourier(random: np.random.Generator, x: Array) -> tuple[Array, Array]:
    first = np.zeros_like(x)
    first[..., 0] = random.uniform(-1.0, 1.0, x.shape[:2])
    weights = random.standard_normal((len(x), 2 * DEGREE + 1))
    return first, np.einsum("bef,bf->be", fourier_features(first), weights)


def fourier_features(x: Float[Array, "batch examples dimensions"]) -> Float[Array, "batch examples features"]:
    """The 11 functions of which ``fourier`` draws sums, each of mean square 1 / 11."""
    angles = np.pi * np.arange(1, DEGREE + 1) * x[..., :1]
    waves = 2**0.5 * np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    return np.concatenate([np.ones((*x.shape[:2], 1)), waves], axis=-1) / (2 * DEGREE + 1) ** 0.5


FUNCTION_CLASSES: dict[str, Callable[[np.random.Generator, Array], tuple[Array, Array]]] = {
    "linear": _linear,
    "sparse_linear": _sparse_linear,
    "relu_network": _relu_network,
    "decision_tree": _decision_tree,
    "fourier": _fourier,
}
"""How functions and their values are drawn, by the name of the class: ``(rng, x) -> (y, y without noise)``."""


def channels(dimensions: int) -> int:
    """Number of channels of a token of `as_tokens`."""
    return dimensions + 3


def as_tokens(examples: Examples) -> Batch:
    """The examples in a row, ``x_1, y_1, x_2, y_2, ..., x_E``; the target at x_i is y_i.

    Args:
        examples: B functions with E examples each, of d dimensions.

    Returns:
        ``{"inputs": float32 [B, 2 E - 1, d + 3], "targets": float32 [B, 2 E - 1], "mask": float32 [B, 2 E - 1]}``. The
        channels of a token are the d coordinates of an x, the value of a y, a 1 at every x, and a 1 at every y; the
        rest is 0. At an x the mask is 1; elsewhere target and mask are 0.
    """
    batch, count, dimensions = examples.x.shape
    inputs = np.zeros((batch, 2 * count, channels(dimensions)), np.float32)
    targets, mask = np.zeros(inputs.shape[:2], np.float32), np.zeros(inputs.shape[:2], np.float32)
    inputs[:, 0::2, :dimensions], inputs[:, 0::2, dimensions + 1] = examples.x, 1.0
    inputs[:, 1::2, dimensions], inputs[:, 1::2, dimensions + 2] = examples.y, 1.0
    targets[:, 0::2], mask[:, 0::2] = examples.y, 1.0
    return {"inputs": inputs[:, :-1], "targets": targets[:, :-1], "mask": mask[:, :-1]}


def at_inputs(array: Float32[Array, "batch tokens"]) -> Float32[Array, "batch examples"]:
    """Those entries of an array over the tokens of `as_tokens` that stand at an x."""
    return array[:, 0::2]
