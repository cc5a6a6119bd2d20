"""Where the tensors of a Llama-family checkpoint go in a `LanguageModel`, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.pretrained.tensors import Tensors
from nl_jax.trees import named_leaves, path_name

# Leaf of a model -> name of the tensor. Kernels are [in, out] here and [out, in] there.
WHOLE = {
    "embed.embedding": "model.embed_tokens.weight",
    "final_norm.scale": "model.norm.weight",
    "unembed.kernel": "lm_head.weight",
}
# Leaf of the stacked blocks -> name of the tensor of one layer.
OF_LAYER = {
    "mixer_norm.scale": "input_layernorm.weight",
    **{
        f"mixer.{ours}.kernel": f"self_attn.{theirs}_proj.weight"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
    },
    **{
        f"mixer.{ours}.bias": f"self_attn.{theirs}_proj.bias"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
    },
    "mixer.query_norm.scale": "self_attn.q_norm.weight",
    "mixer.key_norm.scale": "self_attn.k_norm.weight",
    "cms.levels.0.norm.scale": "post_attention_layernorm.weight",
    **{f"cms.levels.0.{part}.kernel": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}
IGNORED = ("rotary_emb.inv_freq",)  # older files hold the frequencies, which follow from the configuration


def tensor_names(path: str, num_layers: int) -> list[str]:
    """The tensors that make up a leaf: one, or one of each layer.

    Raises:
      KeyError: for a leaf that models of the Llama family do not have.
    """
    if path in WHOLE:
        return [WHOLE[path]]
    name = OF_LAYER[path.removeprefix("blocks.")]
    return [f"model.layers.{layer}.{name}" for layer in range(num_layers)]


def read_model(config: LanguageModelConfig, tensors: Tensors, place: str) -> LanguageModel:
    """The model with the weights of a checkpoint, in float32.

    Tensors are read one at a time, so that at most one leaf is in memory twice.

    Args:
      config: the model's configuration.
      tensors: the checkpoint's.
      place: its path, for messages.

    Raises:
      InputError: for a configuration whose sizes do not fit each other, a tensor that is missing, of another shape or
        type, or that the architecture does not have; the message names the file and the tensor.
    """
    try:
        shapes = jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error
    leaves = named_leaves(shapes)
    names = {path: tensor_names(path, config.num_layers) for path in leaves}
    _check_names({name for group in names.values() for name in group}, tensors, place, config.tied_head)
    for path, group in names.items():  # shapes are known without reading, so a wrong one is found at once
        expected = _shape_there(path, leaves[path].shape)
        for name in group:
            if tensors.shape(name) != expected:
                raise InputError(f"{tensors.place(name)} has shape {tensors.shape(name)}; expected {expected}")
    arrays = {path: _read_leaf(path, leaves[path].shape, names[path], tensors) for path in leaves}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays[path_name(path)], shapes)


def tensors_of(model: LanguageModel) -> dict[str, np.ndarray]:
    """The tensors of a model by their Hugging Face names; embeddings that the model scales are returned scaled."""
    found: dict[str, np.ndarray] = {}
    config = model.config
    for path, leaf in named_leaves(model).items():
        array = np.asarray(leaf)
        parts = [array] if path in WHOLE else list(array)
        for name, part in zip(tensor_names(path, config.num_layers), parts, strict=True):
            found[name] = np.ascontiguousarray(part.T if path.endswith(".kernel") else part)
    embedding = WHOLE["embed.embedding"]
    if config.scaled_embedding:
        if config.tied_head:
            found[WHOLE["unembed.kernel"]] = found[embedding]
        found[embedding] = found[embedding] * np.float32(config.width**0.5)
    return found


def _shape_there(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one of a leaf's tensors."""
    own = shape if path in WHOLE else shape[1:]
    return own[::-1] if path.endswith(".kernel") else own


def _check_names(needed: set[str], tensors: Tensors, place: str, tied: bool) -> None:
    there = set(tensors.names())
    for name in sorted(needed - there):
        raise InputError(f"{place}: tensor {name!r} is missing")
    ignored = {WHOLE["unembed.kernel"]} if tied else set()
    for name in sorted(there - needed - ignored):
        if not name.endswith(IGNORED):
            raise InputError(f"{tensors.place(name)}: the architecture of its configuration has no such tensor")


def _read_leaf(path: str, shape: tuple[int, ...], names: list[str], tensors: Tensors) -> Any:
    array = np.empty(shape, np.float32)
    parts = [array] if path in WHOLE else list(array)
    for part, name in zip(parts, names, strict=True):
        read = tensors.read(name)
        part[...] = read.T if path.endswith(".kernel") else read
    return jnp.asarray(array)
