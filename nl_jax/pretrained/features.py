"""Features of texts from a language model: its hidden states after a chosen layer, averaged over each text's tokens.

Only the input embedding and the first blocks run. What was extracted is kept on disk, since extraction is slow.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nl_jax.errors import InputError
from nl_jax.files import in_place_of
from nl_jax.models import LanguageModel
from nl_jax.models.language_model import some_blocks

_BATCH_TOKENS = 1024  # tokens of a batch, padding included
_MULTIPLE = 16  # lengths of batches are multiples of this, so that few programs are compiled
_SHARD = 1024  # texts in a file of the cache, after which a run that was stopped goes on


def hidden_states(
    model: LanguageModel, tokens: Int[Array, "batch time"], layer: int
) -> Float[Array, "batch time width"]:
    """The hidden state of each token after the first ``layer`` blocks; 0 gives the rows of the input embedding.

    Rows of the embedding are as they are stored, without the scale that some models read them with.

    Raises:
      InputError: if the model does not have so many blocks, or learns in context.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, named_config
      >>> from nl_jax.pretrained import hidden_states
      >>> config = named_config("transformer", "tiny", width=8, num_layers=1, num_heads=1, mlp_hidden=8)
      >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
      >>> bool((hidden_states(model, jnp.array([[5, 7]]), 0)[0, 1] == model.embed.embedding[7]).all())
      True
    """
    config = model.config
    if not 0 <= layer <= config.num_layers:
        raise InputError(f"layer={layer}: expected 0 to {config.num_layers}, the blocks of the model")
    if model.learns_in_context:
        raise InputError("a model that learns in context has no fixed features; expected cms_regime='outer'")
    if not layer:
        return model.embed.embedding[...][tokens]
    return some_blocks(model, slice(layer)).read_blocks(model.embedded(tokens))[0]


@functools.partial(jax.jit, static_argnames="layer")
def _means(model: LanguageModel, tokens: Array, mask: Array, layer: int) -> Float[Array, "batch width"]:
    """The mean over the tokens with mask 1; the model is causal, so padding behind a text changes nothing."""
    states = hidden_states(model, tokens, layer).astype(jnp.float32)
    return jnp.sum(states * mask[..., None], axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)[:, None]


def mean_features(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    layer: int,
    progress: Callable[[int], Any] = lambda tokens: None,
) -> Float[np.ndarray, "N width"]:
    """The mean hidden state of each text after ``layer`` blocks, in batches of texts of similar length.

    Args:
      model: the language model.
      texts: the token ids of each text; a text without tokens has features 0, and one longer than the model's
        ``context_length`` is cut.
      layer: as for `hidden_states`.
      progress: called with the number of tokens that are done.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, named_config
      >>> from nl_jax.pretrained import mean_features
      >>> config = named_config("transformer", "tiny", width=8, num_layers=1, num_heads=1, mlp_hidden=8)
      >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
      >>> mean_features(model, [[5, 7, 9], []], 1)[1].tolist()  # a text without tokens
      [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    lengths = np.array([min(len(ids), model.config.context_length) for ids in texts])
    features = np.zeros((len(texts), model.config.width), np.float32)
    order, start = np.argsort(lengths, kind="stable")[::-1], 0
    while start < len(order):
        time = -(-max(int(lengths[order[start]]), 1) // _MULTIPLE) * _MULTIPLE
        size = max(1, _BATCH_TOKENS // time)
        rows = order[start : start + size]
        tokens, mask = np.zeros((size, time), np.int32), np.zeros((size, time), np.float32)
        for place, row in enumerate(rows):
            tokens[place, : lengths[row]] = texts[row][: lengths[row]]
            mask[place, : lengths[row]] = 1.0
        features[rows] = np.asarray(_means(model, tokens, mask, layer))[: len(rows)]
        progress(int(lengths[rows].sum()))
        start += size
    return features


def cached_features(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    layer: int,
    cache_dir: Path,
    progress: Callable[[int], Any] = lambda tokens: None,
) -> Float[np.ndarray, "N width"]:
    """As `mean_features`, with what was extracted before read from files, and new features written there.

    The name of a file is a digest of the parameters in use, the texts and the layer. Each holds 1,024 texts, so that an
    extraction that was stopped goes on.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from flax import nnx
      >>> from nl_jax.models import LanguageModel, named_config
      >>> from nl_jax.pretrained import cached_features
      >>> config = named_config("transformer", "tiny", width=8, num_layers=1, num_heads=1, mlp_hidden=8)
      >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     first, again = (cached_features(model, [[5, 7, 9], []], 1, Path(folder)) for _ in range(2))
      >>> first.shape, bool((first == again).all())  # the second time they are read from the file
      ((2, 8), True)
    """
    digest, features = parameters_digest(model, layer), []
    cache_dir.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(texts), _SHARD):
        shard = texts[start : start + _SHARD]
        name = hashlib.sha256(digest.encode())
        for ids in shard:
            name.update(np.asarray([len(ids), *ids], np.int64).tobytes())
        path = cache_dir / f"features_layer{layer}_{name.hexdigest()[:32]}.npy"
        found = _stored(path, (len(shard), model.config.width))
        if found is None:
            found = mean_features(model, shard, layer, progress)
            with in_place_of(path) as temporary, temporary.open("wb") as file:
                np.save(file, found)
        else:
            progress(sum(map(len, shard)))
        features.append(found)
    return np.concatenate(features)


def parameters_digest(model: LanguageModel, layer: int) -> str:
    """A digest of the configuration and of the parameters that features of a layer depend on."""
    digest = hashlib.sha256(repr((sorted(model.config.to_json().items()), layer)).encode())
    digest.update(np.ascontiguousarray(model.embed.embedding[...]).tobytes())
    if layer:
        for leaf in jax.tree.leaves(model.blocks):
            digest.update(np.ascontiguousarray(leaf[:layer]).tobytes())
    return digest.hexdigest()


def _stored(path: Path, shape: tuple[int, int]) -> Float[np.ndarray, "N width"] | None:
    """The features in a file, or None if there is no such file, or it is damaged."""
    try:
        found = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None
