"""What stays fixed of a memory: its architecture, its objective, its learning rule and its chunk size."""

from dataclasses import dataclass

from nl_jax.memory.architectures import Architecture
from nl_jax.memory.objectives import OBJECTIVES, Objective

RULES = ("implicit", "normalized", "paper")
"""Names of the learning rules: the exact implicit step, a step of bounded length, and the paper's explicit step."""


@dataclass(frozen=True)
class Rule:
    """How gradients change a memory.

    Attributes:
      form: "implicit", "normalized" or "paper" (``rules.py``).
      delta: Delta Gradient Descent; without it gradient descent.
      delta_after_retention: the delta term acts on what retention has left, β ← α β (Gated DeltaNet).
      allow_neg_eigval: doubles the last layer's steps and β, the latter up to (1 + α) / ‖x‖², where the eigenvalue
        along x is -1.
      shrinkage: when a chunk ends, what was learned shrinks as far as its answers were too large
        (``shrinkage.py``). It needs a memory that depends on the boundary.

    Raises:
      ValueError: for an unknown form.

    Examples:
      >>> from nl_jax.memory import Architecture, Memory, Rule, dot_product
      >>> hebbian = Memory(Architecture(4, 4), dot_product, Rule("paper", delta=False), chunk_size=8)
      >>> delta = Memory(Architecture(4, 4), dot_product, Rule("paper"), chunk_size=8)
      >>> hebbian.has_delta_term(0), delta.has_delta_term(0)
      (False, True)
    """

    form: str = "implicit"
    delta: bool = True
    delta_after_retention: bool = False
    allow_neg_eigval: bool = False
    shrinkage: bool = False

    def __post_init__(self):
        """Checks the form."""
        if self.form not in RULES:
            raise ValueError(f"rule={self.form!r}: expected one of {', '.join(map(repr, RULES))}")


@dataclass(frozen=True)
class Memory:
    """The fixed description of a memory, or of a stack of memories that read the same input.

    Attributes:
      architecture: its layers.
      objective: the loss that it is trained on.
      rule: how gradients change it.
      chunk_size: N, the number of gradients that are taken at one boundary: the tokens from one boundary to the next,
        times the window of the Omega rule.

    Raises:
      ValueError: for shrinkage of a memory that does not depend on the boundary.

    Examples:
      >>> from nl_jax.memory import Architecture, Memory, Rule, l2
      >>> matrix = Memory(Architecture(4, 4), l2, Rule(), chunk_size=8)
      >>> mlp = Memory(Architecture(4, 4, hidden=16, depth=2), l2, Rule(), chunk_size=8)
      >>> matrix.depends_on_boundary, mlp.depends_on_boundary  # a matrix learns exactly
      (False, True)
    """

    architecture: Architecture
    objective: Objective
    rule: Rule
    chunk_size: int

    def __post_init__(self):
        """Checks that a memory that shrinks has answers at the boundary."""
        if self.rule.shrinkage and not self.depends_on_boundary:
            raise ValueError("shrinkage=True: expected a memory that depends on the boundary, as an MLP; got a matrix")

    @property
    def last(self) -> int:
        """Index of the last layer."""
        return self.architecture.depth - 1

    @property
    def folds(self) -> bool:
        """Whether the last layer folds its gradient, which is linear in the answer, into its delta term."""
        return self.rule.form == "implicit" and self.objective.linear is not None

    @property
    def depends_on_boundary(self) -> bool:
        """Whether learning depends on the weights at the last chunk boundary.

        A matrix does not depend on them where its gradient folds, or where the gradient does not depend on the answer.
        """
        return self.last > 0 or not (self.folds or self.objective.linear == 0.0)

    @property
    def takes_gradients(self) -> bool:
        """Whether a backward pass is needed, which the normalized rule also needs for the slope of the loss."""
        return self.depends_on_boundary or self.rule.form == "normalized"

    @property
    def is_bounded(self) -> bool:
        """Whether no write grows with the state. With the paper's rule only a matrix that learns dot products is so."""
        return self.rule.form != "paper" or (self.last == 0 and self.objective.linear == 0.0)

    @property
    def is_linear(self) -> bool:
        """Whether what a chunk does to the state is linear in it (``linear_chunks.py``).

        That is so for a matrix if neither the gradients that it learns from nor limits depend on the state.
        """
        return self.last == 0 and not self.takes_gradients and self.is_bounded

    def folds_at(self, layer: int) -> bool:
        """Whether this layer's gradient folds into its delta term."""
        return self.folds and layer == self.last

    def has_delta_term(self, layer: int) -> bool:
        """Whether this layer has a delta term: that of the rule, or that of a gradient that folds."""
        return self.rule.delta or bool(self.folds_at(layer) and self.objective.linear)


def memory_of(
    architecture: Architecture,
    chunk_size: int,
    *,
    objective: str | Objective = "l2",
    rule: str = "implicit",
    delta: bool = True,
    delta_after_retention: bool = False,
    allow_neg_eigval: bool = False,
    shrinkage: bool = False,
) -> Memory:
    """A description of a memory from options by name.

    Args:
      architecture, chunk_size: as for ``Memory``.
      objective: one of ``OBJECTIVES``, or an ``Objective``.
      rule: one of ``RULES``.
      delta, delta_after_retention, allow_neg_eigval, shrinkage: as for ``Rule``. An MLP needs both delta and
        allow_neg_eigval to keep a state over many tokens, and "implicit" reaches the eigenvalue -1 only as η grows.

    Raises:
      ValueError: for an unknown name, or shrinkage of a matrix that does not depend on the boundary.

    Examples:
      >>> from nl_jax.memory import Architecture, memory_of
      >>> memory = memory_of(Architecture(4, 4), chunk_size=16, objective="huber", rule="normalized")
      >>> memory.rule.form, memory.objective.linear, memory.chunk_size
      ('normalized', None, 16)
    """
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective={objective!r}: expected one of {', '.join(map(repr, OBJECTIVES))}")
        objective = OBJECTIVES[objective]
    form = Rule(rule, delta, delta_after_retention, allow_neg_eigval, shrinkage)
    return Memory(architecture, objective, form, chunk_size)
