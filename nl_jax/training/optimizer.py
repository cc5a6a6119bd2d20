"""The optimizer of pre-training: clipping, a schedule of learning rates, and each CMS level at its own cadence.

Hidden matrices are moved by one of ``OPTIMIZERS``, everything else by AdamW: embeddings, the output head, scales and
biases have no rows and columns that an orthogonal step would mean anything for.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.optim import (
    bounded,
    hidden_matrices,
    m3,
    matrix_dimensions,
    parameter_roles,
    scale_by_deep_momentum,
    scale_by_delta_momentum,
    schedule_of_updates,
)

PyTree = Any
SCHEDULES = ("cosine", "constant", "wsd")
WARMUP_STEPS = 100  # by default, where the rates must not depend on the number of steps
ADAM = {"b1": 0.9, "b2": 0.95}


class Optimizer(NamedTuple):
    """A rule for hidden matrices, and the rates that a language model is trained with unless others are given.

    Attributes:
        make: the transformation, from a learning rate or schedule and a decoupled weight decay; its parameters are the
            hidden matrices only. None for AdamW.
        learning_rate: the default peak for what is no hidden matrix.
        matrix_learning_rate: the default peak for hidden matrices; None for ``learning_rate``.
    """

    make: Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation] | None
    learning_rate: float
    matrix_learning_rate: float | None = None


def _by_rule(
    rule: optax.GradientTransformation, rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay)
    return bounded(optax.chain(rule, decay, optax.scale_by_learning_rate(rate)))


def _muon(rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    rule = optax.contrib.scale_by_muon(weight_dimension_numbers=matrix_dimensions)
    return _by_rule(rule, rate, weight_decay)


def _adamuon(rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    """Muon's orthogonal steps by the root of their second moment, every matrix' step then of root mean square 0.2.

    That is AdaMuon (Si et al., arXiv 2507.11005) but for its sign of the momentum.
    """

    def align(u: jax.Array) -> jax.Array:
        return 0.2 * u * jax.lax.rsqrt(jnp.mean(jnp.square(u), axis=(-2, -1), keepdims=True) + 1e-16)

    rule = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=matrix_dimensions),
        optax.scale_by_rms(0.95, bias_correction=True),
        optax.stateless(lambda updates, _: jax.tree.map(align, updates)),
    )
    return _by_rule(rule, rate, weight_decay)


OPTIMIZERS = {
    "adamw": Optimizer(None, 3e-3),
    "muon": Optimizer(_muon, 3e-3, 2e-2),
    "adamuon": Optimizer(_adamuon, 3e-3, 1e-2),
    "m3": Optimizer(lambda rate, decay: m3(rate, weight_decay=decay), 3e-3, 5e-2),
    "delta_momentum": Optimizer(lambda rate, decay: _by_rule(scale_by_delta_momentum(), rate, decay), 3e-3, 0.2),
    "deep_momentum": Optimizer(lambda rate, decay: _by_rule(scale_by_deep_momentum(), rate, decay), 3e-3, 3.2),
    "momentum": Optimizer(lambda rate, decay: _by_rule(optax.trace(0.9), rate, decay), 3e-3, 0.2),
}


class LevelOptimizers(NamedTuple):
    """What moves the parameters of each level of `training_schedule`, which has one level for each block of the CMS.

    Attributes:
        of_period: the transformation of a level that is updated once in so many steps.
        cms_periods: optimizer steps between two updates of each CMS level, fastest first; None for a single level that
            holds all parameters.
        max_norm: the global norm that the gradients of all levels together are clipped to; None for no clipping.
    """

    of_period: Callable[[int], optax.GradientTransformation]
    cms_periods: tuple[int, ...] | None = None
    max_norm: float | None = None


def make_optimizer(
    *,
    optimizer: str = "adamw",
    learning_rate: float | None = None,
    matrix_learning_rate: float | None = None,
    steps: int,
    warmup_steps: int | None = None,
    schedule: str = "cosine",
    weight_decay: float = 0.1,
    cms_periods: Sequence[int] | None = None,
) -> LevelOptimizers:
    r"""One of ``OPTIMIZERS`` for hidden matrices, AdamW (β₁ 0.9, β₂ 0.95) for the rest, gradients clipped to norm 1.

    The blocks of CMS level :math:`\ell` are updated every ``cms_periods[l]`` steps with the sum of the clipped
    gradients of these steps and are unchanged in between (paper Eq. 70-71); all other parameters at every step.

    Args:
        optimizer: one of ``OPTIMIZERS``.
        learning_rate: the peak; reached after the warm-up, and then as ``schedule`` says. Default: the optimizer's.
        matrix_learning_rate: likewise for hidden matrices. Default: the optimizer's, which for AdamW is
            ``learning_rate``.
        steps: optimizer steps of the run.
        warmup_steps: steps of linear warm-up; default as for `learning_rate_schedule`.
        schedule: one of ``SCHEDULES``.
        weight_decay: times the learning rate is what matrices lose per update; vectors and scales are not decayed.
        cms_periods: optimizer steps between two updates of each CMS level, fastest first. Default: all parameters are
            one level, which every step updates.

    Raises:
        ValueError: for an unknown optimizer or schedule.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    peak, matrix_peak = peak_rates(optimizer, learning_rate, matrix_learning_rate)
    rates, matrix_rates = (learning_rate_schedule(rate, steps, warmup_steps, schedule) for rate in (peak, matrix_peak))
    make = OPTIMIZERS[optimizer].make

    def of_period(period: int) -> optax.GradientTransformation:
        rate, matrix_rate = schedule_of_updates(rates, period), schedule_of_updates(matrix_rates, period)
        others = optax.adamw(rate, **ADAM, weight_decay=weight_decay, mask=decay_mask)
        if make is not None:
            matrices = make(matrix_rate, weight_decay)
        elif matrix_peak == peak:
            return others
        else:
            matrices = optax.adamw(matrix_rate, **ADAM, weight_decay=weight_decay)
        return optax.partition({"matrix": matrices, "other": others}, _matrix_labels)

    return LevelOptimizers(of_period, None if cms_periods is None else tuple(cms_periods), max_norm=1.0)


def peak_rates(
    optimizer: str, learning_rate: float | None = None, matrix_learning_rate: float | None = None
) -> tuple[float, float]:
    """Peak learning rates of what is no hidden matrix and of hidden matrices, the optimizer's where none is given."""
    known = OPTIMIZERS[optimizer]
    rate = known.learning_rate if learning_rate is None else learning_rate
    own = rate if known.matrix_learning_rate is None else known.matrix_learning_rate
    return rate, own if matrix_learning_rate is None else matrix_learning_rate


def _matrix_labels(params: PyTree) -> PyTree:
    return jax.tree.map(lambda matrix: "matrix" if matrix else "other", hidden_matrices(params))


def learning_rate_schedule(
    peak: float, steps: int, warmup_steps: int | None = None, kind: str = "cosine"
) -> optax.Schedule:
    """Learning rates by step: a linear warm-up to ``peak``, then one of ``SCHEDULES``.

    ``cosine``: a cosine to a tenth of the peak at ``steps``; all rates depend on ``steps``.
    ``constant``: the peak for ever; no rate depends on ``steps``.
    ``wsd`` (warm-up, stable, decay): the peak, and in the last fifth of ``steps`` linearly to a tenth of it; rates
    before the decay do not depend on ``steps``.

    Args:
        peak: the highest rate.
        steps: of the run.
        warmup_steps: default a tenth of ``steps`` for the cosine, else 100.
        kind: one of ``SCHEDULES``.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"schedule {kind!r}: expected one of {', '.join(SCHEDULES)}")
    if warmup_steps is None:
        warmup_steps = steps // 10 if kind == "cosine" else WARMUP_STEPS
    first = peak / (warmup_steps + 1)  # not 0, which would waste a step
    if kind == "cosine":
        return optax.warmup_cosine_decay_schedule(first, peak, warmup_steps, max(steps, warmup_steps + 1), 0.1 * peak)
    warmup = optax.linear_schedule(first, peak, warmup_steps)
    decay = steps // 5
    if kind == "constant" or not decay:
        return optax.join_schedules([warmup, optax.constant_schedule(peak)], [warmup_steps])
    stable = max(steps - decay, warmup_steps)  # the step at which the decay begins
    phases = [warmup, optax.constant_schedule(peak), optax.linear_schedule(peak, 0.1 * peak, decay)]
    return optax.join_schedules(phases, [warmup_steps, stable])


def decay_mask(params: PyTree) -> PyTree:
    """True for matrices, those of embeddings and heads included: what is no "vector" by `parameter_roles`."""
    return jax.tree.map(lambda role: role.kind != "vector", parameter_roles(params))
