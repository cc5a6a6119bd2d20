"""Reads GGUF files: llama.cpp's format, with configuration, tokenizer and possibly quantised tensors in one file."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nl_jax.errors import InputError
from nl_jax.pretrained.dequantise import dequantise
from nl_jax.pretrained.gguf_header import read_header
from nl_jax.pretrained.optional import needed

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
PAIRED = ("llama", "mistral")  # whose queries and keys have the two channels of a rotation side by side
# Name there -> Hugging Face's; of a layer without "blk.N." and "model.layers.N."
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EXPECTED = "expected F32, F16, BF16, Q4_0, Q4_1 or Q8_0"
FACTORS = "rope_freqs.weight"  # what divides each rotary frequency


class GGUFFile:
    """The metadata and tensors of a GGUF file, mapped into memory.

    Tensors may be F32, F16, BF16, Q4_0, Q4_1, Q8_0, or of another type that the package ``gguf`` can dequantise.

    Args:
      path: the file.

    Raises:
      InputError: if it is no GGUF file, is cut off, or has another architecture.
    """

    def __init__(self, path: Path):
        self.path = path
        self._gguf = needed("gguf", f"{path}: a GGUF file")
        self._content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        self._fields, self._tensors = read_header(path, self._content)
        self.architecture = self.field("general.architecture")
        if self.architecture not in ARCHITECTURES:
            expected = f"expected one of {', '.join(ARCHITECTURES)}"
            raise InputError(f"{path}: general.architecture is {self.architecture!r}; {expected}")
        for name in self._tensors:
            self._stored(name)
        self._names = {_hf_name(name): name for name in self._tensors if name != FACTORS}

    def field(self, name: str, default: Any = None) -> Any:
        """A value of the metadata."""
        return self._fields.get(name, default)

    def hf_config(self) -> dict[str, Any]:
        """The metadata as the ``config.json`` of a Hugging Face directory would have it."""

        def value(name: str, default: Any = None) -> Any:
            found = self.field(f"{self.architecture}.{name}", default)
            if isinstance(found, list):
                raise InputError(f"{self.path}: {self.architecture}.{name} differs between layers; expected one value")
            return float(str(np.float32(found))) if isinstance(found, float) else found

        width, heads = value("embedding_length"), value("attention.head_count")
        config = {
            "model_type": self.architecture,
            "vocab_size": self._tensors["token_embd.weight"].shape[0] if "token_embd.weight" in self._tensors else None,
            "hidden_size": width,
            "num_hidden_layers": value("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": value("attention.head_count_kv", heads),
            "head_dim": value("attention.key_length", width // heads if width and heads else None),
            "intermediate_size": value("feed_forward_length"),
            "max_position_embeddings": value("context_length"),
            "rms_norm_eps": value("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_theta": value("rope.freq_base", 10_000.0),
            "sliding_window": value("attention.sliding_window"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }
        rotated = value("rope.dimension_count", config["head_dim"])
        if rotated != config["head_dim"]:
            config["partial_rotary_factor"] = rotated / config["head_dim"]
        kind = value("rope.scaling.type", "none")
        if FACTORS in self._tensors:
            factors = self._dequantised(FACTORS).ravel()
            config["rope_scaling"] = {"rope_type": "factors", "factors": factors.astype(float).tolist()}
        elif kind != "none":
            config["rope_scaling"] = {"rope_type": kind, "factor": value("rope.scaling.factor")}
        return config

    def names(self) -> Iterable[str]:
        """Names of all tensors, as Hugging Face has them."""
        return self._names

    def place(self, name: str) -> str:
        """The file and the tensor's own name there."""
        return f"{self.path}: tensor {self._names.get(name, name)!r}"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, known without reading it."""
        return self._tensors[self._names[name]].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor in its floating-point type, or float32.

        Rows of queries and keys are ordered so that rotations pair channel i with i + half, as Hugging Face does.
        """
        array = self._dequantised(self._names[name]).reshape(self.shape(name))
        heads = {"q_proj": "head_count", "k_proj": "head_count_kv"}.get(name.split(".")[-2])
        if heads is None or self.architecture not in PAIRED:
            return array
        prefix = f"{self.architecture}.attention."
        count = self.field(prefix + heads) or self.field(prefix + "head_count")
        rows = array.reshape(count, -1, 2, *array.shape[1:])
        return rows.swapaxes(1, 2).reshape(array.shape)

    def _stored(self, own_name: str) -> np.ndarray:
        """The bytes of a tensor, [rows, bytes of a row]; `InputError` where the file ends before its end."""
        info, gguf = self._tensors[own_name], self._gguf
        place = f"{self.path}: tensor {own_name!r}"
        try:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.kind)]
        except (ValueError, KeyError) as error:
            raise InputError(f"{place} is of the unknown type {info.kind}; {EXPECTED}") from error
        rows, columns = math.prod(info.shape[:-1]), info.shape[-1] if info.shape else 1
        if columns % block:
            raise InputError(f"{place} has rows of {columns} values; expected a multiple of {block}")
        count = rows * columns // block * size
        stored = self._content[info.start : info.start + count]
        if len(stored) < count:
            raise InputError(
                f"{place} ends at byte {info.start + count}, but the file at {len(self._content)}: cut off"
            )
        return np.asarray(stored).reshape(rows, -1)

    def _dequantised(self, own_name: str) -> np.ndarray:
        stored, kind = self._stored(own_name), self._tensors[own_name].kind
        try:
            return dequantise(stored, kind, self._gguf)
        except NotImplementedError as error:
            name = self._gguf.GGMLQuantizationType(kind).name
            raise InputError(f"{self.path}: tensor {own_name!r} is of type {name}; {EXPECTED}") from error


def _hf_name(name: str) -> str:
    """Hugging Face's name of a tensor; unknown names stay, and are refused where the model is read."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in OF_LAYER:
        return f"model.layers.{parts[1]}.{OF_LAYER[parts[2]]}.{parts[3]}"
    return WHOLE.get(name, name)
