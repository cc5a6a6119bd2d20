"""The recurrence of every memory, over a chunk of tokens: in closed form, and token by token.

    S_t = μ_t S_{t-1} - η_t g_t x_tᵀ
    W_t = W_{t-1} (α_t I - β_t x_t x_tᵀ) + S_t

with keys x, gradients g at the memory's output, learning rate η, retention α, momentum μ and delta strength β per
token (Eq. 83-93 of arXiv 2512.24695). With an ``anchor`` W₀ the same holds for W - W₀ in the place of W: what a memory
forgets, by retention and by the delta term, it forgets toward W₀. All g_t known, no loop over tokens is needed: with
A[t,s] = Π_{s<i≤t} α_i, M likewise from μ, D = A M, and ' for a shift by one token, the answers p_t = W_{t-1} x_t solve
one unit lower-triangular system, and everything else is linear in them and in the forcings f_t = -η_t g_t:

    (I + (A' ∘ X Xᵀ) diag β) P = a' ∘ X Wᵀ + c' ∘ X Sᵀ + (D' ∘ X Xᵀ) F

Without momentum D is A, and one system gives what each token writes in all, u_t = f_t - β_t p_t:

    (I + diag β (A' ∘ X Xᵀ)) U = F - β a' ∘ X Wᵀ

All ratios are products of numbers in [0, 1], taken without logarithms, so α = 0 and μ = 0 are exact.

``chunk_update`` and ``sequential_update`` take W as [..., out, in], as the equations do. All others take weights as
Flax's kernels lie, [..., in, out]: products with many outputs are then twice as fast on CPU (BUILD_NOTES.md, D8).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.reference import check_shapes
from nl_jax.ops.decay import decay_matrix, pad_first
from nl_jax.ops.products import inner_products, outer_products
from nl_jax.ops.triangular import solve_unit_lower


class Decay(NamedTuple):
    """What the coefficients α and μ of one chunk say, shared by all memories that have the same ones."""

    state: Float[Array, "... C C"]  # A: how a write to W at s is left at t
    own_forcing: Float[Array, "... C C"] | None  # D = A M: how a forcing at s has reached W at t; None where that is A
    momentum: Float[Array, "... C C"] | None  # M; None without momentum
    state_start: Float[Array, "... C"]  # a: what is left at t of W at the chunk's start
    momentum_start: Float[Array, "... C"] | None  # m: what is left at t of S at the chunk's start
    forcing_start: Float[Array, "... C"] | None  # c = A m: what S at the chunk's start has added to W at t

    @property
    def forcing(self) -> Float[Array, "... C C"]:
        """How a forcing at s has reached W at t, momentum included."""
        return self.state if self.own_forcing is None else self.own_forcing


def chunk_decay(
    alpha: Float[Array, "... C"],
    mu: Float[Array, "... C"] | None,
    valid: Float[Array, "... C"] | None = None,
    window: int = 1,
) -> Decay:
    """Decay matrices of one chunk.

    Args:
      alpha: retention per token, in [0, 1].
      mu: momentum per token, in [0, 1]; None where there is no momentum.
      valid: 1 for a token, 0 for padding, through which W and S pass unchanged (the caller sets α = μ = 1, η = β = 0
        there); None if all are tokens.
      window: a forcing enters at its own token and at the ``window - 1`` after it (Omega rule, Eq. 68); 1 for once.
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
    """One chunk of one memory, solved: enough to read it at any of its tokens and to carry it to the next chunk."""

    change: Float[Array, "... in out"]  # W - W₀ at the chunk's start
    momentum: Float[Array, "... in out"] | None  # S at the chunk's start
    keys: Float[Array, "... C in"]
    forcings: Float[Array, "... C out"]  # -η g, less what the delta term takes away where both decay alike
    taken: Float[Array, "... C out"] | None  # β p, p_t = (W_{t-1} - W₀) x_t: what it takes away, where they do not
    decay: Decay


def solve_chunk(
    change: Float[Array, "... in out"],
    momentum: Float[Array, "... in out"] | None,
    keys: Float[Array, "... C in"],
    forcings: Float[Array, "... C out"],
    beta: Float[Array, "... C"] | None,
    decay: Decay,
    answers: Float[Array, "... C out"] | None = None,
) -> Chunk:
    """Solves one chunk for what the delta term takes away at each of its tokens.

    Args:
      change: W - W₀ at the chunk's start, where W₀ is what the memory forgets toward (W itself if that is zero).
      momentum: S at the chunk's start, or None.
      keys, forcings: x and f = -η g.
      beta: strength of the delta term; β‖x‖² ≤ 1 + α keeps the recurrence non-expansive. None for no delta term, and
        then nothing is left to solve.
      decay: of this chunk's α and μ.
      answers: of ``change`` to the keys, where the caller has them already.
    """
    if beta is None:
        return Chunk(change, momentum, keys, forcings, None, decay)
    gram = inner_products(keys, keys)
    written = pad_first(decay.state[..., :-1, :], -2) * gram  # A' ∘ X Xᵀ
    start = pad_first(decay.state_start[..., :-1], -1, 1.0)  # a'
    answers = keys @ change if answers is None else answers
    if decay.own_forcing is None:  # forcings and what the delta term takes decay alike: one update u = f - β p a token
        right = forcings - (beta * start)[..., None] * answers
        return Chunk(change, None, keys, solve_unit_lower(beta[..., None] * written, right), None, decay)
    right = start[..., None] * answers
    if momentum is not None:
        assert decay.forcing_start is not None
        start = pad_first(decay.forcing_start[..., :-1], -1)
        right = right + start[..., None] * (keys @ momentum)
    right = right + (pad_first(decay.own_forcing[..., :-1, :], -2) * gram) @ forcings
    taken = beta[..., None] * solve_unit_lower(written * beta[..., None, :], right)
    return Chunk(change, momentum, keys, forcings, taken, decay)


def end_of_chunk(chunk: Chunk) -> tuple[Float[Array, "... in out"], Any]:
    """``(W - W₀, S)`` after the chunk's last token, both [..., in, out]; S is None where there is no momentum."""
    decay, keys = chunk.decay, chunk.keys
    change = decay.state_start[..., -1, None, None] * chunk.change
    weights = decay.forcing[..., -1, :, None]
    if chunk.taken is None and chunk.momentum is None:
        return change + _weighted_outer(weights, keys, chunk.forcings), None
    left = weights * chunk.forcings
    if chunk.taken is not None:
        left = left - decay.state[..., -1, :, None] * chunk.taken
    if chunk.momentum is None:
        return change + outer_products(keys, left), None
    assert decay.momentum is not None
    assert decay.momentum_start is not None
    assert decay.forcing_start is not None
    remembered = decay.momentum[..., -1, :, None] * chunk.forcings
    both = jnp.concatenate([left, remembered], axis=-1)  # one product writes W and S
    written, kept = jnp.split(outer_products(keys, both), 2, axis=-1)
    change = change + decay.forcing_start[..., -1, None, None] * chunk.momentum + written
    return change, decay.momentum_start[..., -1, None, None] * chunk.momentum + kept


def read_chunk(
    chunk: Chunk,
    queries: Float[Array, "... C in"],
    initial_answers: Float[Array, "... C out"] | None = None,
) -> Float[Array, "... C out"]:
    """Every query t answered by W_t, the state updated up to and including token t.

    ``initial_answers`` are W₀'s; None for W₀ = 0.
    """
    decay = chunk.decay
    scores = inner_products(queries, chunk.keys)
    out = _weighted_product(decay.state_start[..., None], queries, chunk.change)
    if chunk.momentum is not None:
        assert decay.forcing_start is not None
        out = out + _weighted_product(decay.forcing_start[..., None], queries, chunk.momentum)
    out = out + (decay.forcing * scores) @ chunk.forcings
    if chunk.taken is not None:
        out = out - (decay.state * scores) @ chunk.taken
    return out if initial_answers is None else out + initial_answers


def read_chunk_transposed(chunk: Chunk, queries: Float[Array, "... C out"]) -> Float[Array, "... C in"]:
    """Every query t answered by W_tᵀ, the transpose of the state updated up to and including token t (W₀ = 0)."""
    assert chunk.momentum is None
    assert chunk.taken is None
    scores = inner_products(queries, chunk.forcings)
    start = chunk.decay.state_start[..., None] * inner_products(queries, chunk.change)
    return start + (chunk.decay.state * scores) @ chunk.keys


def _weighted_product(weights, x, y):
    """``w ∘ x y``, w of the tokens: on the side of the product that has fewer numbers."""
    return (weights * x) @ y if x.shape[-1] <= y.shape[-1] else weights * (x @ y)


def _weighted_outer(weights, x, y):
    """``xᵀ (w ∘ y)``, likewise."""
    x, y = (weights * x, y) if x.shape[-1] <= y.shape[-1] else (x, weights * y)
    return outer_products(x, y)


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
    anchor: Float[Array, "... out in"] | None = None,
) -> tuple[Float[Array, "... out in"], Float[Array, "... out in"]]:
    """State of a memory after a chunk of C tokens, in closed form: matrix products and one triangular inverse.

    Leading axes broadcast. Equal to ``sequential_update`` up to rounding.

    Args:
      W: weights at the chunk's start.
      S: momentum at the chunk's start.
      x: keys.
      g: gradients of the loss at the memory's output.
      eta: learning rate of each token.
      alpha: retention of each token, in [0, 1].
      mu: momentum of each token, in [0, 1].
      beta: delta strength of each token; β‖x‖² ≤ 1 + α keeps the update non-expansive.
      anchor: the weights that retention and the delta term pull toward; None for zero, the paper's form.

    Returns:
      ``(W, S)`` after the last token, with the leading axes that all arguments broadcast to.

    Raises:
      ValueError: if the shapes do not fit.
    """
    check_shapes(W, S, x, g, {"eta": eta, "alpha": alpha, "mu": mu, "beta": beta}, anchor)
    change = jnp.swapaxes(W if anchor is None else W - anchor, -1, -2)
    chunk = solve_chunk(change, jnp.swapaxes(S, -1, -2), x, -eta[..., None] * g, beta, chunk_decay(alpha, mu))
    change, momentum = end_of_chunk(chunk)
    assert momentum is not None
    change, momentum = jnp.swapaxes(change, -1, -2), jnp.swapaxes(momentum, -1, -2)
    return (change if anchor is None else anchor + change), momentum
