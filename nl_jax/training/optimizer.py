"""The optimizers of pre-training: one for hidden matrices and AdamW for the rest, with schedules of learning rates.

One of ``OPTIMIZERS`` updates the hidden matrices. AdamW updates all other parameters (embeddings, the output head,
scales and biases), since an orthogonal step means nothing for them.
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
"""Names of the schedules of learning rates: cosine decay, constant, and warm-up, constant, linear decay (WSD)."""
WARMUP_STEPS = 100  # the default for schedules whose rates must not depend on the number of steps
ADAM = {"b1": 0.9, "b2": 0.95}


class Optimizer(NamedTuple):
    """How hidden matrices are updated, and the default learning rates of a language model.

    Attributes:
        make: ``make(rate, weight_decay)`` returns the transformation of the hidden matrices for a learning rate or
            schedule and a decoupled weight decay. None for AdamW.
        learning_rate: the default peak learning rate of all other parameters.
        matrix_learning_rate: the default peak learning rate of the hidden matrices; None for ``learning_rate``.
    """

    make: Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation] | None
    learning_rate: float
    matrix_learning_rate: float | None = None


def _by_rule(
    rule: optax.GradientTransformation, rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """The rule with decoupled weight decay and a learning rate."""
    decay = optax.add_decayed_weights(weight_decay)
    return bounded(optax.chain(rule, decay, optax.scale_by_learning_rate(rate)))


def scale_by_adamuon(
    dimensions: Callable[[PyTree], PyTree] = matrix_dimensions,
) -> optax.GradientTransformation:
    """AdaMuon (Si et al., arXiv 2507.11005) without the sign of the momentum, for parameters that are all matrices.

    Muon's orthogonal steps are divided by the root of their second moment. The step of every matrix [..., in, out] is
    then scaled to root mean square 0.2.

    Args:
        dimensions: which axes of each parameter form a matrix, as ``optax.contrib.scale_by_muon`` takes them.
    """

    def align(u: jax.Array) -> jax.Array:
        return 0.2 * u * jax.lax.rsqrt(jnp.mean(jnp.square(u), axis=(-2, -1), keepdims=True) + 1e-16)

    return optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=dimensions),
        optax.scale_by_rms(0.95, bias_correction=True),
        optax.stateless(lambda updates, _: jax.tree.map(align, updates)),
    )


_MUON = optax.contrib.scale_by_muon(weight_dimension_numbers=matrix_dimensions)

OPTIMIZERS = {
    "adamw": Optimizer(None, 3e-3),
    "muon": Optimizer(lambda rate, decay: _by_rule(_MUON, rate, decay), 3e-3, 2e-2),
    "adamuon": Optimizer(lambda rate, decay: _by_rule(scale_by_adamuon(), rate, decay), 3e-3, 1e-2),
    "m3": Optimizer(lambda rate, decay: m3(rate, weight_decay=decay), 3e-3, 5e-2),
    "delta_momentum": Optimizer(lambda rate, decay: _by_rule(scale_by_delta_momentum(), rate, decay), 3e-3, 0.2),
    "deep_momentum": Optimizer(lambda rate, decay: _by_rule(scale_by_deep_momentum(), rate, decay), 3e-3, 3.2),
    "momentum": Optimizer(lambda rate, decay: _by_rule(optax.trace(0.9), rate, decay), 3e-3, 0.2),
}
"""The optimizers of hidden matrices by name, with their default learning rates; AdamW moves everything else."""


class LevelOptimizers(NamedTuple):
    """The optimizers of the levels of `training_schedule`.

    Attributes:
        of_period: ``of_period(p)`` returns the transformation of a level that is updated once in p steps.
        cms_periods: optimizer steps between two updates of each CMS level, fastest first; None for a single level with
            all parameters.
        max_norm: the largest global norm of the gradients of all levels together; longer ones are scaled down to it.
            None for no clipping.

    Examples:
        >>> from nl_jax.training import make_optimizer
        >>> rule = make_optimizer(steps=100, cms_periods=(1, 4))
        >>> rule.cms_periods, rule.max_norm
        ((1, 4), 1.0)
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
    r"""Makes the optimizers of pre-training, for gradients that are clipped to global norm 1.

    One of ``OPTIMIZERS`` updates the hidden matrices, AdamW (β₁ 0.9, β₂ 0.95) all other parameters. The blocks of CMS
    level :math:`\ell` are updated once every ``cms_periods[l]`` steps, with the sum of the clipped gradients of these
    steps (Eq. 70-71 of arXiv 2512.24695). All parameters outside of the CMS are updated at every step.

    Args:
        optimizer: one of ``OPTIMIZERS``.
        learning_rate: peak learning rate of all parameters but the hidden matrices. Default: that of the optimizer.
        matrix_learning_rate: peak learning rate of the hidden matrices. Default: that of the optimizer; with AdamW it
            is ``learning_rate``.
        steps: number of optimizer steps in the run.
        warmup_steps: number of steps of linear warm-up; default as for `learning_rate_schedule`.
        schedule: one of ``SCHEDULES``.
        weight_decay: each update subtracts it, times the learning rate, times the matrix. Vectors and scales do not
            decay.
        cms_periods: optimizer steps between two updates of each CMS level, fastest first. Default: all parameters form
            one level, which is updated at every step.

    Raises:
        ValueError: for an unknown optimizer or schedule.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.training import make_optimizer
        >>> params = {"kernel": jnp.zeros((8, 8))}
        >>> for name in ("adamw", "m3"):
        ...     state = jax.eval_shape(make_optimizer(optimizer=name, steps=100).of_period(1).init, params)
        ...     print(name, sum(leaf.size for leaf in jax.tree.leaves(state)) // 64)  # numbers for each parameter
        adamw 2
        m3 4
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
    """Peak learning rates of all other parameters and of hidden matrices; None stands for the optimizer's default.

    Examples:
        >>> from nl_jax.training import peak_rates
        >>> peak_rates("adamw", learning_rate=1e-3), peak_rates("m3", learning_rate=1e-3, matrix_learning_rate=2e-2)
        ((0.001, 0.001), (0.001, 0.02))
    """
    known = OPTIMIZERS[optimizer]
    rate = known.learning_rate if learning_rate is None else learning_rate
    own = rate if known.matrix_learning_rate is None else known.matrix_learning_rate
    return rate, own if matrix_learning_rate is None else matrix_learning_rate


def _matrix_labels(params: PyTree) -> PyTree:
    """The label "matrix" for hidden matrices, "other" for all other parameters."""
    return jax.tree.map(lambda matrix: "matrix" if matrix else "other", hidden_matrices(params))


def learning_rate_schedule(
    peak: float, steps: int, warmup_steps: int | None = None, kind: str = "cosine"
) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up to ``peak``, then one of ``SCHEDULES``.

    ``cosine`` falls along a cosine to a tenth of the peak at ``steps``; all rates depend on ``steps``.
    ``constant`` stays at the peak; no rate depends on ``steps``.
    ``wsd`` (warm-up, stable, decay) stays at the peak and falls linearly to a tenth of it in the last fifth of
    ``steps``; rates before the decay do not depend on ``steps``.

    Args:
        peak: the highest rate.
        steps: number of steps in the run.
        warmup_steps: number of warm-up steps. Default: a tenth of ``steps`` for the cosine, else 100.
        kind: one of ``SCHEDULES``.

    Raises:
        ValueError: for an unknown kind.

    Examples:
        >>> from nl_jax.training import learning_rate_schedule
        >>> rate = learning_rate_schedule(1.0, steps=1000, kind="wsd")
        >>> [round(float(rate(step)), 2) for step in (0, 100, 800, 1000)]
        [0.01, 1.0, 1.0, 0.1]
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
    """True for parameters with weight decay: all matrices, also embeddings and heads, by `parameter_roles`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nl_jax.training import decay_mask
        >>> decay_mask({"wte": jnp.ones((64, 8)), "kernel": jnp.ones((8, 8)), "scale": jnp.ones(8)})
        {'kernel': True, 'scale': False, 'wte': True}
    """
    return jax.tree.map(lambda role: role.kind != "vector", parameter_roles(params))
