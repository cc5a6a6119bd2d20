"""The three learning rules, which give the delta strength β and the forcing f of a layer's recurrence.

Every layer i with input x_i and gradient g_i at its output follows the recurrence of ``recurrence.py``, for its change
ΔW = W - W₀. All gradients are taken at the weights of the last chunk boundary. Let c be the slope of an objective that
is linear in the answer (2 for L2), let δ be 1 with Delta Gradient Descent (Eq. 54-57) and 0 without, and let N be the
number of gradients that are taken at one boundary (the tokens of a chunk, times the window). The factor 1 - μ makes up
for momentum, which sums a forcing to 1 / (1 - μ) times itself:

``paper`` (Eq. 83-90)         β = δ η,  f = -η g_i, without the factor 1 - μ
``implicit``, last layer      β = (c + δ) η',  η' = η / (1 + (c + δ) η ‖x‖²),  f = -(1 - μ) η' g, with g the gradient
                              at the answer that this layer gives with ΔW = 0. This is the exact implicit (proximal)
                              step at every token, a contraction for every η.
``implicit``, inner layers    β = δ η / (1 + δ η ‖x‖²),  f = -(1 - μ) η g_i / (1 + η N (δ ‖x‖² + Λ))
``normalized``                every layer as an inner layer of ``implicit``

Here Λ = curvature · Σ_i ‖g_i‖²‖x_i‖² / ‖∂L/∂answer‖² is the slope of the loss along the gradient of all weights: for L2
a step with 1 / (δ‖x‖² + Λ) is at most twice Polyak's. Dividing by N answers for staleness: in the worst case all keys
of a chunk are equal, and then their steps add up to at most one. With the number of tokens since the boundary in the
place of N, as in TTT, they would add up to 1 + 1/2 + ... + 1/N. From N = 4 on that overshoots by more than the error
itself, which made normalized memories diverge on repeated text, and gradients through inner layers explode.

**Bound of the recurrence.** αI - βxxᵀ has the eigenvalue α - β‖x‖² along x, so it expands nothing while
β‖x‖² ≤ 1 + α. The implicit and normalized steps keep β‖x‖² below 1. Negative eigenvalues double β, and the paper's β
is η itself: where β‖x‖² would then exceed 1 + α, β is cut.

**Bound of the state.** With unit-length keys and values, T tokens, any η, μ, α in [0, 1] and any chunk size the
implicit L2 rule keeps

    ‖W1 - W1₀‖ ≤ T (‖W1₀‖ + √(2η)),    ‖W2 - W2₀‖ ≤ T max(1, √(2η)) (1 + ½ max ‖W1‖)

(spectral norms; W1 the last layer and W2 the first of a residual MLP of depth 2, gated or not). ‖αI - βxxᵀ‖ ≤ 1. With z
the last layer's input, its forcing is at most c η' ‖z‖ (‖W1₀‖‖z‖ + 2), and η'‖z‖² ≤ 1 / c. With e = ∂L/∂answer, at most
2 (2 + ‖W1‖‖z‖) long, and g the gradient at the first layer's output, that layer's forcing is at most
η‖g‖ / (1 + c η (‖g‖²/‖e‖² + ‖z‖²)): for ‖z‖ ≥ 1 no more than ‖e‖ / (2 c ‖z‖), else than ½ √(η/c) ‖e‖, whatever g is.
Momentum is an average of forcings, so it obeys the same bound. With α < 1 the factor T becomes 1 / (1 - α). A chunk of
the normalized L2 rule maps a matrix D to D (aI - K) plus what the values write, with 0 ≤ K ≤ I: no longer than D.

The paper's rule has no such bound, so its forcings and its state have limits (``guards.py``).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.description import Memory
from nl_jax.ops import squared_lengths


class LayerInputs(NamedTuple):
    """What a rule reads of one layer and one chunk.

    Behind the first layer of an MLP coefficients, [..., 1, C], and inputs, [..., stack, C, in], have a stack's axis.
    """

    layer: int
    x: Float[Array, "... C in"]
    gradient: Float[Array, "... C out"]  # of the loss at the layer's output; where it folds, at the answer with ΔW = 0
    eta: Float[Array, "*#stack C"]
    alpha: Float[Array, "*#stack C"]
    one_minus_mu: Float[Array, "*#stack C"]  # ones without momentum
    gates: Float[Array, "... stack 1"] | None  # multiply each memory's forcing; None for 1
    slope: Float[Array, "*stack C"] | None  # Λ; None where no gradients are taken at the boundary


Write = tuple[Float[Array, "*#stack C"] | None, Float[Array, "... C out"]]  # β, None without a delta term; f


def paper(memory: Memory, inputs: LayerInputs) -> Write:
    """β = δ η and f = -η g."""
    rate = _reach(memory, inputs) * inputs.eta
    step = memory.architecture.per_memory(inputs.layer, rate)
    return rate if memory.rule.delta else None, _forcing(memory, inputs, step)


def implicit(memory: Memory, inputs: LayerInputs) -> Write:
    """β = (c + δ) η' and f = -(1 - μ) η' g in a last layer that folds; other layers follow ``normalized``."""
    if not memory.folds_at(inputs.layer):
        return normalized(memory, inputs)
    strength = (memory.objective.linear or 0.0) + float(memory.rule.delta)  # c + δ
    step = _reach(memory, inputs) * inputs.eta / (1.0 + strength * inputs.eta * squared_lengths(inputs.x))
    beta = strength * step if memory.has_delta_term(inputs.layer) else None
    return beta, _forcing(memory, inputs, inputs.one_minus_mu * step)


def normalized(memory: Memory, inputs: LayerInputs) -> Write:
    """β = δ η / (1 + δ η ‖x‖²) and f = -(1 - μ) η g / (1 + η N (δ ‖x‖² + Λ))."""
    assert inputs.slope is not None
    delta, square = float(memory.rule.delta), squared_lengths(inputs.x)
    beta = _reach(memory, inputs) * inputs.eta / (1.0 + inputs.eta * square) if memory.rule.delta else None
    eta, one_minus_mu, square = (
        memory.architecture.per_memory(inputs.layer, u) for u in (inputs.eta, inputs.one_minus_mu, square)
    )
    step = one_minus_mu * eta / (1.0 + eta * memory.chunk_size * (delta * square + inputs.slope))
    return beta, _forcing(memory, inputs, step)


WRITES = {"implicit": implicit, "normalized": normalized, "paper": paper}  # by the rule's form


def non_expansive(memory: Memory, inputs: LayerInputs, beta: Float[Array, "*#stack C"]) -> Float[Array, "*#stack C"]:
    """β with the retention that the rule asks for, by `limit_strength` where the rule does not bound it itself."""
    rule = memory.rule
    if rule.delta_after_retention:
        beta = inputs.alpha * beta
    if rule.form != "paper" and not rule.allow_neg_eigval:
        return beta  # at most 1 / ‖x‖² by construction
    return limit_strength(beta, inputs.alpha, inputs.x)


def limit_strength(
    beta: Float[Array, "*#stack C"], alpha: Float[Array, "*#stack C"], x: Float[Array, "... C in"]
) -> Float[Array, "*#stack C"]:
    """β, cut so that β‖x‖² ≤ 1 + α: no eigenvalue of ``α I - β x xᵀ`` is then below -1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import limit_strength
      >>> print(limit_strength(jnp.array([5.0, 0.5]), jnp.array([1.0, 1.0]), jnp.eye(2)))  # at most (1 + α) / ‖x‖²
      [2.  0.5]
    """
    return beta * jnp.minimum(1.0, (1.0 + alpha) / jnp.maximum(beta * squared_lengths(x), 1.0))


def _reach(memory: Memory, inputs: LayerInputs) -> float:
    """2 in a last layer whose eigenvalue may become -1, else 1."""
    return 2.0 if memory.rule.allow_neg_eigval and inputs.layer == memory.last else 1.0


def _forcing(memory: Memory, inputs: LayerInputs, step: Float[Array, "*#stack C"]) -> Float[Array, "... C out"]:
    """``-step g``, by each memory's gate."""
    step = step if inputs.gates is None else inputs.gates * step
    return memory.architecture.scale_outputs(inputs.layer, -step, inputs.gradient)
