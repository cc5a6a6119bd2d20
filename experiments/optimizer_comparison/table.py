"""The optimizers of experiments.optimizers, each as a function of learning rate and weight decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from nl_jax.optim import deep_momentum, delta_momentum, hidden_matrices, m3
from nl_jax.training.optimizer import ADAM, scale_by_adamuon

MATRIX = optax.contrib.MuonDimensionNumbers((-2,), (-1,))  # [..., in, out]; leading axes are stacks of matrices


class Optimizer(NamedTuple):
    """An entry of the table.

    Attributes:
        make: ``make(rate, decay)`` returns the transformation for a learning rate or schedule and a decoupled weight
            decay, which optimizers without weight decay ignore.
        rate: the middle of the grid of learning rates.
    """

    make: Callable[..., optax.GradientTransformation]
    rate: float


def muon(rate: Any, decay: float) -> optax.GradientTransformation:
    """Muon of optax, also for stacks of matrices."""

    def dimensions(params):
        return jax.tree.map(lambda matrix: MATRIX if matrix else None, hidden_matrices(params))

    return optax.contrib.muon(
        rate,
        muon_weight_dimension_numbers=dimensions,
        weight_decay=decay,
        adam_weight_decay=decay,
        adam_b1=ADAM["b1"],
        adam_b2=ADAM["b2"],
    )


def adamuon(rate: Any, decay: float) -> optax.GradientTransformation:
    """AdaMuon for hidden matrices, as the language models are trained with it, and AdamW for the other parameters."""
    steps = optax.chain(
        scale_by_adamuon(lambda params: jax.tree.map(lambda _: MATRIX, params)),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    )

    def labels(params):
        return jax.tree.map(lambda matrix: "muon" if matrix else "adamw", hidden_matrices(params))

    return optax.partition({"muon": steps, "adamw": optax.adamw(rate, **ADAM, weight_decay=decay)}, labels)


OPTIMIZERS = {
    "momentum": Optimizer(lambda rate, decay: optax.sgd(rate, momentum=0.9), 0.2),
    "adamw": Optimizer(lambda rate, decay: optax.adamw(rate, **ADAM, weight_decay=decay), 8e-3),
    "muon": Optimizer(muon, 4e-2),
    "adamuon": Optimizer(adamuon, 2e-2),
    "m3": Optimizer(
        lambda rate, decay: m3(rate, weight_decay=decay, adam_b1=ADAM["b1"], adam_b2=ADAM["b2"]),
        8e-2,
    ),
    "delta_momentum": Optimizer(lambda rate, decay: delta_momentum(rate), 0.2),
    "deep_momentum": Optimizer(lambda rate, decay: deep_momentum(rate), 3.2),
}
