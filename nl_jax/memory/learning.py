"""How a memory learns a chunk and is read: keys, values and coefficients become a solved recurrence of each layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.description import Memory
from nl_jax.memory.guards import LARGEST_FORCING, LARGEST_RATE, LARGEST_STATE, limit_norm
from nl_jax.memory.linear_chunks import linear_chunks
from nl_jax.memory.recurrence import Chunk, Decay, end_of_chunk, read_chunk, solve_chunk
from nl_jax.memory.rules import WRITES, LayerInputs, Write, non_expansive
from nl_jax.memory.shrinkage import excess
from nl_jax.ops import ChunkMaps, matmul, squared_lengths

Layers = tuple[Array, ...]
"""Weights [..., in, out] of each layer."""


class Weights(NamedTuple):
    """The weights of a memory when a chunk starts, a layer each.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, Weights
      >>> w0 = tuple(jnp.ones(shape) for shape in Architecture(8, 8, hidden=32, depth=2).shapes())
      >>> zero = tuple(jnp.zeros_like(w) for w in w0)
      >>> weights = Weights(w0, zero, None, w0)  # when a text begins: nothing is learned, and there is no momentum
      >>> len(weights.delta_w), weights.w_at_boundary[0].shape
      (2, (8, 32))
    """

    w0: Layers | None  # W₀, which retention and the delta term pull toward; None for zero
    delta_w: Layers  # ΔW = W - W₀
    momentum: Layers | None  # S; None without momentum
    w_at_boundary: Layers  # W at the last chunk boundary, where gradients are taken


class Tokens(NamedTuple):
    """The tokens of a chunk.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Tokens, chunk_decay
      >>> eta, alpha = jnp.array([0.5, 0.0]), jnp.array([0.9, 1.0])
      >>> tokens = Tokens(jnp.eye(2), jnp.ones((2, 1)), eta, alpha, None, chunk_decay(alpha, None))
      >>> tokens.keys.shape, tokens.values.shape, tokens.eta.shape  # the last token is padding: η = 0, α = 1
      ((2, 2), (2, 1), (2,))
    """

    keys: Float[Array, "... C in"]  # of unit length, for the state's bound to hold
    values: Float[Array, "... C out"]  # [..., stack, C, out] for MLPs
    eta: Float[Array, "... C"]  # learning rate; 0 for padding. A rate above 1e6 counts as 1e6
    alpha: Float[Array, "... C"]  # retention; 1 for padding
    one_minus_mu: Float[Array, "... C"] | None  # 1 - momentum; None without momentum
    decay: Decay  # of alpha and mu


def learn_chunk(
    memory: Memory,
    weights: Weights,
    tokens: Tokens,
    *,
    starts_at_boundary: bool = False,
    gates: Float[Array, "... stack"] | None = None,
    up_bias: Float[Array, "..."] | None = None,
) -> tuple[Chunk, ...]:
    """Solves one chunk for every layer.

    Args:
      memory: its description.
      weights: when the chunk starts.
      tokens: of the chunk.
      starts_at_boundary: the caller's promise that ``w_at_boundary`` equals ``w0 + delta_w``, which saves a product.
      gates: in [0, 1], of each memory of an MLP stack: they multiply its forcing; None for 1.
      up_bias: of gated memories, as ``Architecture`` takes it.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, Memory, Rule, Tokens, Weights
      >>> from nl_jax.memory import chunk_decay, l2, learn_chunk, read_memory
      >>> memory, zero = Memory(Architecture(2, 1), l2, Rule(delta=False), chunk_size=2), (jnp.zeros((2, 1)),)
      >>> alpha, eta = jnp.ones(2), jnp.full(2, 1e6)  # so large a rate learns each pair at once
      >>> tokens = Tokens(jnp.eye(2), jnp.array([[1.0], [3.0]]), eta, alpha, None, chunk_decay(alpha, None))
      >>> chunks = learn_chunk(memory, Weights(None, zero, None, zero), tokens)
      >>> print(read_memory(memory, chunks, None, jnp.eye(2)).round()[:, 0])
      [1. 3.]
    """
    found = _gradients(memory, weights.w_at_boundary, tokens, up_bias) if memory.takes_gradients else None
    chunks = []
    for layer in range(memory.architecture.depth):
        x = tokens.keys if found is None else found.inputs[layer]
        # what the solution needs of the answers of ΔW is known where a forward pass took them from the same weights
        knows_answers = found is not None and starts_at_boundary and memory.has_delta_term(layer)
        shrinks = memory.rule.shrinkage and layer == memory.last
        needs_w0 = weights.w0 is not None and (memory.folds_at(layer) or knows_answers or shrinks)
        w0_answers = matmul(x, weights.w0[layer]) if weights.w0 is not None and needs_w0 else None
        answers = None
        if found is not None and (knows_answers or shrinks):
            answers = found.outputs[layer] if w0_answers is None else found.outputs[layer] - w0_answers
        gradient = _gradient(memory, layer, found, w0_answers, tokens)
        beta, forcing = _write(memory, layer, x, gradient, tokens, gates, None if found is None else found.slope)
        momentum = None if weights.momentum is None else weights.momentum[layer]
        decay = tokens.decay if layer == 0 else tokens.decay.over_stack()
        known = answers if knows_answers else None
        chunk = solve_chunk(weights.delta_w[layer], momentum, x, forcing, beta, decay, known)
        if found is not None and answers is not None and shrinks:
            eta = jnp.minimum(tokens.eta, LARGEST_RATE)
            too_large = excess(answers, found.gradients[layer], eta if layer == 0 else eta[..., None, :])
            too_large = too_large if gates is None else gates[..., None] * too_large
            chunk = chunk._replace(excess=too_large / memory.chunk_size)
        chunks.append(chunk)
    return tuple(chunks)


def _write(
    memory: Memory,
    layer: int,
    x: Float[Array, "... C in"],
    gradient: Float[Array, "... C out"],
    tokens: Tokens,
    gates: Float[Array, "... stack"] | None,
    slope: Float[Array, "*stack C"] | None,
) -> Write:
    """β and the forcing of a layer, within the bounds that the rule needs."""
    one_minus_mu = jnp.ones_like(tokens.eta) if tokens.one_minus_mu is None else tokens.one_minus_mu
    eta = jnp.minimum(tokens.eta, LARGEST_RATE)
    inputs = LayerInputs(
        layer,
        x,
        gradient,
        eta=eta if layer == 0 else eta[..., None, :],
        alpha=tokens.alpha if layer == 0 else tokens.alpha[..., None, :],
        one_minus_mu=one_minus_mu if layer == 0 else one_minus_mu[..., None, :],
        gates=None if gates is None else gates[..., None],
        slope=slope,
    )
    beta, forcing = WRITES[memory.rule.form](memory, inputs)
    beta = None if beta is None else non_expansive(memory, inputs, beta)
    return beta, forcing if memory.is_bounded else limit_norm(forcing, LARGEST_FORCING, -1)


def learn_linear_chunks(
    memory: Memory,
    w0: Float[Array, "... in out"] | None,
    tokens: Tokens,
    queries: Float[Array, "... C in"],
) -> ChunkMaps:
    """What chunks do to the state of a memory that ``is_linear``, and what they read of it, without knowing it.

    Args:
      memory: its description.
      w0: W₀, as for ``Weights``; its answers to the queries come on top of what is read.
      tokens: of the chunks, without momentum and window.
      queries: of the same tokens.

    Examples:
      >>> import functools, jax, jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, Tokens, chunk_decay, learn_linear_chunks, memory_of
      >>> alpha, keys = jnp.ones((3, 2)), jnp.broadcast_to(jnp.eye(2), (3, 2, 2))  # 3 chunks of 2 tokens
      >>> tokens = Tokens(keys, jnp.ones((3, 2, 1)), alpha, alpha, None, chunk_decay(alpha, None))
      >>> learn = functools.partial(learn_linear_chunks, memory_of(Architecture(2, 1), chunk_size=2), None)
      >>> maps = jax.eval_shape(learn, tokens, keys)
      >>> maps.write.shape, maps.scores.shape
      ((3, 2, 1), (3, 2, 2))
    """
    assert memory.is_linear
    w0_answers = matmul(tokens.keys, w0) if w0 is not None and memory.folds_at(0) else None
    gradient = _gradient(memory, 0, None, w0_answers, tokens)
    beta, forcings = _write(memory, 0, tokens.keys, gradient, tokens, None, None)
    return linear_chunks(tokens.keys, forcings, beta, tokens.decay, queries)


class _Gradients(NamedTuple):
    """What a forward and a backward pass at the boundary leave for learning; a list has an entry for each layer."""

    inputs: list[Array]
    outputs: list[Array]
    gradients: list[Array]  # of the loss, at the outputs
    slope: Float[Array, "*stack C"] | None  # Λ of each memory; None for the paper's rule, which does not use it


def _gradients(memory: Memory, weights: Layers, tokens: Tokens, up_bias: Array | None) -> _Gradients:
    apply = apply_layer(weights)

    def forward(probes):
        inputs, outputs = [], []

        def linear(layer, x):
            inputs.append(x)
            outputs.append(apply(layer, x))
            return outputs[-1] if probes is None else outputs[-1] + probes[layer]

        return memory.architecture(linear, tokens.keys, up_bias), (inputs, outputs)

    shapes = jax.eval_shape(lambda: forward(None)[1][1])
    answer, pull, (inputs, outputs) = jax.vjp(forward, [jnp.zeros(o.shape, o.dtype) for o in shapes], has_aux=True)
    # the dot product's gradient has the values' type, which may be narrower than the answer's
    at_answer = memory.objective.gradient(answer, tokens.values).astype(answer.dtype)
    gradients = pull(at_answer)[0]
    slope = None if memory.rule.form == "paper" else _slope(memory, inputs, gradients, at_answer)
    return _Gradients(inputs, outputs, gradients, slope)


def _slope(
    memory: Memory, inputs: list[Array], gradients: list[Array], at_answer: Float[Array, "... C out"]
) -> Float[Array, "*stack C"]:
    """Λ of each memory, the slope of the loss along the gradient of all weights."""
    architecture = memory.architecture
    total = jnp.zeros((), at_answer.dtype)
    for layer, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        square = architecture.per_memory(layer, squared_lengths(x))
        total = total + architecture.output_squares(layer, gradient) * square
    return memory.objective.curvature * total / (squared_lengths(at_answer) + 1e-6)


def _gradient(
    memory: Memory, layer: int, found: _Gradients | None, w0_answers: Array | None, tokens: Tokens
) -> Float[Array, "... C out"]:
    """The gradient at a layer's output: at the boundary, or where it folds at the answer that it gives with ΔW = 0."""
    if memory.folds_at(layer):
        answer = jnp.zeros_like(tokens.values) if w0_answers is None else w0_answers
        return memory.objective.gradient(memory.architecture.add_residual(answer, tokens.keys), tokens.values)
    if found is None:  # it does not depend on the answer
        return memory.objective.gradient(jnp.zeros_like(tokens.values), tokens.values)
    return found.gradients[layer]


def end_of_memory(memory: Memory, chunks: tuple[Chunk, ...]) -> tuple[Layers, tuple[Array | None, ...]]:
    """``(ΔW, S)`` of every layer after the last token of ``learn_chunk``'s chunks; S is None without momentum.

    Where the rule has no bound of its own, each matrix is scaled down to the Frobenius norm 1,000 (``guards.py``).

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, Memory, Rule, Tokens, Weights
      >>> from nl_jax.memory import chunk_decay, end_of_memory, l2, learn_chunk
      >>> memory, zero = Memory(Architecture(2, 1), l2, Rule(delta=False), chunk_size=2), (jnp.zeros((2, 1)),)
      >>> alpha, eta = jnp.ones(2), jnp.full(2, 1e6)
      >>> tokens = Tokens(jnp.eye(2), jnp.array([[1.0], [3.0]]), eta, alpha, None, chunk_decay(alpha, None))
      >>> (delta_w,), _ = end_of_memory(memory, learn_chunk(memory, Weights(None, zero, None, zero), tokens))
      >>> print(delta_w.round()[:, 0])
      [1. 3.]
    """
    ends: Any = [end_of_chunk(chunk) for chunk in chunks]
    if not memory.is_bounded:
        ends = jax.tree.map(lambda w: limit_norm(w, LARGEST_STATE, (-2, -1)), ends)
    return tuple(delta_w for delta_w, _ in ends), tuple(momentum for _, momentum in ends)


def apply_layer(weights: Layers) -> Callable[[int, Array], Array]:
    """The function ``linear`` that an architecture takes, from the weights of its layers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, apply_layer
      >>> linear = apply_layer((2.0 * jnp.eye(3),))
      >>> print(Architecture(3, 3)(linear, jnp.ones((1, 3))))
      [[2. 2. 2.]]
    """
    return lambda layer, x: matmul(x, weights[layer])


def read_memory(
    memory: Memory,
    chunks: tuple[Chunk, ...],
    w0: Layers | None,
    queries: Float[Array, "... C in"],
    up_bias: Float[Array, "..."] | None = None,
) -> Float[Array, "... C out"]:
    """Answers every query by the weights updated up to its own token.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, Memory, Rule, Tokens, Weights
      >>> from nl_jax.memory import chunk_decay, l2, learn_chunk, read_memory
      >>> memory, zero = Memory(Architecture(2, 1), l2, Rule(delta=False), chunk_size=2), (jnp.zeros((2, 1)),)
      >>> alpha, eta = jnp.ones(2), jnp.full(2, 1e6)
      >>> tokens = Tokens(jnp.eye(2), jnp.array([[1.0], [3.0]]), eta, alpha, None, chunk_decay(alpha, None))
      >>> chunks = learn_chunk(memory, Weights(None, zero, None, zero), tokens)
      >>> print(read_memory(memory, chunks, None, jnp.ones((2, 2))).round()[:, 0])  # the first query sees one pair only
      [1. 4.]
    """

    def linear(layer, x):
        return read_chunk(chunks[layer], x, None if w0 is None else matmul(x, w0[layer]))

    return memory.architecture(linear, queries, up_bias)
