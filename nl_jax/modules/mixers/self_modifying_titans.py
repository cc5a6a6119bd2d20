"""Self-modifying Titans (§8.1-8.2): memories that make their own keys, values, learning rates, retention and targets.

Every head has memories, residual two-layer MLPs M_□ (Eq. 89, 91), in two groups: □ = key, eta, alpha, value, which make
the projections, and the memory that answers, which may have other sizes. Per token (Eq. 83-88), with u_k, u_v, u_q
unit-length slow projections of the input,

    k = M_key(u_k),  v = M_value(u_v),  η = softplus(r_η·M_eta(u_k) + b_η),  α = sigmoid(r_α·M_alpha(u_k) + b_α),
    y = M_memory(q),  q = u_q,

and every memory descends ``‖M_□(k) - v‖²`` with retention. Everything is generated from the state at the last chunk
boundary (Eq. 90, 93). Answers that make k, v, η and α are brought to unit length, so that η is at most
softplus(‖r_η‖ + b_η): otherwise a memory that makes its own learning rate would grow without bound.

The departures from the paper's form, each for a measured reason (BUILD_NOTES.md, D21), are:

- Keys and values come from slow projections of their own.
- Retention pulls toward the meta-learned initial weights.
- What was learned shrinks where it answers worse than a smaller part of it would (``memory/shrinkage.py``): so a
  memory that hardly forgets does not fill up with what has no use.
- The learning rule is the implicit one (``memory/rules.py``). There is neither momentum nor Delta Gradient Descent,
  since the implicit rule has the delta term of the loss itself.
- All memories learn v, where each of the paper's makes a target of its own, ``v̂_□ = M_□(v)``.
- Hidden layers are gated, ``M_□(x) = x + W1 (silu(A x) * (B x))``, since features of second order tell keys apart.
- The memory that answers has ``B x + c`` there, where c is a slow weight of each head. Having features of first order
  as well, training finds out sooner what to recall, and can then do without them.
- Every memory has a gate on what it learns, nearly shut at the start except for the memory that answers. With the same
  η for all, keys would turn into values over a long text, since M_key learns v from k as well.

``PAPER_FORM`` holds the options of the paper's form.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Architecture, Memory, memory_of
from nl_jax.modules.mixers.chunk_kernel import ChunkMemory
from nl_jax.modules.mixers.coefficients import MOMENTUM_BIAS, RETENTION_BIAS, is_signed
from nl_jax.modules.mixers.generation import PROJECTIONS, ProjectionMemories, generate, generate_queries
from nl_jax.modules.mixers.memory_mixer import READS, RETENTIONS, check_names
from nl_jax.modules.mixers.parameters import MixerParameters, Projected, head_size, over_batch
from nl_jax.modules.mixers.stepping import Chunking, Memories, MemoryState, read_text, start_of_text
from nl_jax.modules.mixers.subchunk import (
    ReadOnly,
    answer_at_boundary,
    answer_by_token,
    learn_subchunk,
    weights_at_boundary,
)

ADAPTIVE = ("key", "value", "eta", "alpha")
UP_BIAS_SCALE = 8.0  # how far a step of training moves c, compared with other weights
PAPER_FORM: dict[str, Any] = {
    "rule": "paper",
    "delta": True,
    "momentum": True,
    "self_targets": True,
    "gated": False,
    "retention": "zero",
    "shrinkage": False,
    "read": "boundary",
}
"""Options of `SelfModifyingTitans` that give the paper's form; the defaults differ (BUILD_NOTES.md, D21)."""


class SelfModifyingTitans(MixerParameters):
    """Self-modifying Titans as a sequence mixer, ``y, state = mixer(x, state)``.

    Args:
      width: of input and output.
      num_heads: must divide width.
      chunk_size: tokens between two boundaries of the memory that answers.
      projection_chunk_size: the same for the others; None for ``chunk_size``. One must divide the other.
      memory_hidden: hidden units of the memory that answers; None for four times the head size.
      projection_hidden: of each of the others; None for a quarter of the head size.
      gated: memories are ``x + W1 (silu(A x) * (B x))``; without it ``x + W1 silu(W2 x)``, the paper's.
      up_bias: where c starts, the bias of B x in the gated memory that answers; 0.42 is as large as an element of B x.
      adaptive: which of key, value, query, eta, alpha have a memory (Table 6); the others are slow weights.
      momentum: whether there is momentum, with μ a gate of the input.
      frozen: η = 0, so that the memories never learn in context: the control. It has the same parameters.
      eta, alpha: as for ``MemoryMixer``, in the place of the memory that makes it; None for that memory. ``alpha=1.0``
        switches retention off.
      eta_bias, alpha_bias: initial biases of η and α: softplus(0) ≈ 0.69, sigmoid(8) ≈ 0.9997.
      memory_gates: a learned gate on the forcing of each memory; None: with every rule but the paper's.
      self_targets: every memory makes its own target, ``v̂ = M(v)``; without it all learn v.
      read, retention, output_scale: as for ``MemoryMixer``.
      rngs: source of the initial weights.
      **learning: objective, rule, delta (False by default), delta_after_retention, shrinkage (by default wherever no
        eigenvalue is negative, by allow_neg_eigval or by alpha) and allow_neg_eigval, as for ``memory_of``. The latter
        makes negative those of the memory that answers: they keep a state there, while in the memories that make keys
        and rates gradients would explode.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, chunk sizes of which neither
        divides the other, biases that are not finite, or unknown names.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import SelfModifyingTitans
      >>> mixer = lambda x: SelfModifyingTitans(8, 2, chunk_size=4, rngs=nnx.Rngs(0))(x)
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape, len(state.delta_w)  # the memories that make projections, and the one that answers
      ((1, 8, 8), 2)
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        chunk_size: int = 64,
        projection_chunk_size: int | None = None,
        memory_hidden: int | None = None,
        projection_hidden: int | None = None,
        gated: bool = True,
        up_bias: float = 0.42,
        adaptive: tuple[str, ...] = ADAPTIVE,
        momentum: bool = False,
        frozen: bool = False,
        eta: Any = None,
        alpha: Any = None,
        eta_bias: float = 0.0,
        alpha_bias: float = RETENTION_BIAS,
        memory_gates: bool | None = None,
        self_targets: bool = False,
        read: str = "token",
        retention: str = "initial",
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
        **learning: Any,
    ):
        _check(read, retention, adaptive, up_bias=up_bias, eta_bias=eta_bias, alpha_bias=alpha_bias)
        given = {name for name, value in (("eta", eta), ("alpha", alpha)) if value is not None}
        names = tuple(name for name in PROJECTIONS if name in adaptive and name not in given)
        size, count = head_size(width, num_heads), len(names)
        shape: dict[str, Any] = {"depth": 2, "gated": gated, "residual": True}
        hidden = projection_hidden or max(1, size // 4)
        stack = Architecture(size, size, hidden=hidden, stack=max(1, count), **shape)
        self.projecting = ProjectionMemories(names, stack)
        # what keeps a state answers with no value, which shrinkage would take for answers that are too large
        keeps_state = bool(learning.get("allow_neg_eigval")) or is_signed(alpha)
        learning = {"delta": False, "shrinkage": not keeps_state, **learning}
        answering = Architecture(size, size, hidden=memory_hidden or 4 * size, **shape)
        groups: tuple[Memory, ...] = (memory_of(answering, chunk_size, **learning),)
        sizes: tuple[int, ...] = (chunk_size,)
        if count:
            sizes = (chunk_size if projection_chunk_size is None else projection_chunk_size, chunk_size)
            groups = (memory_of(stack, sizes[0], **{**learning, "allow_neg_eigval": False}), *groups)
        self.chunking = Chunking(sizes, window=1, keeps_boundary=True)
        self.read, self.frozen, self.self_targets = read, frozen, self_targets
        super().__init__(
            width,
            num_heads,
            groups,
            learned=True,
            pulls_to_initial=retention == "initial",
            eta=None if "eta" in names else ("softplus", eta_bias) if eta is None else eta,
            alpha=None if "alpha" in names else ("sigmoid", alpha_bias) if alpha is None else alpha,
            mu=("sigmoid", MOMENTUM_BIAS) if momentum else None,
            output_scale=output_scale,
            rngs=rngs,
        )
        if memory_gates is None:
            memory_gates = groups[-1].rule.form != "paper"
        # after the sigmoid 0.12, and 0.98 for the memory that answers
        shut = jnp.full((num_heads, count + 1), -2.0, jnp.float32)
        self.memory_gates = nnx.Param(shut.at[:, -1].set(4.0)) if memory_gates else None
        self.up_bias = nnx.Param(jnp.full((num_heads,), up_bias / UP_BIAS_SCALE, jnp.float32)) if gated else None
        for name, bias in (("eta", eta_bias), ("alpha", alpha_bias)):
            if name in names:
                direction = jax.random.normal(rngs.params(), (num_heads, size), jnp.float32)
                setattr(self, f"{name}_read", nnx.Param(direction))
                setattr(self, f"{name}_bias", nnx.Param(jnp.full((num_heads,), bias, jnp.float32)))

    def read_only(self, batch_size: int) -> ReadOnly:
        """What stays as it is while a text is read: W₀, how η and α are read from answers, gates, and the bias c."""
        names = ("eta_read", "eta_bias", "alpha_read", "alpha_bias", "memory_gates")
        parameters = {name: getattr(self, name)[...] for name in names if getattr(self, name, None) is not None}
        up_bias = None if self.up_bias is None else UP_BIAS_SCALE * self.up_bias[...]
        return over_batch(ReadOnly(self.w0(), parameters, up_bias), batch_size)

    def init_state(self, batch_size: int) -> MemoryState:
        """The state before the first token: every memory at its initial weights. No two arrays share a buffer."""
        return start_of_text(self, self.chunking, batch_size)

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x, as ``MemoryMixer`` does; ``state=None`` starts a text."""
        read_only, answering = self.read_only(len(x)), self.groups[-1]

        def learn(
            read_only: ReadOnly, memories: Memories, tokens: Projected, advances: Array, starts_at_boundary: bool
        ) -> tuple[Array, Memories]:
            if self.frozen and read_only.w0 is not None:  # it never learns and has nothing to forget
                queries = generate_queries(self.projecting, read_only.w0, tokens)
                return answer_at_boundary(answering, read_only, read_only.w0, queries), memories
            weights = weights_at_boundary(read_only.w0, memories)
            inputs = generate(self.projecting, self.groups, read_only, weights, tokens, self_targets=self.self_targets)
            if self.frozen:
                inputs = inputs._replace(eta=0.0 * inputs.eta)
            chunks, memories = learn_subchunk(
                self.groups,
                read_only,
                memories,
                weights,
                tokens,
                advances,
                inputs,
                window=1,
                starts_at_boundary=starts_at_boundary,
            )
            queries = generate_queries(self.projecting, weights, tokens)
            if self.read == "boundary":
                return answer_at_boundary(answering, read_only, weights, queries), memories
            return answer_by_token(answering, read_only, chunks, queries), memories

        kernel = ChunkMemory(self.kernel, learn, read_only) if self.has_kernel else None
        learn_chunk = functools.partial(learn, read_only)
        return read_text(self, self.chunking, learn_chunk, x, state, at_boundary=at_boundary, kernel=kernel)

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel can carry the memories from chunk to chunk."""
        return self.chunking.is_uniform and not self.frozen


def _check(read: str, retention: str, adaptive: tuple[str, ...], **biases: float) -> None:
    """Raises ``ValueError`` for unknown names, a name twice, or a bias that is not finite."""
    check_names(read=(read, READS), retention=(retention, RETENTIONS))
    if not set(adaptive) <= set(PROJECTIONS) or len(set(adaptive)) < len(adaptive):
        raise ValueError(f"adaptive={adaptive}: expected some of {', '.join(PROJECTIONS)}, none twice")
    for name, bias in biases.items():
        if not math.isfinite(bias):
            raise ValueError(f"{name}={bias}: expected a finite number")
