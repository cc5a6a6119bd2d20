"""The cost of the matrix products in a language model's forward pass, in closed form for each part.

``count_flops`` counts the operations of a program; these formulas say what the algorithms of ``nl_jax.memory`` should
cost. Internally parts are counted in multiply-adds, each of which is two operations. Norms, gates, convolutions over
time and other operations that are not matrix products are left out.
"""

from collections import Counter
from typing import Any, NamedTuple

from flax import nnx

from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.modules.mixers.attention import Attention
from nl_jax.modules.mixers.memory_mixer import Gate, MemoryMixer
from nl_jax.modules.mixers.self_modifying_titans import SelfModifyingTitans
from nl_jax.ops.attention import BLOCK_SIZE as TILE_SIZE
from nl_jax.ops.decay import DECAY_BLOCK_SIZE
from nl_jax.ops.triangular import BLOCK_SIZE as DIAGONAL_SIZE


def forward_flops(config: LanguageModelConfig, batch_size: int, length: int) -> dict[str, int]:
    """Floating-point operations of the matrix products in a forward pass of ``LanguageModel(config)``, by part.

    A training step without ``remat`` needs 3 times as many, and 3.5 times those of attention, whose scores are
    recomputed in the backward pass. Memories have no single factor (3.2 to 3.9 were measured): the backward pass
    recomputes pieces, but only as far as it needs them, and the triangular inverse has its own derivative rule.

    Args:
        config: configuration of the model, with any mixer and any options.
        batch_size: number of sequences.
        length: number of tokens in each sequence, from the start of a text.

    Returns:
        Operations of all layers, for each part that the model has: ``unembedding``; ``feed_forward`` (all levels of the
        continuum memory); ``projections`` (by slow weights of the mixer, including its output); ``attention`` (scores,
        and sums over values). Memories have the parts ``generation`` (of keys, values, coefficients, targets and
        queries), ``gradients`` (answers at the boundary, and the backward pass), ``anchor`` (answers of the initial
        weights to keys), ``decay``, ``gram``, ``solve`` (right side, inverse, and their product), ``writes`` and
        ``reads``.
    """
    mixer: Any = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0))).blocks.mixer
    tokens, width = batch_size * length, config.width
    layer = Counter(feed_forward=tokens * len(config.cms_periods) * 3 * width * config.mlp_hidden)
    layer["projections"] = tokens * 4 * width**2  # query, key, value, output
    if isinstance(mixer, Attention):
        layer["attention"] = batch_size * 2 * width * _pairs_in_tiles(length, min(length, mixer.context_length))
    else:
        gates = sum(isinstance(coefficient, Gate) for coefficient in (mixer.eta, mixer.alpha, mixer.mu))
        layer["projections"] += tokens * gates * width * mixer.num_heads
        size = min(mixer.piece, length)
        pieces = batch_size * mixer.num_heads * -(-length // size)  # the last piece is padded
        layer.update({part: pieces * count for part, count in _piece(mixer, size + mixer.window - 1).items()})
    parts = {part: config.num_layers * count for part, count in layer.items()}
    parts["unembedding"] = tokens * width * config.vocab_size
    return {part: 2 * count for part, count in parts.items() if count}


def _pairs_in_tiles(length: int, window: int) -> int:
    """Number of pairs of query and key in the tiles in which at least one query sees at least one key."""

    def even(limit: int) -> int:
        return -(-length // -(-length // limit))

    queries = even(TILE_SIZE)
    keys = even(TILE_SIZE**2 // queries)
    tiles = 0
    for first in range(0, length, queries):
        last = min(first + queries, length) - 1
        tiles += 1 + last // keys - max(0, first - window + 1) // keys
    return tiles * queries * keys


class _Layer(NamedTuple):
    """A layer of stacked memories. First layers share their input, so they count as one layer with many outputs."""

    inputs: int  # number of different inputs, each with its own Gram matrix and triangular system
    size_in: int
    size_out: int  # size of the outputs for each input

    @property
    def weights(self) -> int:
        """Multiply-adds of the answer to one token, or of its write."""
        return self.inputs * self.size_in * self.size_out


Group = list[_Layer]


def _answer(group: Group) -> int:
    """Multiply-adds of the answers of all memories in a group to one token."""
    return sum(layer.weights for layer in group)


def _piece(mixer: MemoryMixer, c: int) -> Counter[str]:
    """Multiply-adds by part for a piece of ``c`` tokens, in one head of one sequence."""
    groups = [[_Layer(*(1,) * (3 - len(s)), *s) for s in architecture.shapes()] for architecture in mixer.architectures]
    linear, rule, momentum, window = mixer.objective.linear, mixer.rule, mixer.mu is not None, mixer.window > 1
    anchored = mixer.memories is not None and mixer.retention == "initial"
    implicit = rule.form == "implicit" and linear is not None
    parts: Counter[str] = Counter()
    if isinstance(mixer, SelfModifyingTitans):
        if mixer.frozen and anchored:  # such a memory is only read
            adapt_queries = "query" in mixer.projections
            return Counter(reads=c * _answer(groups[-1]), generation=adapt_queries * _generation(mixer, groups, c))
        parts["generation"] = len(mixer.projections) * _generation(mixer, groups, c)
        parts["generation"] += mixer.self_targets * c * sum(map(_answer, groups))
    parts["decay"] = (1 + momentum) * _decay(c) + (momentum + window) * c**3 + momentum * c**2
    for group in groups:
        # whether gradients are taken at the boundary
        at_boundary = len(group) > 1 or rule.form == "normalized" or not (implicit or linear == 0.0)
        if at_boundary:
            parts["gradients"] += c * (_answer(group) + _answer(group[1:]))  # the gradient at the keys is not needed
        for layer in group:
            # an implicit last layer takes its gradient at every token, by a delta term
            folds = implicit and layer is group[-1]
            delta = rule.delta or (folds and linear != 0.0)
            # if gradients were taken at the start of the piece, the answers there are already known
            known = int(at_boundary and len(set(mixer.chunk_sizes)) == 1)
            parts["anchor"] += anchored * (folds or delta * known) * c * layer.weights
            parts["writes"] += (1 + momentum) * c * layer.weights
            if delta:
                # the right side needs a product of its own if forcings and answers decay differently
                products = 2 if momentum or window else 1
                inverse_and_products = layer.inputs * (_inverse(c) + products * c**2 * layer.size_out)
                parts["gram"] += layer.inputs * c**2 * layer.size_in
                parts["solve"] += inverse_and_products + (1 + momentum) * c * layer.weights
                parts["solve"] -= known * c * layer.weights
            if group is not groups[-1]:
                continue
            if mixer.read == "boundary":
                parts["reads"] += c * layer.weights
            else:  # reads of the state at the start of the piece; then scores, and sums over what was written since
                sums = 2 if delta and (momentum or window) else 1  # forcings and writes may decay differently
                parts["reads"] += c * (1 + anchored + momentum) * layer.weights
                parts["reads"] += layer.inputs * c**2 * (layer.size_in + sums * layer.size_out)
    return parts


def _generation(mixer: SelfModifyingTitans, groups: list[Group], c: int) -> int:
    """Multiply-adds of the projection that one of the projecting memories generates."""
    return c * _answer(groups[0]) // max(1, len(mixer.projections))


def _decay(n: int) -> int:
    """Multiply-adds of the decay matrix of n tokens; a product with the identity materialises its blocks."""
    blocks = -(-n // DECAY_BLOCK_SIZE)
    return 0 if blocks == 1 else blocks**2 * DECAY_BLOCK_SIZE**3 + _decay(blocks)


def _inverse(n: int) -> int:
    """Multiply-adds of a unit lower-triangular inverse: matrix powers in diagonal blocks, then merges of neighbours."""
    if n <= DIAGONAL_SIZE:
        return 2 * n**3 * max(0, (n - 1).bit_length() - 1)
    size = DIAGONAL_SIZE << (-(-n // DIAGONAL_SIZE) - 1).bit_length()
    # merging: Σ over block sizes b = 8, 16, ..., size / 2 of size / (2 b) pairs · 2 b³
    return size // DIAGONAL_SIZE * _inverse(DIAGONAL_SIZE) + size * (size**2 - DIAGONAL_SIZE**2) // 3
