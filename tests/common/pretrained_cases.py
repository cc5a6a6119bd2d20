"""Small random models of the Llama family: their files, and what they compute, in NumPy and float64."""

import json
import math

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = "def f(x):\n    return x + 12345  # größer, don't\n\n\tthe quick brown fox: 3.14"
SIZES = {
    "vocab_size": 300,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "hidden_act": "silu",
    "eos_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 8},
    "llama3": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama_linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_parameters": {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 5, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
}


def configuration(case):
    return SIZES | CASES[case]


def tensors_of(config, seed=0):
    """Random tensors of a configuration by their Hugging Face names; norms and biases are not at their start."""
    rng = np.random.default_rng(seed)
    width, heads, kv = (config[n] for n in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    d = config.get("head_dim") or width // heads
    shapes = {"model.embed_tokens": (config["vocab_size"], width), "model.norm": (width,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm": (width,), at + "post_attention_layernorm": (width,)}
        shapes |= {at + "self_attn.q_proj": (heads * d, width), at + "self_attn.o_proj": (width, heads * d)}
        shapes |= {at + f"self_attn.{part}_proj": (kv * d, width) for part in "kv"}
        shapes |= {at + f"mlp.{part}_proj": (config["intermediate_size"], width) for part in ("gate", "up")}
        shapes[at + "mlp.down_proj"] = (width, config["intermediate_size"])
        if config["model_type"] == "qwen3":
            shapes |= {at + f"self_attn.{part}_norm": (d,) for part in "qk"}
    tensors = {}
    for name, shape in shapes.items():
        array = rng.normal(size=shape) / math.sqrt(shape[-1]) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape)
        tensors[name + ".weight"] = (2 * array if len(shape) == 2 else array).astype(np.float32)
        if config["model_type"] == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
            tensors[name + ".bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    return tensors


def frequencies(config, d):
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rates = scaling.get("rope_theta", config["rope_theta"]) ** (-np.arange(d // 2) / (d // 2))
    if scaling.get("type") == "linear":
        return rates / scaling["factor"]
    if "factors" in scaling:
        return rates / scaling["factors"]
    if scaling.get("rope_type") != "llama3":
        return rates
    original, low, high = (
        scaling[n] for n in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    scaled = []
    for rate in rates:  # as published with Llama 3.1
        wavelength = 2 * math.pi / rate
        if wavelength < original / high:
            scaled.append(rate)
        elif wavelength > original / low:
            scaled.append(rate / scaling["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * rate / scaling["factor"] + smooth * rate)
    return np.array(scaled)


def reference(config, tensors, ids):
    """Logits [time, vocab] of one sequence."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    heads, kv, time = config["num_attention_heads"], config["num_key_value_heads"], len(ids)
    d = config.get("head_dim") or config["hidden_size"] // heads
    angles = np.arange(time)[:, None] * frequencies(config, d)
    distance = np.arange(time)[:, None] - np.arange(time)
    seen = (distance >= 0) & (distance < (config.get("sliding_window") or time))

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config["rms_norm_eps"]) * w[name + ".weight"]

    def project(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def rotate(x):  # [time, heads, d]
        a, b = x[..., : d // 2], x[..., d // 2 :]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        n = norm(x, at + "input_layernorm")
        q, k, v = (project(n, at + f"self_attn.{part}_proj").reshape(time, -1, d) for part in "qkv")
        if config["model_type"] == "qwen3":
            q, k = norm(q, at + "self_attn.q_norm"), norm(k, at + "self_attn.k_norm")
        q, k = rotate(q), rotate(k)
        answers = []
        for head in range(heads):
            shared = head // (heads // kv)
            scores = np.where(seen, q[:, head] @ k[:, shared].T / math.sqrt(d), -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            answers.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, shared])
        x = x + project(np.concatenate(answers, axis=-1), at + "self_attn.o_proj")
        n = norm(x, at + "post_attention_layernorm")
        gate = project(n, at + "mlp.gate_proj")
        x = x + project(gate / (1 + np.exp(-gate)) * project(n, at + "mlp.up_proj"), at + "mlp.down_proj")
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    return norm(x, "model.norm") @ w[head].T


def tokenizer(pre=None):
    """A byte-level BPE tokenizer of 300 ids at most, with two special tokens."""
    built = tokenizers.Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([*(pre or []), own])
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([TEXT] * 3, trainer)
    return built


def write_directory(directory, config, tensors, shards=1):
    """A Hugging Face directory with the weights in one file, or in several with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(directory / "tokenizer.json"))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map, names = {}, sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "rope_freqs": "rope_freqs",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def gguf_name(name):
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"


def as_stored(name, array, config):
    """Rows of llama's queries and keys as llama.cpp's converter orders them: the two channels of a rotation adjoin."""
    if config["model_type"] != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
    return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def write_gguf(path, config, tensors, kind="F32", *, pre="smollm", template=None, fields=(), kinds=None):
    """A GGUF file of the package's own writer; matrices of type ``kind``, or as ``kinds`` says by name."""
    import gguf
    from gguf import GGMLQuantizationType as Type

    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    content = json.loads(tokenizer(digits).to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_eos_token_id(1)
    if template:
        writer.add_chat_template(template)
    for name, value in fields:
        writer.add_string(name, value) if isinstance(value, str) else writer.add_float32(name, value)
    for name, array in tensors.items():
        own = Type[(kinds or {}).get(name, kind if array.ndim > 1 else "F32")]
        stored = as_stored(name, array, config)
        data = stored if own == Type.F32 else gguf.quants.quantize(stored, own)
        writer.add_tensor(gguf_name(name), data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
