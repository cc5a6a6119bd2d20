"""Training that stops being finite: steps that are skipped and counted, and the error that ends a run of them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from nl_jax.errors import Diverged
from nl_jax.parallel.hosts import is_writer
from nl_jax.trees import PyTree, named_leaves

SKIPPED = "skipped"  # key in outputs of a step, in metrics.jsonl and in results.json
# Skipped steps in a row that end training. A bad batch costs one step. A skipped step changes nothing, so that many
# different batches that are not finite on the same parameters mean that the parameters, not the batches, are bad.
SKIPPED_IN_A_ROW = 10


class TrainingDiverged(Diverged):
    """Loss or gradient stopped being finite; the message names model and step. The checkpoints are from before.

    Examples:
        >>> import math
        >>> from nl_jax.training import TrainingDiverged, finite_outputs
        >>> try:
        ...     finite_outputs("hope", 7, {"loss": math.nan, "diverged_layer": 2})
        ... except TrainingDiverged as error:
        ...     print(error)
        hope diverged at step 7, the memories of layer 2 first (loss nan); a lower learning rate may help
    """


class SkippedSteps:
    """Counts the steps that `train_step` skipped, reports each in one line on stderr, and ends training after many.

    Args:
        name: name of the model in the messages.
        total: number of steps skipped before, from the `Progress` of a checkpoint.
        in_a_row: how many of them came last, without a finite step after them.

    Attributes:
        total: number of steps skipped so far.
        in_a_row: number of steps skipped since the last finite step.

    Examples:
        >>> import math
        >>> from nl_jax.training import SkippedSteps
        >>> skipped = SkippedSteps("hope")
        >>> outputs = {"loss": math.nan, "gradient_norm": 1.0, "diverged_layer": -1}
        >>> skipped.values(7, outputs), skipped.counts
        ({'skipped': 1}, {'skipped': 1, 'skipped_in_a_row': 1})
    """

    def __init__(self, name: str, total: int = 0, in_a_row: int = 0):
        self._name, self.total, self.in_a_row = name, total, in_a_row

    @property
    def counts(self) -> dict[str, int]:
        """The counts as `Progress` holds them."""
        return {"skipped": self.total, "skipped_in_a_row": self.in_a_row}

    def values(self, step: int, outputs: Mapping[str, Any]) -> dict[str, float]:
        """What to record of a step: its loss and gradient norm, or, if it was skipped, ``skipped``, the total so far.

        Raises:
            TrainingDiverged: the step is the last of `SKIPPED_IN_A_ROW` skipped ones.
        """
        values, where = _values_and_place(outputs)
        what = _not_finite(values, where)
        if what is None:
            self.in_a_row = 0
            return values
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        if self.in_a_row == SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"{self._name} diverged at step {step}{what}, the last of {self.in_a_row} skipped steps in a row; "
                "a lower learning rate may help"
            )
        if is_writer():  # every process sees the same step
            logging.warning("%s: step %d is skipped%s; %d skipped so far", self._name, step, what, self.total)
        return {SKIPPED: self.total}


def finite_outputs(name: str, step: int, outputs: Mapping[str, Any]) -> dict[str, float]:
    """Loss and gradient norm of a `train_step`, once the device has them.

    Raises:
        TrainingDiverged: one of them is not finite; the message names the first layer whose memories are not,
            or the levels of a continuum memory that learns in context, if any.

    Examples:
        >>> from nl_jax.training import finite_outputs
        >>> finite_outputs("hope", 7, {"loss": 2.0, "gradient_norm": 1.0, "diverged_layer": -1})
        {'loss': 2.0, 'gradient_norm': 1.0}
    """
    values, where = _values_and_place(outputs)
    check_finite(name, step, values, where)
    return values


def check_finite(name: str, step: int, values: Mapping[str, float], where: str | None = None) -> None:
    """Raises `TrainingDiverged` unless all values of a step, by name, are finite but for norms of single levels."""
    what = _not_finite(values, where)
    if what is not None:
        raise TrainingDiverged(f"{name} diverged at step {step}{what}; a lower learning rate may help")


def check_parameters(name: str, step: int, model: PyTree) -> None:
    """Raises `TrainingDiverged` if a parameter is not finite after a step whose loss and gradient were.

    An update can overflow although its gradient is finite; such parameters must not be saved.
    """
    bad = [path for path, finite in jax.device_get(_finite(named_leaves(model))).items() if not finite]
    if bad:
        more = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
        raise TrainingDiverged(
            f"{name} diverged at step {step}, parameter {bad[0]}{more} (not finite); a lower learning rate may help"
        )


@jax.jit
def _finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.all(jnp.isfinite(leaf)) for path, leaf in leaves.items()}


def _values_and_place(outputs: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """Loss and gradient norm as numbers, and in words the place at which a memory or a gradient is not finite."""
    values = {key: float(value) for key, value in outputs.items() if key != SKIPPED}  # waits for the device
    layer, levels = int(values.pop("diverged_layer")), int(values.pop("diverged_levels", 0))
    if layer >= 0:
        return values, f"the memories of layer {layer} first"
    names = [f"cms_{i}" for i in range(levels.bit_length()) if levels >> i & 1]
    return values, f"level {', '.join(names)}" if names else "its gradient"


def _not_finite(values: Mapping[str, float], where: str | None) -> str | None:
    """Says in words which values are not finite, and where; None if all are finite.

    Norms of single levels, such as ``grad_norm/cms_0``, decide nothing.
    """
    values = {key: value for key, value in values.items() if "/" not in key}
    if all(map(math.isfinite, values.values())):
        return None
    what = ", ".join(f"{key} {value:g}" for key, value in values.items())
    return f"{f', {where}' if where else ''} ({what})"
