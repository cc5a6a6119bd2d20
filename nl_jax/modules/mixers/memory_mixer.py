"""A sequence mixer whose state is an associative memory, with keys, values and coefficients from slow weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Architecture, Tokens, chunk_decay, learn_linear_chunks, memory_of
from nl_jax.modules.mixers.all_chunks import LinearMemory
from nl_jax.modules.mixers.atlas_parts import check_count, initial_powers, polynomial_features
from nl_jax.modules.mixers.chunk_kernel import ChunkMemory
from nl_jax.modules.mixers.coefficients import RETENTION_BIAS
from nl_jax.modules.mixers.parameters import MixerParameters, Projected, head_size, over_batch
from nl_jax.modules.mixers.stepping import Chunking, Memories, MemoryState, read_text, start_of_text
from nl_jax.modules.mixers.subchunk import (
    ChunkInputs,
    ReadOnly,
    answer_at_boundary,
    answer_by_token,
    learn_subchunk,
    weights_at_boundary,
)
from nl_jax.ops import ChunkMaps, matmul

READS = ("token", "boundary")
RETENTIONS = ("initial", "zero")


class MemoryMixer(MixerParameters):
    """A memory that learns in context, as a sequence mixer: ``y, state = mixer(x, state)``.

    Args:
      width: of input and output.
      num_heads: must divide width; every head has a memory of its own.
      architecture: of one head's memory, whose keys and answers have the head's size.
      read: "token" (each token reads the memory updated up to itself) or "boundary" (Eq. 90: up to the last boundary).
      initial: "learned" or "zero" weights at the start of a text.
      retention: what retention and the delta term pull toward: "initial" (the initial weights) or "zero" (the paper's
        form).
      eta, alpha, mu: learning rate, retention, momentum: a number for a constant, a tuple of numbers for a constant per
        head, (activation, bias) for a gate of the input ("softplus" or "sigmoid"); mu None for no momentum. Without a
        delta term alpha's may be "hard_tanh": a retention from -1 to 1, by which a memory keeps a state exactly.
      degree: powers of each channel of keys and queries that the memory sees, 1 to this one, each with a learned
        coefficient of every head (``polynomial_features``); its architecture has ``degree`` times the head's size in.
      newton_schulz_steps: iterations that make the sum of a chunk's updates orthogonal when the chunk ends, at its
        Frobenius norm; 0 for none. Tokens of the chunk itself read sums as they are.
      window: number of tokens whose gradients make one update, the last one and those before it (Omega rule, Eq. 68);
        only 1 with a delta term, which rule "implicit" makes also of the gradient of "l2" (``Memory.folds``).
      chunk_size: tokens between two boundaries, at which gradients are taken.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.
      **learning: objective, rule, delta, delta_after_retention, allow_neg_eigval and shrinkage, as for ``memory_of``.

    Raises:
      ValueError: for sizes that do not fit, a chunk size below 1, unknown names, or options that exclude each other.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.memory import Architecture
      >>> from nl_jax.modules import MemoryMixer
      >>> mlp = Architecture(4, 4, hidden=16, depth=2)
      >>> mixer = lambda x: MemoryMixer(8, 2, architecture=mlp, chunk_size=4, rngs=nnx.Rngs(0))(x)
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape, [w.shape for w in state.delta_w[0]]
      ((1, 8, 8), [(1, 2, 4, 16), (1, 2, 1, 16, 4)])
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        architecture: Architecture,
        read: str = "token",
        initial: str = "learned",
        retention: str = "initial",
        eta: Any = ("softplus", 0.0),
        alpha: Any = ("sigmoid", RETENTION_BIAS),
        mu: Any = None,
        degree: int = 1,
        newton_schulz_steps: int = 0,
        window: int = 1,
        chunk_size: int = 64,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
        **learning: Any,
    ):
        check_names(read=(read, READS), initial=(initial, ("learned", "zero")), retention=(retention, RETENTIONS))
        check_count("degree", degree, 1)
        check_count("newton_schulz_steps", newton_schulz_steps, 0)
        if architecture.size_in != degree * head_size(width, num_heads):
            raise ValueError(f"size_in={architecture.size_in}: expected degree={degree} times the head's size")
        memory = memory_of(architecture, chunk_size * window, **learning)
        keeps_boundary = memory.depends_on_boundary or read == "boundary" or newton_schulz_steps > 0
        self.chunking = Chunking((chunk_size,), window, keeps_boundary, newton_schulz_steps)
        if newton_schulz_steps and memory.rule.shrinkage:
            raise ValueError(f"newton_schulz_steps={newton_schulz_steps}: expected 0 with shrinkage")
        if window > 1 and memory.has_delta_term(memory.last):  # it would act again for every token of the window
            raise ValueError(f"window={window}: expected at least 1, and 1 with a delta term (of delta or the loss)")
        if initial == "zero" and architecture.depth > 1:
            raise ValueError(f"initial='zero' with depth={architecture.depth}: an MLP of zeros has no gradient")
        self.read = read
        super().__init__(
            width,
            num_heads,
            (memory,),
            learned=initial == "learned",
            pulls_to_initial=retention == "initial",
            eta=eta,
            alpha=alpha,
            mu=mu,
            output_scale=output_scale,
            rngs=rngs,
        )
        self.powers = nnx.Param(initial_powers(num_heads, degree)) if degree > 1 else None

    def init_state(self, batch_size: int) -> MemoryState:
        """The state before the first token: every memory at its initial weights. No two arrays share a buffer."""
        return start_of_text(self, self.chunking, batch_size)

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x; ``state=None`` starts a text.

        Any number of tokens in any number of calls gives the same outputs and state as one call, up to rounding.
        ``at_boundary`` is the caller's promise that the state is at a boundary of all chunk sizes, which saves padding.
        The state keeps its types; no tokens give no outputs, and the state as it was.
        """
        (memory,) = self.groups
        read_only = over_batch(ReadOnly(self.w0()), len(x))
        powers = None if self.powers is None else over_batch(self.powers[...], len(x))

        def learn(
            read_only: ReadOnly, memories: Memories, tokens: Projected, advances: Array, starts_at_boundary: bool
        ) -> tuple[Array, Memories]:
            assert tokens.eta is not None
            assert tokens.alpha is not None
            weights = weights_at_boundary(read_only.w0, memories)
            value = tokens.value if memory.architecture.depth == 1 else tokens.value[:, :, None]
            key, query = (u if powers is None else polynomial_features(u, powers) for u in (tokens.key, tokens.query))
            inputs = ChunkInputs(key, (value,), tokens.eta, tokens.alpha, (None,))
            chunks, memories = learn_subchunk(
                self.groups,
                read_only,
                memories,
                weights,
                tokens,
                advances,
                inputs,
                window=self.chunking.window,
                starts_at_boundary=starts_at_boundary,
            )
            if self.read == "boundary":
                return answer_at_boundary(memory, read_only, weights, query), memories
            return answer_by_token(memory, read_only, chunks, query), memories

        kernel: LinearMemory | ChunkMemory | None = None
        if self.has_kernel:
            kernel = ChunkMemory(self.kernel, learn, read_only)
            if self.groups[0].is_linear and not self.chunking.keeps_boundary and self.mu is None:
                kernel = LinearMemory(self.kernel, self._maps(len(x)))
        learn_chunk = functools.partial(learn, read_only)
        return read_text(self, self.chunking, learn_chunk, x, state, at_boundary=at_boundary, kernel=kernel)

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel can carry the memory from chunk to chunk."""
        return self.chunking.window == 1 and not self.chunking.orthogonal_steps and self.powers is None

    def _maps(self, batch_size: int) -> Callable[[Projected], tuple[ChunkMaps, Array | None]]:
        """What all chunks of a text do to such a memory, and what W₀ answers."""
        w0 = self.w0()
        if w0 is not None:
            w0 = jax.tree.map(lambda w: jnp.expand_dims(w, 2), over_batch(w0, batch_size))  # the axis of chunks

        def maps(tokens: Projected) -> tuple[ChunkMaps, Array | None]:
            assert tokens.eta is not None
            assert tokens.alpha is not None
            alpha = jnp.where(tokens.valid > 0, tokens.alpha, 1.0)
            decay = chunk_decay(alpha, None, tokens.valid)
            taught = Tokens(tokens.key, tokens.value, tokens.eta * tokens.valid, alpha, None, decay)
            own = None if w0 is None else w0[0][0]
            answers = None if own is None else matmul(tokens.query, own)
            return learn_linear_chunks(self.groups[0], own, taught, tokens.query), answers

        return maps


def check_names(**options: tuple[str, tuple[str, ...]]) -> None:
    """Raises ``ValueError`` for an option, given as (value, allowed values), that has another value."""
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")
