"""What memories generate of a token: keys, values, learning rates, retention, targets and queries (Eq. 83-88, 93)."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory import Architecture, Layers, Memory, apply_layer
from nl_jax.modules.layers import unit_length
from nl_jax.modules.mixers.parameters import Groups, Projected
from nl_jax.modules.mixers.subchunk import ChunkInputs, ReadOnly
from nl_jax.ops import narrow_like

# the memories that read u_k, then those that read u_v and u_q: neighbours in the stack share a product
READ_KEY = ("key", "eta", "alpha")
PROJECTIONS = (*READ_KEY, "value", "query")


@dataclass(frozen=True)
class ProjectionMemories:
    """The memories that make projections, as one stack.

    Attributes:
      names: which of ``PROJECTIONS`` have a memory, in that order.
      architecture: of the stack; its ``stack`` is the number of names, but at least 1.
    """

    names: tuple[str, ...]
    architecture: Architecture

    def answers(
        self, weights: Layers, u: Float[Array, "batch heads C head_dim"], names: tuple[str, ...]
    ) -> dict[str, Float[Array, "batch heads C head_dim"]]:
        """Answers to u of those memories that exist and are listed; they must be neighbours in the stack."""
        names = tuple(name for name in names if name in self.names)
        if not names:
            return {}
        first, size = self.names.index(names[0]), self.architecture.first_outputs
        part = dataclasses.replace(self.architecture, stack=len(names))
        layers = (
            weights[0][..., first * size : (first + len(names)) * size],
            weights[1][..., first : first + len(names), :, :],
        )
        answers = jnp.split(part(apply_layer(layers), u), len(names), axis=2)
        return {name: answer[:, :, 0] for name, answer in zip(names, answers, strict=True)}


def generate(
    projecting: ProjectionMemories,
    groups: tuple[Memory, ...],
    read_only: ReadOnly,
    weights: Groups,
    tokens: Projected,
    *,
    self_targets: bool,
) -> ChunkInputs:
    """Keys, values, targets and coefficients of a subchunk, from the weights at the last boundary.

    Args:
      projecting: the memories that make projections.
      groups: description of each group; that of the projecting memories is the first of two, where there are any.
      read_only: whose parameters are ``eta_read``, ``eta_bias``, ``alpha_read``, ``alpha_bias`` and ``memory_gates``,
        where there are any.
      weights: of each group, at its last chunk boundary.
      tokens: what slow weights make of the tokens.
      self_targets: every memory makes its own target; without it all learn the value.
    """
    parameters: dict[str, Array] = read_only.parameters
    answers = projecting.answers(weights[0], tokens.key, READ_KEY)
    answers |= projecting.answers(weights[0], tokens.value, ("value",))
    key, value = (
        narrow_like(unit_length(answers[name]), slow) if name in answers else slow
        for name, slow in (("key", tokens.key), ("value", tokens.value))
    )
    eta, alpha = tokens.eta, tokens.alpha
    if eta is None:
        eta = jax.nn.softplus(_read_out(answers["eta"], parameters["eta_read"], parameters["eta_bias"]))
    if alpha is None:
        alpha = jax.nn.sigmoid(_read_out(answers["alpha"], parameters["alpha_read"], parameters["alpha_bias"]))
    count = len(groups)
    if self_targets:
        biases = (None, read_only.up_bias)[-count:]
        targets = tuple(
            unit_length(memory.architecture(apply_layer(layers), value, bias))
            for memory, layers, bias in zip(groups, weights, biases, strict=True)
        )
    else:
        targets = tuple(jnp.repeat(value[:, :, None], memory.architecture.stack, axis=2) for memory in groups)
    gates: tuple[Array | None, ...] = (None,) * count
    if "memory_gates" in parameters:
        open_by = jax.nn.sigmoid(parameters["memory_gates"])
        gates = (open_by[..., :-1], open_by[..., -1:])[-count:]
    return ChunkInputs(key, targets, eta, alpha, gates)


def _read_out(
    answer: Float[Array, "batch heads C head_dim"],
    direction: Float[Array, "batch heads head_dim"],
    bias: Float[Array, "batch heads"],
) -> Float[Array, "batch heads C"]:
    """The bias, and beside it at most the direction's length, whatever the answer is."""
    return jnp.sum(unit_length(answer) * direction[..., None, :], axis=-1) + bias[..., None]


def generate_queries(
    projecting: ProjectionMemories, weights: Groups, tokens: Projected
) -> Float[Array, "batch heads C head_dim"]:
    """Queries, by a memory where there is one for them."""
    answers = projecting.answers(weights[0], tokens.query, ("query",))
    return narrow_like(unit_length(answers["query"]), tokens.query) if answers else tokens.query
