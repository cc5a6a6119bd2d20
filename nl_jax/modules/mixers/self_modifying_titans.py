"""Self-modifying Titans (§8.1-8.2): memories that make their own keys, values, learning rates, retention and targets.

Every head has memories, residual two-layer MLPs M_□ (Eq. 89, 91), in two groups: □ = key, eta, alpha, value, which make
the projections, and the memory that answers, which may have other sizes. Per token (Eq. 83-88), with u_k, u_v, u_q
unit-length slow projections of the input,

    k = M_key(u_k),  v = M_value(u_v),  η = softplus(r_η·M_eta(u_k) + b_η),  α = sigmoid(r_α·M_alpha(u_k) + b_α),
    y = M_memory(q),  q = u_q,

and every memory descends ``‖M_□(k) - v‖²`` with retention. Everything is generated from the state at the last chunk
boundary (Eq. 90, 93). Answers that make k, v, η and α are brought to unit length, so that η is at most
softplus(‖r_η‖ + b_η): a memory that makes its own learning rate would else grow without bound.

Departures from the paper's form, each for a measured reason (BUILD_NOTES.md, D21): keys and values come from slow
projections of their own; retention pulls toward the meta-learned initial weights; the learning rule is the implicit one
(``memory/rules.py``); all memories learn v, where the paper's make targets of their own, ``v̂_□ = M_□(v)``; there is
neither momentum nor Delta Gradient Descent (the implicit rule has the delta term of the loss itself); hidden layers are
gated, ``M_□(x) = x + W1 (silu(A x) * (B x))``, since features of second order tell keys apart; the memory that answers
has ``B x + c`` there, c a slow weight of each head: with features of first order beside the others training finds out
sooner what to recall, and then can do without; and every memory has a gate on what it learns, nearly shut at the start
but for the one that answers: with η for all alike, keys turn into values over a long text, since M_key, too, learns v
from k. ``PAPER_FORM`` are the options of the paper's.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Architecture, apply_layer
from nl_jax.modules.layers import unit_length
from nl_jax.modules.mixers.memory_mixer import (
    MOMENTUM_BIAS,
    RETENTION_BIAS,
    Fixed,
    Generated,
    Groups,
    Inputs,
    MemoryMixer,
    head_size,
)

# the memories that read u_k, then those that read u_v and u_q: neighbours in the stack share a product
READ_KEY = ("key", "eta", "alpha")
PROJECTIONS = (*READ_KEY, "value", "query")
ADAPTIVE = ("key", "value", "eta", "alpha")
UP_BIAS_SCALE = 8.0  # how far a step moves c, beside other weights
PAPER_FORM: dict[str, Any] = {
    "rule": "paper",
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
      memory_hidden: hidden units of the memory that answers; None for four times the head size.
      projection_hidden: of each of the others; None for a quarter of the head size.
      gated: memories ``x + W1 (silu(A x) * (B x))``; without it ``x + W1 silu(W2 x)``, the paper's.
      up_bias: where c starts, the bias of B x in the gated memory that answers; 0.42: as large as an element of B x.
      adaptive: which of key, value, query, eta, alpha have a memory (Table 6); the others are slow weights.
      momentum: with momentum, μ a gate of the input.
      weight_decay: with retention; without it α = 1, and no memory makes it.
      frozen: η = 0, memories that never learn in context: the control. It has the same parameters.
      eta_bias, alpha_bias: initial biases of η and α: softplus(0) ≈ 0.69, sigmoid(8) ≈ 0.9997.
      memory_gates: a learned gate on the forcing of each memory; None: with every rule but the paper's.
      self_targets: every memory makes its own target, ``v̂ = M(v)``; without it all learn v.
      **options: of ``MemoryMixer``: objective, rule, delta (here False by default), read, retention, output_scale, ...;
        an eta or alpha given here takes the place of its memory.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, chunk sizes of which neither
        divides the other, biases that are not finite, or unknown names.
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
        if not set(adaptive) <= set(PROJECTIONS) or len(set(adaptive)) < len(adaptive):
            raise ValueError(f"adaptive={adaptive} must be some of {', '.join(PROJECTIONS)}, none twice")
        for name, bias in (("up_bias", up_bias), ("eta_bias", eta_bias), ("alpha_bias", alpha_bias)):
            if not math.isfinite(bias):
                raise ValueError(f"{name}={bias} must be a finite number")
        if not weight_decay:
            options = {"alpha": 1.0, **options}
        adaptive = tuple(name for name in adaptive if name not in options)
        self.projections = tuple(name for name in PROJECTIONS if name in adaptive)
        count = len(self.projections)
        shape: dict[str, Any] = {"depth": 2, "gated": gated, "residual": True}
        memory = Architecture(head_dim, head_dim, hidden=memory_hidden or 4 * head_dim, **shape)
        hidden = projection_hidden or max(1, head_dim // 4)
        others = Architecture(head_dim, head_dim, hidden=hidden, stack=max(1, count), **shape)
        super().__init__(
            width,
            num_heads,
            architecture=(others, memory) if count else memory,
            chunk_size=(projection_chunk_size, chunk_size)
            if count and projection_chunk_size is not None
            else chunk_size,
            rngs=rngs,
            **{
                "eta": None if "eta" in adaptive else ("softplus", eta_bias),
                "alpha": None if "alpha" in adaptive else ("sigmoid", alpha_bias),
                "mu": ("sigmoid", MOMENTUM_BIAS) if momentum else None,
                "delta": False,
                **options,
            },
        )
        self.frozen, self.self_targets = frozen, self_targets
        if memory_gates is None:
            memory_gates = self.rule.form != "paper"
        # after the sigmoid 0.12, and 0.98 for the memory that answers
        shut = jnp.full((num_heads, count + 1), -2.0, jnp.float32)
        self.memory_gates = nnx.Param(shut.at[:, -1].set(4.0)) if memory_gates else None
        self.up_bias = nnx.Param(jnp.full((num_heads,), up_bias / UP_BIAS_SCALE, jnp.float32)) if gated else None
        if self.eta is None:
            self.eta_read = nnx.Param(jax.random.normal(rngs.params(), (num_heads, head_dim), jnp.float32))
            self.eta_bias = nnx.Param(jnp.full((num_heads,), eta_bias, jnp.float32))
        if self.alpha is None:
            self.alpha_read = nnx.Param(jax.random.normal(rngs.params(), (num_heads, head_dim), jnp.float32))
            self.alpha_bias = nnx.Param(jnp.full((num_heads,), alpha_bias, jnp.float32))

    def _answers(self, weights: Groups, u: Array, names: tuple[str, ...]) -> dict[str, Array]:
        """Answers to u of those memories of ``names`` that there are; they are neighbours in the first group."""
        names = tuple(name for name in names if name in self.projections)
        if not names:
            return {}
        whole, first = self.architectures[0], self.projections.index(names[0])
        part, size = dataclasses.replace(whole, stack=len(names)), whole.first_outputs
        layers = (
            weights[0][0][..., first * size : (first + len(names)) * size],
            weights[0][1][..., first : first + len(names), :, :],
        )
        answers = part(apply_layer(layers), u)
        return {
            name: answer[:, :, 0] for name, answer in zip(names, jnp.split(answers, len(names), axis=2), strict=True)
        }

    def coefficient_parameters(self) -> dict[str, Array]:
        """How η and α are read from answers, and the gates on what the memories learn."""
        names = ("eta_read", "eta_bias", "alpha_read", "alpha_bias", "memory_gates")
        return {name: getattr(self, name)[...] for name in names if getattr(self, name, None) is not None}

    def answering_bias(self) -> Float[Array, " heads"] | None:
        """c of ``silu(A x) * (B x + c)``, of each head."""
        return None if self.up_bias is None else UP_BIAS_SCALE * self.up_bias[...]

    def generate(self, inputs: Inputs, weights: Groups, fixed: Fixed) -> Generated:
        """Keys, values, targets and coefficients of a chunk, from the weights at the boundary."""
        parameters: dict[str, Array] = fixed.parameters
        answers = self._answers(weights, inputs.key, READ_KEY)
        answers |= self._answers(weights, inputs.value, ("value",))
        key, value = (
            unit_length(answers[name]) if name in answers else slow
            for name, slow in (("key", inputs.key), ("value", inputs.value))
        )
        eta, alpha = inputs.eta, inputs.alpha
        if eta is None:
            eta = jax.nn.softplus(_read_out(answers["eta"], parameters["eta_read"], parameters["eta_bias"]))
        if alpha is None:
            read = _read_out(answers["alpha"], parameters["alpha_read"], parameters["alpha_bias"])
            alpha = jax.nn.sigmoid(read)
        if self.self_targets:
            biases = (None, fixed.up_bias)[-len(self.architectures) :]
            targets = tuple(
                unit_length(architecture(apply_layer(layers), value, bias))
                for architecture, layers, bias in zip(self.architectures, weights, biases, strict=True)
            )
        else:
            targets = tuple(jnp.repeat(value[:, :, None], a.stack, axis=2) for a in self.architectures)
        gates: tuple[Array | None, ...] = (None,) * len(self.architectures)
        if self.memory_gates is not None:
            of_all = jax.nn.sigmoid(parameters["memory_gates"])
            gates = (of_all[..., :-1], of_all[..., -1:])[-len(self.architectures) :]
        return Generated(key, targets, 0.0 * eta if self.frozen else eta, alpha, gates)

    def make_queries(self, queries: Float[Array, "batch heads C head_dim"], weights: Groups) -> Array:
        """Queries, adapted where there is a memory for them."""
        if "query" not in self.projections:
            return queries
        return unit_length(self._answers(weights, queries, ("query",))["query"])

    def _learn(
        self,
        inputs: Inputs,
        start: Array,
        first: Array,
        fixed: Fixed,
        memories: tuple[Groups, Groups, Groups],
        at_boundary: bool,
    ) -> tuple[Float[Array, "batch heads C head_dim"], Groups, Groups]:
        """One piece, as every mixer's; what never learns, and has nothing to forget, need not go through the engine."""
        anchor = fixed.anchor
        if self.frozen and anchor is not None:
            y = self.query_memory(None, anchor, fixed, inputs.query)
            return y[:, :, self.window - 1 :], memories[0], memories[1]
        return super()._learn(inputs, start, first, fixed, memories, at_boundary)


def _read_out(
    answer: Float[Array, "batch heads C head_dim"],
    direction: Float[Array, "batch heads head_dim"],
    bias: Float[Array, "batch heads"],
) -> Float[Array, "batch heads C"]:
    """At most the direction's length beside the bias, whatever the answer."""
    return jnp.sum(unit_length(answer) * direction[..., None, :], axis=-1) + bias[..., None]
