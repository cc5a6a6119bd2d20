"""Self-modifying Titans (§8.1-8.2): memories that make their own keys, values, learning rates, retention and targets.

Every head has a stack of memories, residual two-layer MLPs M_□ (Eq. 89, 91), □ = key, eta, alpha, value, memory. Per
token (Eq. 83-88), with u_k, u_v, u_q unit-length slow projections of the input,

    k = M_key(u_k),  v = M_value(u_v),  η = softplus(r_η·M_eta(u_k)),  α = sigmoid(r_α·M_alpha(u_k)),
    y = M_memory(q),  q = u_q,

and every memory descends ``‖M_□(k) - v‖²`` with retention. Everything is generated from the state at the last chunk
boundary (Eq. 90, 93); k and v have unit length.

Departures from the paper's form, each for a measured reason (BUILD_NOTES.md): keys and values come from slow
projections of their own; retention pulls toward the meta-learned initial weights; the learning rule is the folded one
(``memory/learning.py``); all memories learn v, where the paper's make targets of their own, ``v̂_□ = M_□(v)``; there is
neither momentum nor Delta Gradient Descent (the folded rule has the delta term of the loss itself); hidden layers are
gated, ``M_□(x) = x + W1 (silu(A x) * (B x))``, since features of second order tell keys apart; and every memory has a
gate on what it learns, nearly shut at the start but for the one that answers: with η for all alike, keys turn into
values over a long text, since M_key, too, learns v from k. ``PAPER_FORM`` are the options of the paper's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Architecture, Chunk, apply_layer, read_memory
from nl_jax.memory.learning import Layers
from nl_jax.modules.layers import unit_length
from nl_jax.modules.memory_mixer import RETENTION_BIAS, Generated, Inputs, MemoryMixer, head_size

# the memories that read u_k, then those that read u_v and u_q: neighbours in the stack share a product
READ_KEY = ("key", "eta", "alpha")
MEMORIES = (*READ_KEY, "value", "query", "memory")
ADAPTIVE = ("key", "value", "eta", "alpha")
PAPER_FORM: dict[str, Any] = {
    "rule": "printed",
    "delta": True,
    "momentum": True,
    "self_targets": True,
    "gated": False,
    "retention": "zero",
    "read": "boundary",
}


class SelfModifyingTitans(MemoryMixer):
    """Self-modifying Titans as a sequence mixer, ``y, state = mixer(x, state)``.

    Args:
      width: of input and output.
      num_heads: must divide width.
      chunk_size: tokens between two boundaries of the memory that answers.
      projection_chunk_size: the same for the others; None for ``chunk_size``. One must divide the other.
      memory_hidden: hidden units of each memory; None for the head size.
      gated: memories ``x + W1 (silu(A x) * (B x))``; without it ``x + W1 silu(W2 x)``, the paper's.
      adaptive: which of key, value, query, eta, alpha have a memory (Table 6); the others are slow weights.
      momentum: with momentum, μ a gate of the input.
      weight_decay: with retention; without it α = 1, and no memory makes it.
      frozen: η = 0, memories that never learn in context: the control. It has the same parameters.
      eta_bias, alpha_bias: initial biases of η and α: softplus(0) ≈ 0.69, sigmoid(8) ≈ 0.9997.
      memory_gates: a learned gate on the forcing of each memory; None: with every rule but the printed one.
      self_targets: every memory makes its own target, ``v̂ = M(v)``; without it all learn v.
      **options: of ``MemoryMixer``: objective, rule, delta (here False by default), read, retention, output_scale, ...;
        an eta or alpha given here takes the place of its memory.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, chunk sizes of which neither
        divides the other, or unknown names.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        chunk_size: int = 64,
        projection_chunk_size: int | None = None,
        memory_hidden: int | None = None,
        gated: bool = True,
        adaptive: tuple[str, ...] = ADAPTIVE,
        momentum: bool = False,
        weight_decay: bool = True,
        frozen: bool = False,
        eta_bias: float = 0.0,
        alpha_bias: float = RETENTION_BIAS,
        memory_gates: bool | None = None,
        self_targets: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        head_dim = head_size(width, num_heads)
        projection_chunk_size = chunk_size if projection_chunk_size is None else projection_chunk_size
        small, large = sorted((chunk_size, projection_chunk_size))
        if small < 1 or large % small:
            raise ValueError(
                f"chunk_size={chunk_size} and projection_chunk_size={projection_chunk_size} must be at least 1, "
                "and one must divide the other"
            )
        if not set(adaptive) <= set(MEMORIES[:-1]) or len(set(adaptive)) < len(adaptive):
            raise ValueError(f"adaptive={adaptive} must be some of {', '.join(MEMORIES[:-1])}, none twice")
        if not weight_decay:
            options = {"alpha": 1.0, **options}
        adaptive = tuple(name for name in adaptive if name not in options)
        self.stack = tuple(name for name in MEMORIES if name in (*adaptive, "memory"))
        count = len(self.stack)
        architecture = Architecture(
            head_dim, head_dim, hidden=memory_hidden or head_dim, depth=2, gated=gated, residual=True, stack=count
        )
        super().__init__(
            width,
            num_heads,
            architecture=architecture,
            chunk_size=chunk_size,
            memory_chunk_sizes=(projection_chunk_size,) * (count - 1) + (chunk_size,),
            rngs=rngs,
            **{
                "eta": None if "eta" in adaptive else ("softplus", eta_bias),
                "alpha": None if "alpha" in adaptive else ("sigmoid", alpha_bias),
                "mu": ("sigmoid", 1.0) if momentum else None,  # μ ≈ 0.73
                "delta": False,
                **options,
            },
        )
        self.frozen, self.self_targets = frozen, self_targets
        if memory_gates is None:
            memory_gates = self.rule.form != "printed"
        shut = jnp.full((num_heads, count), -2.0)  # sigmoid: 0.12; and 0.98 for the memory that answers
        self.memory_gates = nnx.Param(shut.at[:, -1].set(4.0)) if memory_gates else None
        if self.eta is None:
            self.eta_read = nnx.Param(jax.random.normal(rngs.params(), (num_heads, head_dim)))
            self.eta_bias = nnx.Param(jnp.full((num_heads,), eta_bias))
        if self.alpha is None:
            self.alpha_read = nnx.Param(jax.random.normal(rngs.params(), (num_heads, head_dim)))
            self.alpha_bias = nnx.Param(jnp.full((num_heads,), alpha_bias))

    def _answers(self, weights: Layers, u: Array, names: tuple[str, ...]) -> dict[str, Array]:
        """Answers of the memories of ``names`` that are in the stack, neighbours there, to u."""
        names = tuple(name for name in names if name in self.stack)
        if not names:
            return {}
        first = self.stack.index(names[0])
        architecture, part = self._part(first, first + len(names))
        answers = architecture(apply_layer(tuple(part(i, w) for i, w in enumerate(weights))), u)
        return {name: answers[:, :, i] for i, name in enumerate(names)}

    def _part(self, first: int, last: int):
        """The architecture of memories first..last of the stack, and what cuts a layer's weights to them."""
        whole = self.architecture
        part = dataclasses.replace(whole, stack=last - first)
        outputs = whole.first_outputs

        def cut(layer, w):
            if layer == 0:
                return w[..., first * outputs : last * outputs]
            return w[..., first:last, :, :]

        return part, cut

    def generate(self, inputs: Inputs, weights: Layers) -> Generated:
        """Keys, values, targets and coefficients of a chunk, from the weights at the boundary."""
        answers = self._answers(weights, inputs.key, READ_KEY)
        answers |= self._answers(weights, inputs.value, ("value",))
        key, value = (
            unit_length(answers[name]) if name in answers else slow
            for name, slow in (("key", inputs.key), ("value", inputs.value))
        )
        eta, alpha = inputs.eta, inputs.alpha
        if eta is None:
            eta = jax.nn.softplus(_dot(answers["eta"], self.eta_read[...]) + self.eta_bias[...][:, None])
        if alpha is None:
            alpha = jax.nn.sigmoid(_dot(answers["alpha"], self.alpha_read[...]) + self.alpha_bias[...][:, None])
        if self.self_targets:
            target = unit_length(self.architecture(apply_layer(weights), value))
        else:
            target = jnp.repeat(value[:, :, None], len(self.stack), axis=2)
        gates = None if self.memory_gates is None else jax.nn.sigmoid(self.memory_gates[...])
        return Generated(key, target, 0.0 * eta if self.frozen else eta, alpha, gates)

    def _learn(
        self,
        inputs: Inputs,
        start: Array,
        first: Array,
        anchor: Layers | None,
        change: Layers,
        momentum: Layers,
        boundary: Layers,
        at_boundary: bool,
    ) -> tuple[Float[Array, "batch heads C head_dim"], Layers, Layers]:
        """One piece, as every mixer's; what never learns, and has nothing to forget, need not go through the engine."""
        if self.frozen and anchor is not None:
            return self.query_memory(None, anchor, anchor, inputs.query), change, momentum
        return super()._learn(inputs, start, first, anchor, change, momentum, boundary, at_boundary)

    def query_memory(
        self, chunks: tuple[Chunk, ...] | None, weights: Layers, anchor: Layers | None, queries: Array
    ) -> Float[Array, "batch heads C head_dim"]:
        """Answers of the last memory of the stack to the queries."""
        if "query" in self.stack:
            queries = unit_length(self._answers(weights, queries, ("query",))["query"])
        if chunks is None:
            return self._answers(weights, queries, ("memory",))["memory"]
        count = len(self.stack)
        architecture, cut = self._part(count - 1, count)
        first = (count - 1) * architecture.first_outputs
        own = (chunks[0].outputs(slice(first, None)), jax.tree.map(lambda u: u[:, :, -1:], chunks[1]))
        anchor = None if anchor is None else tuple(cut(i, w) for i, w in enumerate(anchor))
        return read_memory(architecture, own, anchor, queries)[:, :, 0]


def _dot(x: Float[Array, "batch heads C head_dim"], w: Float[Array, "heads head_dim"]) -> Float[Array, "batch heads C"]:
    return jnp.sum(x * w[:, None], axis=-1)
