"""The recurrence of every memory over a chunk of tokens, in closed form.

    S_t = μ_t S_{t-1} - η_t g_t x_tᵀ
    W_t = W_{t-1} (α_t I - β_t x_t x_tᵀ) + S_t

with keys x, gradients g at the memory's output, learning rate η, retention α, momentum μ and delta strength β per
token (Eq. 83-93 of arXiv 2512.24695). A memory that forgets toward weights W₀ instead of zero follows the same
recurrence with ΔW = W - W₀ in the place of W: both retention and the delta term then pull it toward W₀.

Once all g_t are known, no loop over tokens is needed. Let A[t,s] = Π_{s<i≤t} α_i, let M be the same product of μ and
D = A M, and let ' shift by one token. The answers p_t = W_{t-1} x_t solve one unit lower-triangular system, and
everything else is linear in them and in the forcings f_t = -η_t g_t:

    (I + (A' ∘ X Xᵀ) diag β) P = a' ∘ X Wᵀ + c' ∘ X Sᵀ + (D' ∘ X Xᵀ) F

Without momentum D is A, and one system gives everything that each token writes, u_t = f_t - β_t p_t:

    (I + diag β (A' ∘ X Xᵀ)) U = F - β a' ∘ X Wᵀ

All ratios are products of numbers in [0, 1], computed without logarithms, so α = 0 and μ = 0 are exact.

With keys in bfloat16 the products run in bfloat16 (``ops/products.py``). State, decays, sums, and the triangular system
stay float32.

``chunk_update`` and ``sequential_update`` take W as [..., out, in], as the equations do. All other functions take
weights as Flax's kernels lie, [..., in, out], since products with many outputs are then twice as fast on CPU
(BUILD_NOTES.md, D8).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.reference import check_shapes
from nl_jax.ops import (
    decay_matrix,
    gram,
    inner_products,
    matmul,
    narrow_like,
    outer_products,
    shift,
    solve_unit_lower,
    weighted_outer_products,
    weighted_product,
)


class Decay(NamedTuple):
    """The decay that the coefficients α and μ of one chunk make; memories with the same coefficients share it.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay
      >>> decay = chunk_decay(jnp.array([1.0, 0.5]), jnp.array([0.0, 0.5]))
      >>> print(decay.forcing)  # by momentum the second token, too, writes half of the first one's forcing
      [[1. 0.]
       [1. 1.]]
    """

    state: Float[Array, "... C C"]  # A: the part at t of a write to W at s
    own_forcing: Float[Array, "... C C"] | None  # D = A M: the part at t, in W, of a forcing at s; None where D is A
    momentum: Float[Array, "... C C"] | None  # M; None without momentum
    state_start: Float[Array, "... C"]  # a: the part at t of the W that the chunk starts with
    momentum_start: Float[Array, "... C"] | None  # m: the part at t of the S that the chunk starts with
    forcing_start: Float[Array, "... C"] | None  # c = A m: the part at t, in W, of the S that the chunk starts with

    @property
    def forcing(self) -> Float[Array, "... C C"]:
        """D: the part at t, in W, of a forcing at s, momentum included."""
        return self.state if self.own_forcing is None else self.own_forcing

    def over_stack(self) -> "Decay":
        """The same decay with an axis of size 1 for the memories of a stack, [..., 1, C, C] and [..., 1, C]."""
        leading = self.state_start.ndim - 1
        return jax.tree.map(lambda u: jnp.expand_dims(u, leading), self)


def chunk_decay(
    alpha: Float[Array, "... C"],
    mu: Float[Array, "... C"] | None,
    valid: Float[Array, "... C"] | None = None,
    window: int = 1,
) -> Decay:
    """Decay matrices of one chunk.

    Args:
      alpha: retention of each token, in [0, 1].
      mu: momentum of each token, in [0, 1]; None where there is no momentum.
      valid: 1 for a token, 0 for padding, through which W and S pass unchanged (the caller sets α = μ = 1 and
        η = β = 0 there); None if there is no padding.
      window: a forcing enters at its own token and at the ``window - 1`` tokens after it (Omega rule, Eq. 68).

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay
      >>> decay = chunk_decay(jnp.array([0.5, 0.5, 0.5]), None)
      >>> print(decay.state)  # row t, column s: what is left at t of a write at s
      [[1.   0.   0.  ]
       [0.5  1.   0.  ]
       [0.25 0.5  1.  ]]
      >>> print(decay.state_start)
      [0.5   0.25  0.125]
    """
    state = decay_matrix(alpha)
    state_start = alpha[..., :1] * state[..., :, 0]
    entering = state if valid is None or (mu is None and window == 1) else state * valid[..., None, :]
    size = alpha.shape[-1]
    age = jnp.arange(size)[:, None] - jnp.arange(size)
    repeated = ((age >= 0) & (age < window)).astype(state.dtype)
    if mu is None:
        forcing = None if window == 1 else entering @ repeated
        return Decay(state, forcing, None, state_start, None, None)
    momentum = decay_matrix(mu)
    momentum_start = mu[..., :1] * momentum[..., :, 0]
    if window > 1:
        momentum = momentum @ (repeated if valid is None else valid[..., :, None] * repeated)
    forcing = entering @ momentum  # S enters W at tokens only
    forcing_start = jnp.squeeze(entering @ momentum_start[..., None], -1)
    return Decay(state, forcing, momentum, state_start, momentum_start, forcing_start)


class Chunk(NamedTuple):
    """One solved chunk of one memory, from which it is read at any token and carried to the next chunk.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, solve_chunk
      >>> keys, values = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0], [5.0]])  # a key gets a new value
      >>> chunk = solve_chunk(jnp.zeros((2, 1)), None, keys, values, jnp.ones(2), chunk_decay(jnp.ones(2), None))
      >>> print(chunk.forcings[:, 0])  # what each token writes: the second one its change
      [1. 4.]
    """

    delta_w: Float[Array, "... in out"]  # ΔW at the chunk's start
    momentum: Float[Array, "... in out"] | None  # S at the chunk's start
    keys: Float[Array, "... C in"]
    forcings: Float[Array, "... C out"]  # f; where ``removed`` is None and there is a delta term, f - β p
    removed: Float[Array, "... C out"] | None  # β p, which the delta term removes, where it decays unlike the forcings
    decay: Decay
    excess: Float[Array, "... C"] | None = None  # its tokens' parts of their mean ``excess``, of a layer that shrinks


def solve_chunk(
    delta_w: Float[Array, "... in out"],
    momentum: Float[Array, "... in out"] | None,
    keys: Float[Array, "... C in"],
    forcings: Float[Array, "... C out"],
    beta: Float[Array, "... C"] | None,
    decay: Decay,
    answers: Float[Array, "... C out"] | None = None,
) -> Chunk:
    """Solves one chunk for what the delta term removes at each of its tokens.

    Args:
      delta_w: ΔW = W - W₀ at the chunk's start, where W₀ is what the memory forgets toward (W itself if W₀ is zero).
      momentum: S at the chunk's start, or None.
      keys, forcings: x and f = -η g.
      beta: strength of the delta term; β‖x‖² ≤ 1 + α keeps the recurrence non-expansive. None for no delta term, and
        then nothing is left to solve.
      decay: of this chunk's α and μ.
      answers: ``keys @ delta_w``, where the caller has it already.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, read_chunk, solve_chunk
      >>> keys, values = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0], [5.0]])  # a key gets a new value
      >>> chunk = solve_chunk(jnp.zeros((2, 1)), None, keys, values, jnp.ones(2), chunk_decay(jnp.ones(2), None))
      >>> print(read_chunk(chunk, keys))  # the delta term removes the old one
      [[1.]
       [5.]]
    """
    if beta is None:
        return Chunk(delta_w, momentum, keys, narrow_like(forcings, keys), None, decay)
    products = gram(keys)
    written = shift(decay.state, -2) * products  # A' ∘ X Xᵀ
    start = shift(decay.state_start, -1, 1.0)  # a'
    answers = matmul(keys, delta_w) if answers is None else answers
    if decay.own_forcing is None:  # forcings and removals decay alike: each token makes one update u = f - β p
        right = forcings - (beta * start)[..., None] * answers
        written_by = solve_unit_lower(beta[..., None] * written, right)
        return Chunk(delta_w, None, keys, narrow_like(written_by, keys), None, decay)
    right = start[..., None] * answers
    if momentum is not None:
        assert decay.forcing_start is not None
        right = right + shift(decay.forcing_start, -1)[..., None] * matmul(keys, momentum)
    forcings = narrow_like(forcings, keys)
    right = right + matmul(shift(decay.own_forcing, -2) * products, forcings)
    removed = beta[..., None] * solve_unit_lower(written * beta[..., None, :], right)
    return Chunk(delta_w, momentum, keys, forcings, narrow_like(removed, keys), decay)


def end_of_chunk(chunk: Chunk) -> tuple[Float[Array, "... in out"], Any]:
    """``(ΔW, S)`` after the chunk's last token, both [..., in, out]; S is None where there is no momentum.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, end_of_chunk, solve_chunk
      >>> decay = chunk_decay(jnp.array([1.0, 0.5]), None)
      >>> chunk = solve_chunk(jnp.zeros((2, 1)), None, jnp.eye(2), jnp.ones((2, 1)), None, decay)
      >>> delta_w, momentum = end_of_chunk(chunk)
      >>> print(delta_w[:, 0], momentum)  # half of the first token's write is left
      [0.5 1. ] None
    """
    decay, keys = chunk.decay, chunk.keys
    delta_w = decay.state_start[..., -1, None, None] * chunk.delta_w
    weights = decay.forcing[..., -1, :]
    if chunk.removed is None and chunk.momentum is None:
        return delta_w + weighted_outer_products(weights, keys, chunk.forcings), None
    left = weights[..., None] * chunk.forcings
    if chunk.removed is not None:
        left = left - decay.state[..., -1, :, None] * chunk.removed
    if chunk.momentum is None:
        return delta_w + outer_products(keys, left), None
    assert decay.momentum is not None
    assert decay.momentum_start is not None
    assert decay.forcing_start is not None
    remembered = decay.momentum[..., -1, :, None] * chunk.forcings
    both = jnp.concatenate([left, remembered], axis=-1)  # one product writes W and S
    written, kept = jnp.split(outer_products(keys, both), 2, axis=-1)
    delta_w = delta_w + decay.forcing_start[..., -1, None, None] * chunk.momentum + written
    return delta_w, decay.momentum_start[..., -1, None, None] * chunk.momentum + kept


def read_chunk(
    chunk: Chunk,
    queries: Float[Array, "... C in"],
    w0_answers: Float[Array, "... C out"] | None = None,
) -> Float[Array, "... C out"]:
    """Answers every query t by W_t, the state updated up to and including token t.

    ``w0_answers`` are the answers of W₀; None for W₀ = 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, read_chunk, solve_chunk
      >>> decay = chunk_decay(jnp.ones(2), None)
      >>> chunk = solve_chunk(jnp.zeros((2, 1)), None, jnp.eye(2), jnp.array([[2.0], [3.0]]), None, decay)
      >>> print(read_chunk(chunk, jnp.ones((2, 2)))[:, 0])  # the first query sees the first token only
      [2. 5.]
    """
    decay = chunk.decay
    scores = inner_products(queries, chunk.keys)
    out = weighted_product(decay.state_start, queries, chunk.delta_w)
    if chunk.momentum is not None:
        assert decay.forcing_start is not None
        out = out + weighted_product(decay.forcing_start, queries, chunk.momentum)
    out = out + matmul(decay.forcing * scores, chunk.forcings)
    if chunk.removed is not None:
        out = out - matmul(decay.state * scores, chunk.removed)
    return out if w0_answers is None else out + w0_answers


def read_chunk_transposed(chunk: Chunk, queries: Float[Array, "... C out"]) -> Float[Array, "... C in"]:
    """Answers every query t by W_tᵀ, the transpose of the state updated up to and including token t (W₀ = 0).

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, read_chunk_transposed, solve_chunk
      >>> decay = chunk_decay(jnp.ones(2), None)
      >>> chunk = solve_chunk(jnp.zeros((2, 1)), None, jnp.eye(2), jnp.array([[2.0], [3.0]]), None, decay)
      >>> print(read_chunk_transposed(chunk, jnp.ones((2, 1))))
      [[2. 0.]
       [2. 3.]]
    """
    assert chunk.momentum is None
    assert chunk.removed is None
    scores = inner_products(queries, chunk.forcings)
    start = chunk.decay.state_start[..., None] * inner_products(queries, chunk.delta_w)
    return start + matmul(chunk.decay.state * scores, chunk.keys)


def chunk_update(
    W: Float[Array, "... out in"],
    S: Float[Array, "... out in"],
    x: Float[Array, "... C in"],
    g: Float[Array, "... C out"],
    *,
    eta: Float[Array, "... C"],
    alpha: Float[Array, "... C"],
    mu: Float[Array, "... C"],
    beta: Float[Array, "... C"],
    w0: Float[Array, "... out in"] | None = None,
) -> tuple[Float[Array, "... out in"], Float[Array, "... out in"]]:
    """State of a memory after a chunk of C tokens, in closed form: matrix products and one triangular inverse.

    Leading axes broadcast. The result equals that of ``sequential_update`` up to rounding.

    Args:
      W: weights at the chunk's start.
      S: momentum at the chunk's start.
      x: keys.
      g: gradients of the loss at the memory's output.
      eta: learning rate of each token.
      alpha: retention of each token, in [0, 1].
      mu: momentum of each token, in [0, 1].
      beta: delta strength of each token; β‖x‖² ≤ 1 + α keeps the update non-expansive.
      w0: the weights that retention and the delta term pull toward; None for zero, the paper's form.

    Returns:
      ``(W, S)`` after the last token, with the leading axes that all arguments broadcast to.

    Raises:
      ValueError: if the shapes do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_update, sequential_update
      >>> W, S, x, g = jnp.eye(2), jnp.zeros((2, 2)), jnp.eye(2)[None, 0].repeat(3, 0), jnp.ones((3, 2))
      >>> rates = {"eta": 0.5, "alpha": 0.9, "mu": 0.1, "beta": 0.5}
      >>> rates = {name: jnp.full(3, value) for name, value in rates.items()}
      >>> closed, _ = chunk_update(W, S, x, g, **rates)
      >>> token_by_token, _ = sequential_update(W, S, x, g, **rates)
      >>> bool(jnp.allclose(closed, token_by_token, atol=1e-6))
      True
    """
    check_shapes(W, S, x, g, {"eta": eta, "alpha": alpha, "mu": mu, "beta": beta}, w0)
    delta_w = jnp.swapaxes(W if w0 is None else W - w0, -1, -2)
    chunk = solve_chunk(delta_w, jnp.swapaxes(S, -1, -2), x, -eta[..., None] * g, beta, chunk_decay(alpha, mu))
    delta_w, momentum = end_of_chunk(chunk)
    assert momentum is not None
    delta_w, momentum = jnp.swapaxes(delta_w, -1, -2), jnp.swapaxes(momentum, -1, -2)
    return (delta_w if w0 is None else w0 + delta_w), momentum
