"""One level on a trained model: which of its weights it moves, how often and by which rule."""

import dataclasses

import numpy as np

from nl_jax.errors import InputError
from nl_jax.pretrained.changes import MATRICES

LEARNING_RATES = {"preconditioned": 300.0, "gradient_descent": 0.1, "adam": 3e-4}
RULES = tuple(LEARNING_RATES)
REGIMES = ("online", "meta")


@dataclasses.dataclass(frozen=True)
class StackedLevel:
    """One level: which weights of a model it moves, how often, and by which rule.

    Attributes:
      name: of the level, unique.
      period: number of chunks between two updates.
      learning_rate: of the rule; None for its entry in ``LEARNING_RATES``. Those of "preconditioned" and "adam" were
        chosen on SmolLM2. With 0 the level stays at the model's weights.
      blocks: indices of the blocks whose matrices it owns; negative ones count from the last block.
      matrices: names in ``MATRICES``.
      units: the part of an MLP's hidden units that it owns, as two fractions from 0 to 1.
      rank: number of columns and rows of the two factors of a change; None moves whole matrices.
      retention: factor of the change at each update, from 0 to 1; 1 forgets nothing.
      rule: "preconditioned" multiplies the summed gradient by the inverse covariance of the matrix's inputs, of all
        that the level has seen (Eq. 46-47 with the least-squares preconditioner): it moves the answers to new inputs,
        and hardly those to old ones. "gradient_descent" takes the mean gradient, clipped to norm 1, and "adam" is Adam
        on the mean gradient.
      ridge: of "preconditioned" and of protected inputs: added to the covariance, in units of the inputs' squared norms
        (harmonic mean). It is the number of equal inputs after which a step for this input is half of the first.
      protects: whether a level of another rule keeps the covariance of texts that it protects, too, and its steps spare
        their inputs (`nl_jax.pretrained.preconditioner.sparing`). "preconditioned" levels always do.
      regime: "online" takes gradients as constants (first order); "meta" lets an outer gradient flow through updates.

    Examples:
      >>> from nl_jax.pretrained import StackedLevel
      >>> StackedLevel("slow", period=4, blocks=(-1,), units=(0.5, 1.0)).rate  # a half of the last block's MLP
      300.0
    """

    name: str
    period: int = 1
    learning_rate: float | None = None
    blocks: tuple[int, ...] = (-4, -3, -2, -1)
    matrices: tuple[str, ...] = ("down",)
    units: tuple[float, float] = (0.0, 1.0)
    rank: int | None = None
    retention: float = 1.0
    rule: str = "preconditioned"
    ridge: float = 1.0
    regime: str = "online"
    protects: bool = False

    @property
    def rate(self) -> float:
        """The learning rate, the rule's own if none was given."""
        return LEARNING_RATES[self.rule] if self.learning_rate is None else self.learning_rate

    @property
    def observes(self) -> bool:
        """Whether it keeps the covariance of inputs."""
        return self.protects or self.rule == "preconditioned"

    def hidden_units(self, hidden: int) -> tuple[int, int]:
        """First and last plus one of its hidden units in an MLP of so many."""
        low, high = (round(fraction * hidden) for fraction in self.units)
        if low == high:
            raise InputError(f"level {self.name!r}: units={self.units}: none of {hidden} hidden units is among them")
        return low, high

    def __post_init__(self):
        """Checks the values."""
        for name, known in (("rule", RULES), ("regime", REGIMES)):
            if getattr(self, name) not in known:
                raise InputError(f"level {self.name!r}: {name}={getattr(self, name)!r}; expected {' or '.join(known)}")
        for name in self.matrices:
            if name not in MATRICES:
                raise InputError(f"level {self.name!r}: matrix {name!r}; expected one of {', '.join(MATRICES)}")
        low, high = self.units
        if not 0 <= low < high <= 1:
            raise InputError(f"level {self.name!r}: units={self.units}; expected two fractions, 0 <= low < high <= 1")
        if self.units != (0.0, 1.0) and not set(self.matrices) <= {"gate", "up", "down"}:
            raise InputError(f"level {self.name!r}: units are of an MLP; expected its matrices gate, up, down alone")
        for name, value, low, high in (
            ("learning_rate", self.rate, 0.0, np.inf),
            ("retention", self.retention, 0.0, 1.0),
            ("ridge", self.ridge, 1e-6, np.inf),
        ):
            if not (low <= value <= high and np.isfinite(value)):
                raise InputError(
                    f"level {self.name!r}: {name}={value}; expected a finite number from {low:g} to {high:g}"
                )
        if not self.blocks or not self.matrices:
            raise InputError(f"level {self.name!r}: owns nothing; expected at least one block and one matrix")
        if self.rank is not None and (self.rank < 1 or self.observes):
            raise InputError(
                f"level {self.name!r}: rank={self.rank} with rule {self.rule!r}, protects={self.protects}; expected at "
                "least 1, and neither 'preconditioned' nor protection, which need whole matrices"
            )
