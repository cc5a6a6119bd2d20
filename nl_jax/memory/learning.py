"""How a memory learns a chunk: from keys, values and coefficients to one solved recurrence for each of its layers.

Every layer i with input x_i and gradient g_i at its output follows the recurrence of ``chunkwise.py``; a rule says what
its delta strength β and its forcing f are. All gradients are taken at the weights of the last chunk boundary. With c the
slope of an objective that is linear in the answer (2 for L2), δ = 1 with Delta Gradient Descent (Eq. 54-57) and 0
without, n_t the tokens since the boundary, t included, and damping (1 - μ), since momentum sums to 1 / (1 - μ) of it:

``printed`` (Eq. 83-90):    β = δ η,  f = -η g_i, without damping
``folded``, last layer:     β = (c + δ) η',  η' = η / (1 + (c + δ) η ‖x‖²),  f = -(1 - μ) η' (g without its part in the
                            answer of this layer): exact at every token, a contraction for every η
``folded``, inner layers:   β = δ η / (1 + δ η ‖x‖²),  f = -(1 - μ) η g_i / (1 + η n_t (δ ‖x‖² + Λ))
``normalized``:             every layer as an inner one

with Λ = curvature · Σ_i ‖g_i‖²‖x_i‖² / ‖∂L/∂answer‖², the slope of the loss along the gradient of all weights: for L2 a
step with 1 / (δ‖x‖² + Λ) is at most twice Polyak's. Dividing by n_t answers for staleness: in the worst case all keys
since the boundary are equal, and then their steps add up to one (TTT scales its steps by 1 / n_t, too).

**Bound.** With unit-length keys and values, T tokens, any η, μ, α in [0, 1] and any chunk size, the folded L2 rule keeps

    ‖W1 - W1₀‖ ≤ T (‖W1₀‖ + 1.16 √η),    ‖W2 - W2₀‖ ≤ T (‖W2₀‖ + 1.42 + ½ max ‖W1‖)

(spectral norms; residual MLP of depth 2): ‖αI - βxxᵀ‖ ≤ 1, the delta term on W₀ adds at most ‖W₀‖ a token, and forcings
are at most c‖e‖η‖x‖ / (1 + 3η‖x‖²) in the last layer and, with Λ ≥ c‖x_last‖², √c + ½‖W1‖ in the inner one. Momentum is
an average of forcings, so it obeys the same bound. With α < 1 the factor T becomes 1 / (1 - α).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.architectures import Architecture
from nl_jax.memory.chunkwise import Chunk, Decay, read_chunk, solve_chunk
from nl_jax.memory.objectives import Objective

RULES = ("folded", "normalized", "printed")
Layers = tuple[Array, ...]


class Rule(NamedTuple):
    """How gradients change a memory.

    Attributes:
      form: "folded", "normalized" or "printed", see above.
      delta: Delta Gradient Descent; without it gradient descent.
      delta_after_retention: the delta term acts on what retention has left, β ← α β (Gated DeltaNet).
      negative_eigenvalues: twice the last layer's step, so that β reaches 2 / ‖x‖² (eigenvalue -1), still non-expansive.
    """

    form: str = "folded"
    delta: bool = True
    delta_after_retention: bool = False
    negative_eigenvalues: bool = False


def apply_layer(weights: Layers):
    """``linear`` for an architecture, from the weights of its layers."""
    return lambda layer, x: x @ jnp.swapaxes(weights[layer], -1, -2)


def _gradients(architecture: Architecture, objective: Objective, weights: Layers, keys: Array, values: Array):
    """Inputs of every layer, gradients of the loss at every layer's output, and (answer, gradient) of the memory."""
    inputs: list[Array] = [keys] * architecture.depth

    def forward(probes):
        def linear(layer, x):
            inputs[layer] = x
            return x @ jnp.swapaxes(weights[layer], -1, -2) + probes[layer]

        return architecture(linear, keys), tuple(inputs)

    def outputs():
        out = []

        def linear(layer, x):
            out.append(x @ jnp.swapaxes(weights[layer], -1, -2))
            return out[-1]

        architecture(linear, keys)
        return out

    probes = [jnp.zeros(o.shape, o.dtype) for o in jax.eval_shape(outputs)]
    answer, pull, layer_inputs = jax.vjp(forward, probes, has_aux=True)
    at_answer = objective.gradient(answer, values)
    (gradients,) = pull(at_answer)
    return layer_inputs, gradients, at_answer


def _square(x: Float[Array, "... C size"]) -> Float[Array, "... C"]:
    return jnp.sum(jnp.square(x), axis=-1)


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
    damping: Float[Array, "... C"] | float,
    decay: Decay,
    since_boundary: Float[Array, "*stack C"],
) -> tuple[Chunk, ...]:
    """One chunk, solved for every layer.

    Args:
      architecture, objective, rule: the memory.
      anchor: weights that retention pulls toward, a layer each; None for zero.
      change, momentum: W - anchor and S at the chunk's start; momentum None without.
      boundary: weights at the last chunk boundary, at which gradients are taken.
      keys: unit length for the bound to hold.
      values: [..., stack, C, out] for MLPs, [..., C, out] for a matrix.
      eta, alpha: learning rate and retention of each token; η = 0, α = 1 for padding.
      damping: what momentum's forcing is scaled by, 1 - μ; 1 without momentum.
      decay: of alpha and mu.
      since_boundary: n_t, tokens since the boundary, t included.
    """
    last = architecture.depth - 1
    fold = rule.form == "folded" and objective.linear is not None
    if last == 0 and (fold or objective.linear == 0.0):
        inputs, gradients, at_answer = (keys,), (jnp.zeros(()),), None  # no gradient at the boundary is needed
    else:
        inputs, gradients, at_answer = _gradients(architecture, objective, boundary, keys, values)
    delta = 1.0 if rule.delta else 0.0
    stacked = last > 0
    if at_answer is not None and rule.form != "printed":
        total = sum(
            _square(architecture.split(g) if stacked and layer == 0 else g)
            * (_square(x)[..., None, :] if stacked and layer == 0 else _square(x))
            for layer, (g, x) in enumerate(zip(gradients, inputs, strict=True))
        )
        slope = objective.curvature * total / (_square(at_answer) + 1e-6)  # Λ
    chunks = []
    for layer in range(architecture.depth):
        x, gradient = inputs[layer], gradients[layer]
        # an MLP's later layers have an axis for the stack
        axis = (lambda u: u) if layer == 0 else (lambda u: u if jnp.ndim(u) == 0 else jnp.expand_dims(u, -2))
        rate, damp = axis(eta), axis(damping)
        reflect = 2.0 if rule.negative_eigenvalues and layer == last else 1.0
        if rule.form == "printed":
            rate = reflect * rate
            beta = delta * rate
            forcing = -rate[..., None] * (objective.gradient(0.0 * values, values) if at_answer is None else gradient)
        elif layer == last and fold:
            assert objective.linear is not None
            strength = objective.linear + delta
            step = rate / (1.0 + strength * rate * _square(x)) * reflect
            beta = strength * step
            rest = keys if last == 0 else keys[..., None, :, :]
            rest = rest if architecture.residual else jnp.zeros_like(rest[..., :1])
            forcing = -(damp * step)[..., None] * objective.gradient(rest, values)
        else:
            square = delta * _square(x)
            beta = delta * rate / (1.0 + rate * square)
            if stacked and layer == 0:  # rates differ between memories that lie side by side
                rate, damp, square = (jnp.expand_dims(u, -2) if jnp.ndim(u) else u for u in (rate, damp, square))
                step = damp * rate / (1.0 + rate * since_boundary * (square + slope))
                gradient = step[..., None] * architecture.split(gradient)
                gradient = jnp.moveaxis(gradient, -3, -2)
                forcing = -gradient.reshape(*gradient.shape[:-2], -1)
            else:
                forcing = -(damp * rate / (1.0 + rate * since_boundary * (square + slope)))[..., None] * gradient
        if rule.delta_after_retention:
            beta = axis(alpha) * beta
        own = decay if layer == 0 else jax.tree.map(lambda d: jnp.expand_dims(d, 2), decay)
        anchored = None if anchor is None else x @ jnp.swapaxes(anchor[layer], -1, -2)
        chunks.append(
            solve_chunk(
                change[layer],
                None if momentum is None else momentum[layer],
                x,
                forcing,
                beta if rule.delta or (layer == last and fold and objective.linear) else None,
                own,
                initial_answers=anchored,
            )
        )
    return tuple(chunks)


def read_memory(
    architecture: Architecture, chunks: tuple[Chunk, ...], anchor: Layers | None, queries: Float[Array, "... C in"]
) -> Float[Array, "... C out"]:
    """Every query answered by the weights updated up to its own token."""

    def linear(layer, x):
        own = None if anchor is None else x @ jnp.swapaxes(anchor[layer], -1, -2)
        return read_chunk(chunks[layer], x, own)

    return architecture(linear, queries)
