"""The cost of the matrix products in a language model's forward pass, in closed form for each part.

``count_flops`` counts the operations of a program; these formulas say what the algorithms of ``nl_jax.memory`` should
cost. Internally parts are counted in multiply-adds, each of which is two operations. Norms, gates, convolutions over
time and other operations that are not matrix products are left out.
"""

from collections import Counter
from typing import Any, NamedTuple

from flax import nnx

from nl_jax.memory import Memory
from nl_jax.memory.channel_recurrence import block_size
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.modules import (
    LSTM,
    Attention,
    ChannelRetention,
    Comba,
    MemoryMixer,
    Mesa,
    Oja,
    SelfModifyingTitans,
    SelfReferentialMatrix,
    SlidingWindowMemory,
)
from nl_jax.modules.mixers.coefficients import Gate
from nl_jax.ops.attention import BLOCK_SIZE as TILE_SIZE
from nl_jax.ops.decay import DECAY_BLOCK_SIZE
from nl_jax.ops.triangular import BLOCK_SIZE as DIAGONAL_SIZE

Memories = ChannelRetention | Comba | MemoryMixer | Mesa | Oja | SelfModifyingTitans


def forward_flops(config: LanguageModelConfig, batch_size: int, length: int) -> dict[str, int]:
    """Floating-point operations of the matrix products in a forward pass of ``LanguageModel(config)``, by part.

    A training step without ``remat`` needs 3 times as many, and 3.5 times those of attention, whose scores are
    recomputed in the backward pass. Memories have no single factor (3.2 to 3.9 were measured): the backward pass
    recomputes subchunks, but only as far as it needs them, and the triangular inverse has its own derivative rule.

    Args:
        config: configuration of the model, with any mixer and any options.
        batch_size: number of sequences.
        length: number of tokens in each sequence, from the start of a text.

    Returns:
        Operations of all layers, for each part that the model has: ``unembedding``; ``feed_forward`` (all levels of the
        continuum memory); ``projections`` (by slow weights of the mixer, including its output); ``attention`` (scores,
        and sums over values). Memories have the parts ``generation`` (of keys, values, coefficients, targets and
        queries), ``gradients`` (answers at the boundary, and the backward pass), ``w0`` (answers of the initial weights
        to keys), ``decay``, ``gram``, ``solve`` (right side, inverse, and their product; of Mesa all iterations),
        ``writes`` and ``reads``. An LSTM has ``recurrence``, of its state to its gates,
        and Atlas ``orthogonalisation``, of each chunk's updates.

    Examples:
        >>> from nl_jax.costs import forward_flops
        >>> from nl_jax.models import named_config
        >>> parts = forward_flops(named_config("delta_net", "tiny"), batch_size=1, length=128)
        >>> parts["unembedding"] == 2 * 128 * 128 * 257  # tokens, width, vocabulary
        True
    """
    mixer: Any = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0))).blocks.mixer
    tokens, width = batch_size * length, config.width
    layer = Counter(feed_forward=tokens * len(config.cms_periods) * 3 * width * config.mlp_hidden)
    layer.update(_mixer(mixer, batch_size, length, width))
    parts = {part: config.num_layers * count for part, count in layer.items()}
    parts["unembedding"] = tokens * width * config.vocab_size
    return {part: 2 * count for part, count in parts.items() if count}


def _mixer(mixer: Any, batch_size: int, length: int, width: int) -> Counter[str]:
    """Multiply-adds of one layer's mixer."""
    tokens = batch_size * length
    if isinstance(mixer, SlidingWindowMemory):
        both = (_mixer(part, batch_size, length, width) for part in (mixer.attention, mixer.memory))
        return sum(both, Counter())
    if isinstance(mixer, LSTM):
        return Counter(projections=tokens * 5 * width**2, recurrence=tokens * 4 * width**2)
    if isinstance(mixer, SelfReferentialMatrix):
        columns = mixer.memories[0].layers[0].shape[-1]
        return Counter(projections=tokens * 2 * width**2, reads=tokens * 2 * width * columns)
    if isinstance(mixer, Attention):
        queries = mixer.num_heads * mixer.head_dim
        projections = tokens * 2 * width * (queries + mixer.num_kv_heads * mixer.head_dim)
        pairs = _pairs_in_tiles(length, min(length, mixer.context_length))
        return Counter(projections=projections, attention=batch_size * 2 * queries * pairs)
    gates = sum(isinstance(coefficient, Gate) for coefficient in (mixer.eta, mixer.alpha, mixer.mu))
    parts = Counter(projections=tokens * (4 * width**2 + gates * width * mixer.num_heads))  # query, key, value, output
    if isinstance(mixer, ChannelRetention):
        rank = mixer.retention.down.kernel.shape[-1]
        parts["projections"] += (1 + mixer.removal) * tokens * 2 * width * rank
    size = min(mixer.chunking.subchunk, length)
    subchunks = batch_size * mixer.num_heads * -(-length // size)  # the last one is padded
    counts = _subchunk(mixer, size + mixer.chunking.window - 1)
    parts.update({part: subchunks * count for part, count in counts.items()})
    if mixer.chunking.orthogonal_steps:
        each = sum(map(_newton_schulz, _layers(mixer.groups[0])))
        parts["orthogonalisation"] = mixer.chunking.orthogonal_steps * subchunks * each
    return parts


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


def _layers(memory: Memory) -> list[_Layer]:
    return [_Layer(*(1,) * (3 - len(shape)), *shape) for shape in memory.architecture.shapes()]


def _answer(layers: list[_Layer]) -> int:
    """Multiply-adds of one token's answer from all memories of a group."""
    return sum(layer.weights for layer in layers)


def _newton_schulz(layer: _Layer) -> int:
    """Multiply-adds of one iteration: x xᵀ, its square, and the product of their sum with x, of the shorter side."""
    shorter, longer = sorted((layer.size_in, layer.size_out))
    return layer.inputs * (2 * shorter**2 * longer + shorter**3)


def _channels(mixer: ChannelRetention, c: int) -> Counter[str]:
    """Multiply-adds for a subchunk of ``c`` tokens of a memory with a retention per channel, but for single numbers."""
    size, matrices = mixer.head_dim, 1 + mixer.removal  # what was written, and what was removed
    block = block_size(c)
    products = 0 if block == c else (-(-c // block) * block) ** 2 * size
    parts = Counter(writes=matrices * c * size**2, reads=c * size**2 + matrices * (products + c**2 * size))
    if mixer.removal:
        parts["gram"] = 2 * products
        parts["solve"] = c * size**2 + 2 * c**2 * size + _inverse(c)
    return parts


def _subchunk(mixer: Memories, c: int) -> Counter[str]:
    """Multiply-adds for a subchunk of ``c`` tokens, of one head of one sequence."""
    if isinstance(mixer, ChannelRetention):
        return _channels(mixer, c)
    if isinstance(mixer, Mesa):  # every iteration reads one half of the memory, and the answer the other one
        (key, both), read = mixer.groups[0].architecture.shapes()[0], c * mixer.head_dim * (mixer.head_dim + 2 * c)
        return Counter(decay=_decay(c), writes=c * key * both, solve=mixer.iterations * read, reads=read)
    has_momentum, has_window = mixer.mu is not None, mixer.chunking.window > 1
    parts: Counter[str] = Counter()
    if isinstance(mixer, SelfModifyingTitans):
        projections = mixer.projecting.names
        one = c * _answer(_layers(mixer.groups[0])) // max(1, len(projections))  # what one of them generates
        if mixer.frozen and mixer.pulls_to_initial:  # it only reads
            return Counter(reads=c * _answer(_layers(mixer.groups[-1])), generation=("query" in projections) * one)
        parts["generation"] = len(projections) * one
        parts["generation"] += mixer.self_targets * c * sum(_answer(_layers(memory)) for memory in mixer.groups)
    parts["decay"] = (1 + has_momentum) * _decay(c) + (has_momentum + has_window) * c**3 + has_momentum * c**2
    for memory in mixer.groups:
        layers = _layers(memory)
        if memory.takes_gradients:
            parts["gradients"] += c * (_answer(layers) + _answer(layers[1:]))  # none at the keys
        for index, layer in enumerate(layers):
            parts.update(_learning(mixer, memory, index, layer, c))
    for index, layer in enumerate(_layers(mixer.groups[-1])):
        if isinstance(mixer, Comba | Oja) or mixer.read == "token":
            # the state at the subchunk's start, then what was written since: scores, and sums over forcings, and over
            # what the delta term removes where it decays unlike them
            sums = 2 if mixer.groups[-1].has_delta_term(index) and (has_momentum or has_window) else 1
            parts["reads"] += c * (1 + mixer.pulls_to_initial + has_momentum) * layer.weights
            parts["reads"] += layer.inputs * c**2 * (layer.size_in + sums * layer.size_out)
        else:
            parts["reads"] += c * layer.weights
    return parts


def _learning(
    mixer: Comba | MemoryMixer | Oja | SelfModifyingTitans, memory: Memory, index: int, layer: _Layer, c: int
) -> Counter[str]:
    """Multiply-adds of what a layer learns from ``c`` tokens."""
    has_momentum, has_window = mixer.mu is not None, mixer.chunking.window > 1
    has_delta = memory.has_delta_term(index)
    # where gradients are taken at the start of each subchunk, the answers of its start are known
    is_known = has_delta and memory.takes_gradients and mixer.chunking.is_uniform
    shrinks = memory.rule.shrinkage and index == memory.last
    takes_w0 = memory.folds_at(index) or is_known or shrinks
    parts = Counter(w0=mixer.pulls_to_initial * takes_w0 * c * layer.weights)
    parts["writes"] = (1 + has_momentum) * c * layer.weights
    if has_delta:
        products = 2 if has_momentum or has_window else 1  # also of the right side, where forcings decay otherwise
        parts["gram"] = layer.inputs * c**2 * layer.size_in
        parts["solve"] = layer.inputs * (_inverse(c) + products * c**2 * layer.size_out)
        parts["solve"] += (1 + has_momentum - is_known) * c * layer.weights
    return parts


def _decay(n: int) -> int:
    """Multiply-adds of the decay matrix of n tokens, of which each level is multiplied by the identity on a CPU."""
    blocks = -(-n // DECAY_BLOCK_SIZE)
    return 0 if blocks == 1 else blocks**2 * DECAY_BLOCK_SIZE**3 + _decay(blocks)


def _inverse(n: int) -> int:
    """Multiply-adds of a unit lower-triangular inverse: matrix powers in diagonal blocks, then merges of neighbours."""
    if n <= DIAGONAL_SIZE:
        return 2 * n**3 * max(0, (n - 1).bit_length() - 1)
    size = DIAGONAL_SIZE << (-(-n // DIAGONAL_SIZE) - 1).bit_length()
    # merging: Σ over block sizes b = 8, 16, ..., size / 2 of size / (2 b) pairs · 2 b³
    return size // DIAGONAL_SIZE * _inverse(DIAGONAL_SIZE) + size * (size**2 - DIAGONAL_SIZE**2) // 3
