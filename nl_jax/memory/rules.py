"""How a memory learns a chunk: from keys, values and coefficients to one solved recurrence for each of its layers.

Every layer i with input x_i and gradient g_i at its output follows the recurrence of ``recurrence.py``, for its change
D = W - W₀ where it has weights W₀ to forget toward; a rule says what its delta strength β and its forcing f are. All
gradients are taken at the weights of the last chunk boundary. Let c be the slope of an objective that is linear in the
answer (2 for L2), δ = 1 with Delta Gradient Descent (Eq. 54-57) and 0 without, N the number of gradients that are taken
at one boundary (tokens of a chunk, times the window); 1 - μ damps, since momentum sums to 1 / (1 - μ) of its forcing:

``paper`` (Eq. 83-90)         β = δ η,  f = -η g_i, not damped
``implicit``, last layer      β = (c + δ) η',  η' = η / (1 + (c + δ) η ‖x‖²),  f = -(1 - μ) η' g, with g the gradient at
                              the answer that this layer gives with D = 0. It is the exact implicit (proximal) step at
                              every token, a contraction for every η.
``implicit``, inner layers    β = δ η / (1 + δ η ‖x‖²),  f = -(1 - μ) η g_i / (1 + η N (δ ‖x‖² + Λ))
``normalized``                every layer as an inner one

with Λ = curvature · Σ_i ‖g_i‖²‖x_i‖² / ‖∂L/∂answer‖², the slope of the loss along the gradient of all weights: for L2 a
step with 1 / (δ‖x‖² + Λ) is at most twice Polyak's. Dividing by N answers for staleness: in the worst case all keys of
a chunk are equal, and then their steps add up to at most one. With N replaced by the number of tokens since the
boundary, as in TTT, they would add up to 1 + 1/2 + ... + 1/N: from N = 4 on that overshoots by more than the error
itself, which made normalized memories diverge on repeated text, and gradients through inner layers explode.

**Bound of the recurrence.** αI - βxxᵀ has the eigenvalue α - β‖x‖² along x, so it expands nothing while
β‖x‖² ≤ 1 + α. The implicit and normalized steps keep β‖x‖² below 1. Negative eigenvalues double β, and the paper's β
is η itself: where these would pass 1 + α, β is cut to it.

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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.architectures import Architecture
from nl_jax.memory.guards import LARGEST_FORCING, LARGEST_RATE, LARGEST_STATE, limit_norm
from nl_jax.memory.objectives import Objective
from nl_jax.memory.recurrence import Chunk, Decay, end_of_chunk, read_chunk, solve_chunk

RULES = ("implicit", "normalized", "paper")
Layers = tuple[Array, ...]


class Rule(NamedTuple):
    """How gradients change a memory.

    Attributes:
      form: "implicit", "normalized" or "paper", see above.
      delta: Delta Gradient Descent; without it gradient descent.
      delta_after_retention: the delta term acts on what retention has left, β ← α β (Gated DeltaNet).
      allow_neg_eigval: twice the last layer's β, up to (1 + α) / ‖x‖², where its eigenvalue is -1.
    """

    form: str = "implicit"
    delta: bool = True
    delta_after_retention: bool = False
    allow_neg_eigval: bool = False


def apply_layer(weights: Layers):
    """``linear`` for an architecture, from the weights of its layers."""
    return lambda layer, x: x @ weights[layer]


class _Gradients(NamedTuple):
    """What a forward and a backward pass through a memory leave for learning; a list has an entry for each layer."""

    inputs: list[Array]
    outputs: list[Array]
    gradients: list[Array]  # of the loss, at the outputs
    at_answer: Array  # ∂L/∂answer


def _gradients(
    architecture: Architecture,
    objective: Objective,
    weights: Layers,
    keys: Array,
    values: Array,
    up_bias: Array | None,
):
    apply = apply_layer(weights)

    def forward(probes):
        inputs, outputs = [], []

        def linear(layer, x):
            inputs.append(x)
            outputs.append(apply(layer, x))
            return outputs[-1] if probes is None else outputs[-1] + probes[layer]

        return architecture(linear, keys, up_bias), (inputs, outputs)

    shapes = jax.eval_shape(lambda: forward(None)[1][1])
    answer, pull, (inputs, outputs) = jax.vjp(forward, [jnp.zeros(o.shape, o.dtype) for o in shapes], has_aux=True)
    at_answer = objective.gradient(answer, values)
    return _Gradients(inputs, outputs, pull(at_answer)[0], at_answer)


def _square(x: Float[Array, "... C size"]) -> Float[Array, "... C"]:
    return jnp.sum(jnp.square(x), axis=-1)


def _by_memory(architecture: Architecture, outputs: Float[Array, "... C out"]) -> Float[Array, "... C stack hidden"]:
    """A first layer's outputs as they lie in memory; ``architecture.split`` moves axes, which costs a copy."""
    return outputs.reshape(*outputs.shape[:-1], architecture.stack, outputs.shape[-1] // architecture.stack)


def _slope(architecture: Architecture, objective: Objective, found: _Gradients) -> Float[Array, "*stack C"]:
    """Λ, of each memory."""
    total = jnp.zeros((), found.at_answer.dtype)
    for layer, (x, gradient) in enumerate(zip(found.inputs, found.gradients, strict=True)):
        if layer == 0 and architecture.depth > 1:
            total = total + jnp.swapaxes(_square(_by_memory(architecture, gradient)), -1, -2) * _square(x)[..., None, :]
        else:
            total = total + _square(gradient) * _square(x)
    return objective.curvature * total / (_square(found.at_answer) + 1e-6)


def learn_chunk(
    architecture: Architecture,
    objective: Objective,
    rule: Rule,
    *,
    anchor: Layers | None,
    change: Layers,
    momentum: Layers | None,
    boundary: Layers,
    keys: Float[Array, "... C in"],
    values: Float[Array, "... C out"],
    eta: Float[Array, "... C"],
    alpha: Float[Array, "... C"],
    damping: Float[Array, "... C"],
    decay: Decay,
    chunk_size: int,
    at_boundary: bool = False,
    gates: Float[Array, "... stack"] | None = None,
    up_bias: Float[Array, "..."] | None = None,
) -> tuple[Chunk, ...]:
    """One chunk, solved for every layer.

    Args:
      architecture, objective, rule: the memory.
      anchor: W₀, weights to forget toward, a layer each; None for zero.
      change, momentum: W - anchor and S at the chunk's start; momentum None without.
      boundary: weights at the last chunk boundary, at which gradients are taken.
      keys: unit length for the bound to hold.
      values: [..., stack, C, out] for MLPs, [..., C, out] for a matrix.
      eta, alpha: learning rate and retention of each token; η = 0, α = 1 for padding. An η above 1e6 counts as 1e6.
      damping: what momentum's forcing is scaled by, 1 - μ; ones without momentum.
      decay: of alpha and mu.
      chunk_size: N, gradients that are taken at one boundary: tokens from one to the next, times the window.
      at_boundary: whether the chunk starts at the boundary, so that ``boundary`` is ``anchor + change``.
      gates: of each memory of an MLP stack, in [0, 1]: its forcing is multiplied by it; None for 1.
      up_bias: of gated memories, as ``Architecture`` takes it.
    """
    eta = jnp.minimum(eta, LARGEST_RATE)
    last = architecture.depth - 1
    fold = rule.form == "implicit" and objective.linear is not None
    # a matrix whose gradient folds, or does not depend on its answer, needs none at the boundary
    if last == 0 and rule.form != "normalized" and (fold or objective.linear == 0.0):
        found = None
    else:
        found = _gradients(architecture, objective, boundary, keys, values, up_bias)
        slope = _slope(architecture, objective, found) if rule.form != "paper" else None
    chunks = []
    for layer in range(architecture.depth):
        x = keys if found is None else found.inputs[layer]
        folds = layer == last and fold
        has_delta = rule.delta or (folds and objective.linear)
        known = has_delta and found is not None and at_boundary  # what the solve needs of the change's answers
        rest = x @ anchor[layer] if anchor is not None and (folds or known) else None  # the anchor's answers
        changes = None  # the change's
        if found is not None and known:
            changes = found.outputs[layer] if rest is None else found.outputs[layer] - rest
        # coefficients, with the axis that the stack has behind the first layer
        rate, damp, retention = ((u if layer == 0 else u[..., None, :]) for u in (eta, damping, alpha))
        side_by_side = layer == 0 and last > 0  # first layers of memories, whose steps differ
        mirror = 2.0 if layer == last and rule.allow_neg_eigval else 1.0
        square = _square(x)
        if folds:
            beta, step = _implicit_step(rate, square, objective.linear or 0.0, rule.delta, mirror)
            answer = jnp.zeros_like(values) if rest is None else rest
            if architecture.residual:
                answer = answer + (keys if last == 0 else keys[..., None, :, :])
            step, gradient = damp * step, objective.gradient(answer, values)
        elif rule.form == "paper":
            beta = step = mirror * rate
            gradient = objective.gradient(jnp.zeros_like(values), values) if found is None else found.gradients[layer]
            step = step[..., None, :] if side_by_side else step
        else:
            assert found is not None
            assert slope is not None
            gradient, delta = found.gradients[layer], float(rule.delta)
            beta = mirror * rate / (1.0 + rate * square)
            rate, damp, own = (u[..., None, :] if side_by_side else u for u in (rate, damp, square))
            step = damp * rate / (1.0 + rate * chunk_size * (delta * own + slope))
        if gates is not None:
            step = gates[..., None] * step
        if side_by_side:
            forcing = -jnp.swapaxes(step, -1, -2)[..., None] * _by_memory(architecture, gradient)
            forcing = forcing.reshape(gradient.shape)
        else:
            forcing = -step[..., None] * gradient
        if _is_unbounded(architecture, objective, rule):
            forcing = limit_norm(forcing, LARGEST_FORCING, -1)
        chunks.append(
            solve_chunk(
                change[layer],
                None if momentum is None else momentum[layer],
                x,
                forcing,
                _non_expansive(beta, square, retention, rule) if has_delta else None,
                decay if layer == 0 else jax.tree.map(lambda d: jnp.expand_dims(d, 2), decay),
                changes,
            )
        )
    return tuple(chunks)


def _implicit_step(rate: Array, square: Array, linear: float, delta: bool, mirror: float) -> tuple[Array, Array]:
    """``(c + δ) η'`` and η' of a last layer, from η and ‖x‖²; ``mirror`` times as large with negative eigenvalues."""
    strength = linear + float(delta)
    step = mirror * rate / (1.0 + strength * rate * square)
    return strength * step, step


def _non_expansive(
    beta: Float[Array, "... C"], square: Float[Array, "... C"], alpha: Float[Array, "... C"], rule: Rule
) -> Float[Array, "... C"]:
    """β, where need be cut so that no eigenvalue of ``α I - β x xᵀ`` is below -1: β‖x‖² ≤ 1 + α."""
    if rule.delta_after_retention:
        beta = alpha * beta
    if rule.form != "paper" and not rule.allow_neg_eigval:
        return beta  # at most 1 / ‖x‖² by construction
    return beta * jnp.minimum(1.0, (1.0 + alpha) / jnp.maximum(beta * square, 1.0))


def _is_unbounded(architecture: Architecture, objective: Objective, rule: Rule) -> bool:
    """Whether what a token writes grows with the state: by the paper's rule, unless a matrix learns a dot product."""
    return rule.form == "paper" and (architecture.depth > 1 or objective.linear != 0.0)


def end_of_memory(
    architecture: Architecture, objective: Objective, rule: Rule, chunks: tuple[Chunk, ...]
) -> tuple[Layers, tuple[Array | None, ...]]:
    """``(W - W₀, S)`` of every layer after the last token of ``learn_chunk``'s chunks; S is None without momentum.

    Where the rule has no bound of its own, each matrix is scaled down to the Frobenius norm 1,000 (``guards.py``).
    """
    ends: Any = [end_of_chunk(chunk) for chunk in chunks]
    if _is_unbounded(architecture, objective, rule):
        ends = jax.tree.map(lambda w: limit_norm(w, LARGEST_STATE, (-2, -1)), ends)
    return tuple(change for change, _ in ends), tuple(momentum for _, momentum in ends)


def read_memory(
    architecture: Architecture,
    chunks: tuple[Chunk, ...],
    anchor: Layers | None,
    queries: Float[Array, "... C in"],
    up_bias: Float[Array, "..."] | None = None,
) -> Float[Array, "... C out"]:
    """Every query answered by the weights updated up to its own token."""

    def linear(layer, x):
        own = None if anchor is None else x @ anchor[layer]
        return read_chunk(chunks[layer], x, own)

    return architecture(linear, queries, up_bias)
