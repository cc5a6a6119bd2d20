"""The language model: embedding, a stack of equal blocks, final norm, and logits from the embedding or an own head."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.models.checks import check_state, check_tokens
from nl_jax.models.config import LanguageModelConfig
from nl_jax.models.precision import cast_matrices
from nl_jax.models.remat import remat
from nl_jax.modules import Attention, Block, ContinuumMemory, choose_kernel, mixer
from nl_jax.modules.layers import linear
from nl_jax.modules.mixers.attention import RotatedState
from nl_jax.modules.quantized import QuantizedEmbed
from nl_jax.ops import matmul, widen
from nl_jax.parallel.activations import constrain
from nl_jax.parallel.sequence import over_sequence, over_sequence_together, shards_of
from nl_jax.trees import shallow_copy

UNROLLED_LAYERS = 4  # compile in 20 s, a scan in 15 s; a step is a tenth faster (BUILD_NOTES.md, D57)


def _block(config: LanguageModelConfig, rngs: nnx.Rngs) -> Block:
    # residual branches start smaller in deeper models, so that the scale of the stream does not grow with depth
    scale, epsilon = (2 * config.num_layers) ** -0.5, config.norm_epsilon
    options = dict(config.mixer_options)
    if config.mixer == "attention":
        options["context_length"] = config.context_length
    sizes = {"width": config.width, "num_heads": config.num_heads, "chunk_size": config.chunk_size}
    sequence_mixer = mixer(config.mixer, **sizes, output_scale=scale, rngs=rngs, **options)
    choose_kernel(sequence_mixer, config.kernel if config.cms_regime == "outer" else "xla")
    levels: dict[str, Any] = {"periods": config.cms_periods, "variant": config.cms_variant}
    cms = ContinuumMemory(
        config.width, config.mlp_hidden, **levels, output_scale=scale, norm_epsilon=epsilon, rngs=rngs
    )
    return Block(config.width, sequence_mixer, cms, norm_epsilon=epsilon, rngs=rngs)


class LanguageModel(nnx.Module):
    """Predicts the next token: ``logits, state = model(tokens, state)``.

    The parameters of the blocks are stacked on a leading axis. A deep stack runs as one ``jax.lax.scan``, so compile
    time does not grow with depth. The module is a pytree of parameters, and a call never changes it.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, LanguageModelConfig
      >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 16, "chunk_size": 4}
      >>> config = LanguageModelConfig(mixer="delta_net", vocab_size=10, **sizes)
      >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
      >>> tokens = jnp.arange(8)[None]
      >>> logits, state = model(tokens[:, :4])
      >>> more, state = model(tokens[:, 4:], state)  # the same text goes on
      >>> logits.shape, more.shape
      ((1, 4, 10), (1, 4, 10))
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            rngs=rngs,
        )
        make = nnx.vmap(lambda rngs: _block(config, rngs), in_axes=0, out_axes=0)
        self.blocks = make(rngs.split(config.num_layers))
        self.final_norm = nnx.RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.unembed = None if config.tied_head else linear(config.width, config.vocab_size, rngs=rngs)
        start = jnp.full(len(config.cms_periods), jnp.log(config.cms_rate))
        self.cms_log_rate = nnx.Param(start) if self.learns_in_context else None

    @property
    def learns_in_context(self) -> bool:
        """Whether the continuum memory learns in context. If so, ``in_context.read_and_learn`` reads a text."""
        return self.config.cms_regime != "outer"

    def init_state(self, batch_size: int) -> Any:
        """The state of all blocks before the first token, stacked over layers.

        Memories are float32 whatever ``config.dtype`` is. Attention keeps keys and values in that type, since nothing
        is added to them.
        """
        dtype = self.config.dtype
        return jax.vmap(lambda block: cast_matrices(block, dtype).init_state(batch_size))(self.blocks)

    def __call__(
        self, tokens: Int[Array, "batch time"], state: Any = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time vocab"], Any]:
        """Returns the logits of the token after each token, and the state after the last; ``state=None`` starts a text.

        The model is causal: logits at t depend on tokens up to t only. A text may be split over any number of calls.
        ``at_boundary`` means the same as for ``MemoryMixer``.
        """
        # a model that learns in context is read chunk by chunk, each of which needs what the one before has taught
        x = self.embedded(tokens)
        check_state(tokens, state)
        shards = 1 if self.learns_in_context else shards_of(x.shape[1])
        axes = ("batch", "time" if shards > 1 else None, None)
        x = constrain(x, *axes)
        if shards > 1:
            x, state = self._read_split(x, state, shards, at_boundary=at_boundary)
        else:
            x, state = self.read_blocks(x, state, at_boundary=at_boundary)
        return self.logits(constrain(x, *axes)), state

    def embedded(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time width"]:
        """The residual stream before the first block; ``ValueError`` unless the tokens are integers of two axes."""
        check_tokens(tokens)
        embed, scale = self.embed, self.config.width**0.5 if self.config.scaled_embedding else 1.0
        # rows are taken directly, since nnx.Embed keeps the dtype it was built with
        rows = embed.rows(tokens) if isinstance(embed, QuantizedEmbed) else embed.embedding[...][tokens]
        return (rows * scale).astype(self._dtype)

    def logits(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time vocab"]:
        """The logits of the token after each token, from the residual stream after the last block."""
        head = self.embed.embedding[...].T if self.unembed is None else self.unembed.kernel[...]
        return widen(matmul(self.final_norm(x).astype(self._dtype), head))

    def last_logits(
        self, tokens: Int[Array, "batch time"], state: Any = None
    ) -> tuple[Float[Array, "batch vocab"], Any]:
        """The logits after the last token alone, since the head is a large matrix, and the state after it."""
        x = self.embedded(tokens)
        check_state(tokens, state)
        x, state = self.read_blocks(x, state)
        return self.logits(x[:, -1:])[:, 0], state

    @property
    def _dtype(self) -> Any:
        dtype = self.config.dtype
        return self.embed.embedding[...].dtype if dtype == "float32" else jnp.dtype(dtype)

    def _read_block(
        self, block: Block, x: Float[Array, "batch time width"], state: Any, *, at_boundary: bool
    ) -> tuple[Array, Any]:
        """Output and state of one block, computed in the type that the configuration says."""
        x, state = cast_matrices(block, self.config.dtype)(x, state, at_boundary=at_boundary)
        return constrain(x, "batch", None, None), state

    def read_blocks(
        self, x: Float[Array, "batch time width"], state: Any = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """The residual stream after the last block, and the state of all, also for a model of some of the blocks."""
        x, new = self._through_blocks(x, state, at_boundary=at_boundary)
        # layers return what a token adds to rotated keys, so that these are written once and nothing is copied
        return x, state.grown(new) if isinstance(state, RotatedState) else new

    def _through_blocks(
        self, x: Float[Array, "batch time width"], state: Any, *, at_boundary: bool
    ) -> tuple[Float[Array, "batch time width"], Any]:
        config, num_layers = self.config, len(jax.tree.leaves(self.blocks)[0])
        body = remat(lambda x, inputs: self._read_block(inputs[0], x, inputs[1], at_boundary=at_boundary), config.remat)
        unroll = config.unroll
        if unroll is None:
            unroll = self.learns_in_context or num_layers <= UNROLLED_LAYERS
        if unroll and num_layers:
            states = []
            for layer in range(num_layers):
                x, last = body(x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], (self.blocks, state)))
                states.append(last)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return jax.lax.scan(body, x, (self.blocks, state))

    def _read_split(
        self, x: Float[Array, "batch time width"], state: Any, shards: int, *, at_boundary: bool
    ) -> tuple[Array, Any]:
        """The same with the tokens split over devices."""
        if isinstance(self.blocks.mixer, Attention):
            return self._attend_split(x, state)
        memories: Any = self.blocks.mixer
        aligned = not any(x.shape[1] // shards % size for size in memories.chunking.sizes)
        at_boundary = aligned and (at_boundary or state is None)

        read = functools.partial(self._read_block, at_boundary=at_boundary)
        return over_sequence(read, self.blocks, x, self.init_state(len(x)) if state is None else state)

    def _attend_split(self, x: Float[Array, "batch time width"], state: Any) -> tuple[Array, Any]:
        """The same for attention, which has nothing to learn from left to right."""

        def read(block, x, state, shard):
            x, *after = cast_matrices(block, self.config.dtype).read_shard(x, state, shard)
            return constrain(x, "batch", None, None), *after

        x, own, conv = over_sequence_together(read, self.blocks, x, state)
        after = jax.vmap(lambda block, *parts: cast_matrices(block, self.config.dtype).mixer.state_after(*parts))
        return x, after(self.blocks, state, own, conv)


def some_blocks(model: LanguageModel, which: slice) -> LanguageModel:
    """The model with some of its blocks alone, for ``read_blocks``."""
    copy = shallow_copy(model)
    copy.blocks = jax.tree.map(lambda leaf: leaf[which], model.blocks)
    return copy
