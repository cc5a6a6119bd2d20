"""The optimizer of pre-training: AdamW with clipping and a schedule of rates, each CMS level at its own cadence."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from nl_jax.optim import multi_frequency, parameter_roles, schedule_of_updates
from nl_jax.parameter_axes import path_name

PyTree = Any
SCHEDULES = ("cosine", "constant", "wsd")
WARMUP_STEPS = 100  # by default, where the rates must not depend on the number of steps


def make_optimizer(
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int | None = None,
    schedule: str = "cosine",
    weight_decay: float = 0.1,
    cms_periods: Sequence[int] = (1,),
) -> optax.GradientTransformation:
    r"""AdamW (β₁ 0.9, β₂ 0.95) on gradients clipped to global norm 1.

    The blocks of CMS level :math:`\ell` are updated every ``cms_periods[l]`` steps with the sum of the clipped
    gradients of these steps and are unchanged in between (paper Eq. 70-71); all other parameters at every step.

    Args:
        learning_rate: the peak; reached after the warm-up, and then as ``schedule`` says.
        steps: optimizer steps of the run.
        warmup_steps: steps of linear warm-up; default as for `learning_rate_schedule`.
        schedule: one of ``SCHEDULES``.
        weight_decay: times the learning rate is what matrices lose per update; vectors and scales are not decayed.
        cms_periods: optimizer steps between two updates of each CMS level, fastest first.

    Returns:
        An optax transformation for the parameters of a model.

    Raises:
        ValueError: for an unknown schedule.
    """
    rates = learning_rate_schedule(learning_rate, steps, warmup_steps, schedule)

    def adamw(period: int) -> optax.GradientTransformation:
        rate = schedule_of_updates(rates, period)
        return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=decay_mask)

    clip = optax.clip_by_global_norm(1.0)
    periods = sorted({1, *cms_periods})
    if periods == [1]:
        return optax.chain(clip, adamw(1))
    transforms = {f"every_{period}": (adamw(period), period) for period in periods}
    return optax.chain(clip, multi_frequency(transforms, lambda params: _cadence_labels(params, cms_periods)))


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


def _cadence_labels(params: PyTree, cms_periods: Sequence[int]) -> PyTree:
    def label(path: tuple[Any, ...], _: Any) -> str:
        level = re.search(r"\.cms\.levels\.(\d+)\.", path_name(path))
        return f"every_{cms_periods[int(level[1])] if level else 1}"

    return jax.tree_util.tree_map_with_path(label, params)
