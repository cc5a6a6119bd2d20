"""A sequence mixer whose state is an associative memory: projections in, chunk by chunk through the engine, output.

``MemoryMixer`` makes keys, values and coefficients with slow weights; ``SelfModifyingTitans`` overrides ``generate``
and makes them with memories.
"""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.memory import (
    OBJECTIVES,
    RULES,
    Architecture,
    Chunk,
    Objective,
    Rule,
    apply_layer,
    chunk_decay,
    end_of_memory,
    learn_chunk,
    limit_cotangent,
    read_chunk_transposed,
    read_memory,
)
from nl_jax.memory.rules import Layers
from nl_jax.modules.layers import CausalConv, keep_products, linear, start_as_induction, unit_length

RETENTION_BIAS = 8.0  # sigmoid: 0.9997, so that a memory's start keeps some 3,000 tokens
MOMENTUM_BIAS = -1.0  # sigmoid: 0.27; more brings a forcing to bear when the delta term has long answered it
READS = ("token", "boundary")
RETENTIONS = ("initial", "zero")


Groups = tuple[Layers, ...]  # layers of each group of memories


class MemoryState(NamedTuple):
    """What the memories have learned since the text began.

    All but ``position`` are in float32 (float64 with parameters in float64), whatever the parameters' type is. Sizes do
    not depend on the text's length.
    """

    conv: Float[Array, "batch 3 channels"]
    change: Groups  # weights minus what retention pulls toward, after the last token
    momentum: Groups  # empty without momentum
    boundary: Groups  # the change at each group's last chunk boundary; empty where nothing depends on it
    past: Any  # inputs of the last window - 1 tokens; None without a window
    position: Int[Array, ""]  # tokens since the text began, modulo a large multiple of the chunk sizes


class Inputs(NamedTuple):
    """What slow weights make of the tokens; time is axis 2, or the only one."""

    key: Float[Array, "batch heads time head_dim"]
    value: Float[Array, "batch heads time head_dim"]
    query: Float[Array, "batch heads time head_dim"]
    eta: Float[Array, "batch heads time"] | None  # None where memories make it
    alpha: Float[Array, "batch heads time"] | None
    mu: Float[Array, "batch heads time"] | None
    valid: Float[Array, " time"]  # 1 for tokens, 0 for padding


class Fixed(NamedTuple):
    """What stays as it is while a text is read, with the batch's axis.

    Without that axis, gradients would be summed over the batch, and over devices, at every chunk.
    """

    anchor: Groups | None  # weights that retention pulls toward, None for zero
    parameters: Any  # what `MemoryMixer.coefficient_parameters` gives
    up_bias: Float[Array, "batch heads"] | None = None  # of the memory that answers; None for zero


class Generated(NamedTuple):
    """What the memories learn from at each token of a chunk."""

    key: Float[Array, "batch heads C head_dim"]
    targets: tuple[Float[Array, "batch heads *stack C head_dim"], ...]  # of each group
    eta: Float[Array, "batch heads C"]
    alpha: Float[Array, "batch heads C"]
    gates: tuple[Float[Array, "batch heads stack"] | None, ...]  # of each group: of each memory's forcing


class InitialMemories(nnx.Module):
    """The meta-learned initial weights: ``layers[i]`` [heads, ...] has layer i of all memories of all heads.

    Inner layers start orthogonal, so that different keys have different features, and so large that features have about
    the key's length: SiLU halves small numbers. Last layers start small, so that a memory does not answer with noise.
    """

    def __init__(self, num_heads: int, architecture: Architecture, *, rngs: nnx.Rngs):
        def initial(layer, shape):
            key, shape = rngs.params(), (num_heads, *shape)
            if layer == architecture.depth - 1:
                return 0.1 * jax.random.normal(key, shape, jnp.float32) / shape[-2] ** 0.5
            # each of a gated memory's two factors is 1 / size_in of its square in the mean
            length = (4.0 * architecture.size_in**2 / architecture.hidden) ** 0.25 if architecture.gated else 2.0
            return length * orthogonal_blocks(key, shape)

        self.layers = nnx.List([nnx.Param(initial(i, shape)) for i, shape in enumerate(architecture.shapes())])


def orthogonal_blocks(key: Array, shape: tuple[int, ...]) -> Float[Array, "... in out"]:
    """Matrices [..., in, out] of square orthogonal blocks, side by side, the last one cut.

    Each is the polar factor of a normal matrix, by Newton-Schulz: ``jax.random.orthogonal`` takes a QR decomposition,
    which hangs in a program that is split over several CPU devices (jaxlib 0.10.2).
    """
    *leading, size, outputs = shape
    blocks = jax.random.normal(key, (*leading, -(-outputs // size), size, size), jnp.float32)
    blocks /= jnp.linalg.norm(blocks, axis=(-2, -1), keepdims=True)  # singular values below 1: it converges

    def improve(_, q):
        return 1.5 * q - 0.5 * q @ (jnp.swapaxes(q, -1, -2) @ q)

    blocks = jax.lax.fori_loop(0, 40, improve, blocks)  # 1.5^40 lifts singular values from 1e-7
    return jnp.swapaxes(blocks.reshape(*leading, -1, size)[..., :outputs, :], -1, -2)


class Gate(nnx.Module):
    """A coefficient per token and head from the input: ``activation(x W + b)``, b constant at the start."""

    def __init__(self, width: int, num_heads: int, activation: str, bias: float, *, rngs: nnx.Rngs):
        self.activation = activation
        self.linear = linear(width, num_heads, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time width"], dtype: Any) -> Float[Array, "batch heads time"]:
        """The coefficient, in ``dtype``."""
        return jnp.moveaxis(getattr(jax.nn, self.activation)(self.linear(x).astype(dtype)), 1, 2)


class MemoryMixer(nnx.Module):
    """Memories that learn in context, as a sequence mixer: ``y, state = mixer(x, state)``.

    Args:
      width: of input and output.
      num_heads: must divide width; every head has memories of its own.
      architecture: of one head's memory, keys and answers of the head's size; several for groups of memories, of which
        the last one answers.
      objective: what it is trained on: one of ``nl_jax.memory.OBJECTIVES``, or an ``Objective``.
      rule: how gradients change it: "implicit", "normalized" or "paper" (``memory/rules.py``).
      delta: Delta Gradient Descent; without it gradient descent.
      delta_after_retention: the delta term acts on what retention has left (Gated DeltaNet).
      allow_neg_eigval: in the memory that answers, the last layer's delta strength reaches (1 + α) / ‖x‖², where
        the eigenvalue along x is -1; with "implicit" as η grows. An MLP needs delta=True besides to keep a state long.
      read: "token" (each token reads the memory updated up to itself) or "boundary" (Eq. 90: up to the last boundary).
      initial: "learned" or "zero" weights at the start of a text.
      retention: "initial" (retention and delta term forget toward the initial weights) or "zero" (the paper's form).
      eta, alpha, mu: learning rate, retention, momentum: a number for a constant, a tuple of numbers for a constant per
        head, (activation, bias) for a gate of the input ("softplus" or "sigmoid"); mu None for no momentum.
      window: tokens whose gradients make one update, the last one and those before (Omega rule, Eq. 68).
      transposed: memory of the values' outer side: the delta term acts on values (Oja, Eq. 66-67); matrix only.
      chunk_size: tokens between two boundaries, at which gradients are taken; one for each group, or one for all. The
        smallest must divide the others.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for sizes that do not fit, a chunk size below 1, unknown names, or options that exclude each other.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        architecture: Architecture | tuple[Architecture, ...],
        objective: str | Objective = "l2",
        rule: str = "implicit",
        delta: bool = True,
        delta_after_retention: bool = False,
        allow_neg_eigval: bool = False,
        read: str = "token",
        initial: str = "learned",
        retention: str = "initial",
        eta: Any = ("softplus", 0.0),
        alpha: Any = ("sigmoid", RETENTION_BIAS),
        mu: Any = None,
        window: int = 1,
        transposed: bool = False,
        chunk_size: int | tuple[int, ...] = 64,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        head_dim = head_size(width, num_heads)
        architectures = (architecture,) if isinstance(architecture, Architecture) else architecture
        sizes = (chunk_size,) * len(architectures) if isinstance(chunk_size, int) else chunk_size
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if not whole or min(sizes) < 1 or any(size % min(sizes) for size in sizes):
            raise ValueError(f"chunk_size={chunk_size} must be at least 1, and the smallest must divide the others")
        for name, value, allowed in (
            ("read", read, READS),
            ("initial", initial, ("learned", "zero")),
            ("retention", retention, RETENTIONS),
            ("rule", rule, RULES),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
        if window < 1 or (window > 1 and delta):
            raise ValueError(f"window={window} must be at least 1, and 1 with a delta term")
        depth = max(a.depth for a in architectures)
        if initial == "zero" and depth > 1:
            raise ValueError(f"initial='zero' with depth={depth}: an MLP of zeros has no gradient")
        plain = depth == len(architectures) == 1 and mu is None and delta and window == 1 and read == "token"
        if transposed and not (plain and initial == "zero"):
            raise ValueError(
                "transposed=True needs a matrix memory with a delta term, initial='zero' and read='token', without "
                "momentum or window"
            )
        self.num_heads, self.head_dim = num_heads, head_dim
        if isinstance(objective, str):
            if objective not in OBJECTIVES:
                raise ValueError(f"objective={objective!r} must be one of {', '.join(map(repr, OBJECTIVES))}")
            objective = OBJECTIVES[objective]
        self.architectures, self.chunk_sizes, self.objective = architectures, sizes, objective
        self.rule = Rule(rule, delta, delta_after_retention, allow_neg_eigval)
        # an eigenvalue of -1 keeps a state in what answers; where keys and rates are made, gradients would explode
        projecting = self.rule._replace(allow_neg_eigval=False)
        self.rules = (*(projecting for _ in architectures[1:]), self.rule)
        self.read, self.initial, self.retention = read, initial, retention
        self.window, self.transposed = window, transposed
        self.piece = min(sizes)
        exact = rule == "implicit" and objective.linear is not None
        # nothing is taken at the boundary by a matrix whose gradients fold, or do not depend on its answer
        self.uses_boundary = depth > 1 or read == "boundary" or not (exact or objective.linear == 0.0)
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.conv = CausalConv(3 * width, rngs=rngs)
        start_as_induction(self.query, self.key, self.conv)
        learned = initial == "learned"
        self.memories = nnx.List([InitialMemories(num_heads, a, rngs=rngs) for a in architectures]) if learned else None
        self.eta = self._coefficient("eta", eta, width, rngs)
        self.alpha = self._coefficient("alpha", alpha, width, rngs)
        self.mu = self._coefficient("mu", mu, width, rngs)
        self.output_norm = nnx.RMSNorm(head_dim, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    def _coefficient(self, name: str, given: Any, width: int, rngs: nnx.Rngs) -> Any:
        if given is None:
            return None
        if isinstance(given, tuple) and isinstance(given[0], str):
            activation, *bias = given
            if activation not in ("softplus", "sigmoid"):
                raise ValueError(f"{name}={given!r}: the activation must be 'softplus' or 'sigmoid'")
            if len(bias) != 1 or not isinstance(bias[0], numbers.Real) or not math.isfinite(bias[0]):
                raise ValueError(f"{name}={given!r}: the activation must be followed by one bias, a finite number")
            return Gate(width, self.num_heads, *given, rngs=rngs)
        constants = given if isinstance(given, tuple) else (given,) * self.num_heads
        top = math.inf if name == "eta" else 1.0
        if len(constants) != self.num_heads or not all(0.0 <= c <= top and math.isfinite(c) for c in constants):
            raise ValueError(f"{name}={given!r} must be one number, or one per head, from 0 to {top}")
        return tuple(float(c) for c in constants)

    def _per_token(self, coefficient: Any, x: Array, dtype: Any) -> Float[Array, "batch heads time"] | None:
        if isinstance(coefficient, tuple):
            return jnp.broadcast_to(jnp.asarray(coefficient, dtype)[:, None], (len(x), self.num_heads, x.shape[1]))
        return None if coefficient is None else coefficient(x, dtype)

    def anchor(self) -> Groups | None:
        """Weights that retention pulls toward, None for zero."""
        return self.initial_weights() if self.memories is not None and self.retention == "initial" else None

    @property
    def state_dtype(self) -> Any:
        """Of what the memories keep and learn in: float32, or wider for wider parameters."""
        return jnp.promote_types(self.key.kernel[...].dtype, jnp.float32)

    def initial_weights(self) -> Groups:
        """Weights at the start of a text, [heads, ...] a layer."""
        if self.memories is None:
            return tuple(
                tuple(jnp.zeros((self.num_heads, *shape), self.state_dtype) for shape in architecture.shapes())
                for architecture in self.architectures
            )
        return tuple(tuple(layer[...] for layer in group.layers) for group in self.memories)

    def init_state(self, batch_size: int) -> MemoryState:
        """The state before the first token: every memory at its initial weights. No two arrays share a buffer."""
        weights, dtype = self.initial_weights(), self.state_dtype

        def zeros():
            return jax.tree.map(lambda w: jnp.zeros((batch_size, *w.shape), dtype), weights)

        def start():
            if self.retention == "initial" or self.memories is None:
                return zeros()
            return jax.tree.map(lambda w: jnp.broadcast_to(w.astype(dtype), (batch_size, *w.shape)), weights)

        return MemoryState(
            self.conv.init_state(batch_size).astype(dtype),
            start(),
            () if self.mu is None else zeros(),
            start() if self.uses_boundary else (),
            self._no_past(batch_size) if self.window > 1 else None,
            jnp.zeros((), jnp.int32),
        )

    def _no_past(self, batch_size: int) -> Inputs:
        """Inputs of a window before the first token."""
        heads, dtype = (batch_size, self.num_heads, self.window - 1), self.state_dtype
        key, value, query = (jnp.zeros((*heads, self.head_dim), dtype) for _ in range(3))
        eta, alpha, mu = (jnp.zeros(heads, dtype) for _ in range(3))
        return Inputs(key, value, query, eta, alpha, None if self.mu is None else mu, jnp.zeros(self.window - 1, dtype))

    def slow_inputs(
        self, x: Float[Array, "batch time width"], conv: Float[Array, "batch 3 channels"]
    ) -> tuple[Inputs, Float[Array, "batch 3 channels"]]:
        """Unit-length keys, values and queries from slow projections and the convolution, and the coefficients."""
        batch, time, _ = x.shape
        wide = self.state_dtype  # memories learn in float32, whatever the products run in
        projected = jnp.concatenate([self.query(x), self.key(x), self.value(x)], axis=-1)
        projected, conv = self.conv(projected, conv)
        query, key, value = (
            unit_length(jnp.moveaxis(u.reshape(batch, time, self.num_heads, self.head_dim), 1, 2))
            for u in jnp.split(projected.astype(wide), 3, axis=-1)
        )
        eta, alpha, mu = (self._per_token(c, x, wide) for c in (self.eta, self.alpha, self.mu))
        return Inputs(key, value, query, eta, alpha, mu, jnp.ones((time,), wide)), conv

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x; ``state=None`` starts a text.

        Any number of tokens in any number of calls gives the same outputs and state as one call, up to rounding.
        ``at_boundary`` is the caller's word that the state is at a boundary of all chunk sizes, which saves padding.
        The state keeps its types; no tokens give no outputs, and the state as it was.
        """
        batch, time, width = x.shape
        fresh = state is None
        state = self.init_state(batch) if state is None else state
        if time == 0:
            return self.output(x), state
        origin = state.position
        inputs, conv = keep_products(self.slow_inputs)(x, state.conv)
        past = self.window - 1
        if past:
            past_inputs = astype(state.past, self.state_dtype)
            inputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=time_axis(b)), past_inputs, inputs)
        # a first token inside a piece is put at its place there, so that pieces end where chunks end
        if fresh or time == 1 or at_boundary:
            size, offset = min(self.piece, time), jnp.zeros((), jnp.int32)
            pieces = -(-time // size)
            padded = jax.tree.map(lambda u: pad_time(u, pieces * size - time), inputs)
        else:
            size, offset = self.piece, state.position % self.piece
            pieces = -(-(time + size - 1) // size)
            padded = jax.tree.map(lambda u: place(u, past + pieces * size, offset), inputs)
        starts = state.position - offset + size * jnp.arange(pieces)
        memories = astype((state.change, state.momentum, state.boundary), self.state_dtype)
        fixed = Fixed(self.anchor(), self.coefficient_parameters(), self.answering_bias())
        fixed = jax.tree.map(lambda w: jnp.broadcast_to(w, (batch, *w.shape)), fixed)
        aligned = (fresh or at_boundary) and len(set(self.chunk_sizes)) == 1  # every piece starts at a boundary

        def body(memories, piece):
            inputs, start = piece
            if self.uses_boundary:  # else the memory is linear in its state and does not expand it
                memories = limit_cotangent(memories)
            change, momentum, boundary = memories
            if self.uses_boundary and not aligned:
                due = (start > origin) & (start <= origin + time)
                boundary = self._at_boundary(start, change, boundary, due)
            elif self.uses_boundary:
                boundary = change
            memories = change, momentum, boundary
            y, change, momentum = self._learn(inputs, start, origin, fixed, memories, aligned)
            return (change, momentum, boundary), y

        cut = jax.tree.map(lambda u: cut_time(u, pieces, size, past), padded)
        if pieces == 1:
            memories, y = body(memories, (jax.tree.map(lambda u: u[0], cut), starts[0]))
        else:
            memories, y = jax.lax.scan(jax.checkpoint(body), memories, (cut, starts))
            y = jnp.moveaxis(y, 0, 2).reshape(batch, self.num_heads, pieces * size, self.head_dim)
        y = jax.lax.dynamic_slice_in_dim(y, offset, time, axis=2)
        y = self.output_norm(jnp.moveaxis(y, 1, 2)).reshape(batch, time, width)
        change, momentum, boundary = memories
        end = origin + time
        if self.uses_boundary:
            boundary = self._at_boundary(end, change, boundary, jnp.asarray(True))
        if past:
            last = jax.tree.map(lambda u: jax.lax.slice_in_dim(u, time, time + past, axis=time_axis(u)), inputs)
        period = math.lcm(*self.chunk_sizes)
        end %= period * max(1, 2**30 // period)  # else it would overflow in a text without end
        new = MemoryState(conv, change, momentum, boundary, last if past else None, end)
        new = jax.tree.map(lambda u, before: u.astype(before.dtype), new, state)
        return self.output(y.astype(x.dtype)), new

    def _at_boundary(self, position: Array, change: Groups, boundary: Groups, due: Array) -> Groups:
        """The change of each group whose chunk ends at ``position``, the old boundary for the others."""

        def group(size, change, boundary):
            ends = due & (position % size == 0)
            return jax.tree.map(lambda c, b: jnp.where(ends, c, b), change, boundary)

        return tuple(map(group, self.chunk_sizes, change, boundary))

    def coefficient_parameters(self) -> Any:
        """Parameters that ``generate`` uses, which come to it with the batch's axis."""
        return ()

    def answering_bias(self) -> Float[Array, " heads"] | None:
        """Up bias of the memory that answers, where it is gated and has one."""
        return None

    def generate(self, inputs: Inputs, weights: Groups, fixed: Fixed) -> Generated:
        """Keys, values and coefficients of a chunk; ``weights`` are those at the boundary."""
        assert inputs.eta is not None
        assert inputs.alpha is not None
        value = inputs.value if self.architectures[0].depth == 1 else inputs.value[:, :, None]
        return Generated(inputs.key, (value,), inputs.eta, inputs.alpha, (None,))

    def make_queries(self, queries: Float[Array, "batch heads C head_dim"], weights: Groups) -> Array:
        """What the memory is asked; ``weights`` are those at the boundary."""
        return queries

    def query_memory(
        self, chunks: tuple[Chunk, ...] | None, weights: Groups, fixed: Fixed, queries: Array
    ) -> Float[Array, "batch heads C head_dim"]:
        """Answers of the last group: of its weights updated up to each token, or (chunks None) of the boundary's."""
        architecture = self.architectures[-1]
        queries = self.make_queries(queries, weights)
        if chunks is None:
            answer = architecture(apply_layer(weights[-1]), queries, fixed.up_bias)
        else:
            anchor = None if fixed.anchor is None else fixed.anchor[-1]
            answer = read_memory(architecture, chunks, anchor, queries, fixed.up_bias)
        return answer if architecture.depth == 1 else answer[:, :, 0]

    def _learn(
        self,
        inputs: Inputs,
        start: Array,
        first: Array,
        fixed: Fixed,
        memories: tuple[Groups, Groups, Groups],
        at_boundary: bool,
    ) -> tuple[Float[Array, "batch heads C head_dim"], Groups, Groups]:
        """One piece: generate from the boundary, update in closed form, read. Returns (y, change, momentum).

        ``memories`` are (change, momentum, boundary), as in ``MemoryState``.
        """
        anchor = fixed.anchor
        change, momentum, boundary = memories
        past = self.window - 1
        position = start + jnp.arange(len(inputs.valid)) - past
        # tokens of the window were learned before: only their gradients count again
        valid = jnp.where((position >= jnp.maximum(start, first)), inputs.valid, 0.0) if past else inputs.valid
        boundary = boundary if self.uses_boundary else change
        weights = boundary if anchor is None else jax.tree.map(jnp.add, anchor, boundary)
        generated = self.generate(inputs, weights, fixed)
        eta = generated.eta * inputs.valid
        alpha = jnp.where(valid > 0, generated.alpha, 1.0)
        mu = None if inputs.mu is None else jnp.where(valid > 0, inputs.mu, 1.0)
        decay = chunk_decay(alpha, mu, valid, self.window)
        key, targets = generated.key, generated.targets
        if self.transposed:
            key, targets = targets[0], (key,)
        changes: list[Any] = []
        momenta: list[Any] = []
        for group, architecture in enumerate(self.architectures):
            chunks = learn_chunk(
                architecture,
                self.objective,
                self.rules[group],
                anchor=None if anchor is None else anchor[group],
                change=change[group],
                momentum=momentum[group] if momentum else None,
                boundary=weights[group],
                keys=key,
                values=targets[group],
                eta=eta,
                alpha=alpha,
                damping=jnp.ones_like(eta) if inputs.mu is None else 1.0 - inputs.mu,
                decay=decay,
                chunk_size=self.chunk_sizes[group] * self.window,
                at_boundary=at_boundary,
                gates=generated.gates[group],
                up_bias=fixed.up_bias if group == len(self.architectures) - 1 else None,
            )
            ends = end_of_memory(architecture, self.objective, self.rules[group], chunks)
            changes.append(ends[0])
            momenta.append(ends[1])
        change, momentum = tuple(changes), tuple(momenta) if momentum else ()
        if self.transposed:
            y = read_chunk_transposed(chunks[0], inputs.query)
        else:
            y = self.query_memory(None if self.read == "boundary" else chunks, weights, fixed, inputs.query)
        return y[:, :, past:], change, momentum


def head_size(width: int, num_heads: int) -> int:
    """Width of a head; ``ValueError`` if the heads do not divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide width={width}")
    return width // num_heads


def astype(tree: Any, dtype: Any) -> Any:
    """Every array of a pytree in this type."""
    return jax.tree.map(lambda u: u.astype(dtype), tree)


def time_axis(u: Array) -> int:
    """[time], [batch, heads, time] and [batch, heads, time, head_dim] are all there are."""
    return min(2, u.ndim - 1)


def pad_time(u: Array, count: int) -> Array:
    """``count`` zeros after the last token."""
    axis = time_axis(u)
    return jnp.pad(u, [(0, count) if i == axis else (0, 0) for i in range(u.ndim)])


def place(u: Array, length: int, offset: Array) -> Array:
    """u at ``offset`` in ``length`` zeros."""
    axis = time_axis(u)
    room = jnp.zeros((*u.shape[:axis], length, *u.shape[axis + 1 :]), u.dtype)
    return jax.lax.dynamic_update_slice_in_dim(room, u, offset, axis)


def cut_time(u: Array, pieces: int, size: int, past: int) -> Array:
    """[pieces, ...]: pieces of ``size`` tokens, each with the ``past`` tokens before it."""
    axis = time_axis(u)
    if past:
        parts = [jax.lax.slice_in_dim(u, i * size, (i + 1) * size + past, axis=axis) for i in range(pieces)]
        return jnp.stack(parts)
    return jnp.moveaxis(u.reshape(*u.shape[:axis], pieces, size, *u.shape[axis + 1 :]), axis, 0)
